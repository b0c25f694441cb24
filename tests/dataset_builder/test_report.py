"""The report: complete, self-contained, safe against what captions hold, and working in a browser."""

import base64
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dataset_builder.report import ReportConfig, main
from dataset_builder.reports.charts import Histogram, Interval, Series, histogram_svg, intervals_svg, lines_svg, short_number
from dataset_builder.reports.page import Gallery, Picture, Section, gallery_html, page
from dataset_builder.reports.sections import funnel_table, noun_tables, rarefaction
from dataset_builder.sql.dataset_files import open_stored
from foundry.errors import UserError
from foundry.images.reader import reference_of
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import SmallRun, write_run_with_images
from tests.foundry.images.containers import jpeg, write

SECTIONS = ["Funnel", "Concept density", "Statuses", "Rarefaction", "Histograms", "Density against"]
SECTIONS += ["Frequent nouns", "Rare nouns", "Repetitions", "Gallery"]


class _Page(HTMLParser):
    """Headings, cells and whatever a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.fetched: list[str] = []
        self._in_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_heading = tag == "h2"
        self.fetched += [
            value for name, value in attrs if name in ("src", "href") and value and not value.startswith(("#", "data:"))
        ]

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False


@pytest.fixture
def run(tmp_path: Path) -> Path:
    dense = "An owl <script>alert(1)</script> & a house, a tree, an owl and an owl."
    SmallRun(captions={"dense": dense, "short": "An image of an owl."}).write(Folder(str(tmp_path / "run")))
    return tmp_path / "run"


def _report(run: Path, **options: Any) -> str:
    out = run.parent / "report.html"
    assert main(ReportConfig(source=str(run), out=str(out), **options)) == 0
    return out.read_text()


def test_a_report_has_all_parts_and_fetches_nothing(run: Path) -> None:
    text = _report(run)
    page = _Page()
    page.feed(text)
    assert page.headings == SECTIONS
    assert page.fetched == []
    assert "url(" not in text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "SAM-LLaVA" in text
    assert "T5 reads 6" in text


def test_the_funnel_of_a_run_adds_up(run: Path) -> None:
    with open_stored(str(run)) as database:
        rows = funnel_table(database).rows
    assert rows == [["planned", "", 8, 0], ["rejected", "broken", 7, 1], ["waiting", "", 5, 2]]


def test_head_and_tail_are_the_two_ends_of_the_counts(run: Path) -> None:
    with open_stored(str(run)) as database:
        head, tail = noun_tables(database)
    assert [row[:3] for row in head.rows] == [["dense", "owl", 15], ["short", "image", 5], ["short", "owl", 5]]
    assert {tuple(row[:3]) for row in tail.rows[:2]} == {("short", "image", 5), ("short", "owl", 5)}
    assert tail.rows[2] == head.rows[0]


def test_curves_end_at_the_density_of_the_whole(run: Path) -> None:
    with open_stored(str(run)) as database:
        whole = {row["prompt"]: row for row in database.fetch("FROM density() WHERE counted = 'written'").to_pylist()}
        curves = rarefaction(database)
    for line in curves["DN"]:
        assert line.points[-1] == (whole[line.name]["num_captions"], whole[line.name]["distinct_nouns"])
        assert [y for _, y in line.points] == sorted(y for _, y in line.points)


def test_charts_stay_inside_their_frame_and_hold_every_count() -> None:
    bars = histogram_svg(Histogram(title="a < b", edges=[0, 1, 2, 3], counts=[5, 0, 2], mark=(2, "here")))
    assert [int(count) for count in re.findall(r": (\d+)</title>", bars)] == [5, 0, 2]
    assert "a &lt; b" in bars
    lines = lines_svg("x", [Series(name="one", points=[(3, 0.0), (3, 4.0)])])
    for number in re.findall(r'c[xy]="([-\d.]+)"', lines):
        assert 0 <= float(number) <= 420
    assert lines_svg("x", [Series(name="empty", points=[])]) == ""


def test_lines_show_their_own_range_and_more_than_six_differ_by_their_dashes() -> None:
    losses = [(0.0, 0.51), (1.0, 0.50)]
    (high, low), (zero_high, zero_low) = (
        [float(y) for y in re.findall(r'cy="([-\d.]+)"', lines_svg("x", [Series(name="a", points=losses)], from_zero=wide))]
        for wide in (False, True)
    )
    assert low - high > 100, "one hundredth fills the picture"
    assert zero_low - zero_high < 10, "or is next to nothing of it"
    assert 0 < high < low < 200
    many = lines_svg("x", [Series(name=str(number), points=losses) for number in range(13)])
    looks = re.findall(r'<polyline class="([^"]+)"( stroke-dasharray="[^"]+")?', many)
    assert len(looks) == len(set(looks)) == 13


def test_intervals_are_drawn_around_their_values_over_a_line_at_zero() -> None:
    intervals = [
        Interval(name="a < b", value=-0.2, half_width=0.1, points=[-0.25, -0.15], colour=1),
        Interval(name="a name that is far too long to be shown", value=0.1, half_width=None),
    ]
    drawn = intervals_svg("x & y", intervals)
    ends = re.search(r'<line class="line c1" x1="([\d.]+)" x2="([\d.]+)"', drawn)
    zero = re.search(r'<line class="mark" x1="([\d.]+)"', drawn)
    circles = [float(x) for x in re.findall(r'<circle[^>]* cx="([\d.]+)"', drawn)]
    assert ends is not None and zero is not None and len(circles) == 4
    assert float(ends[1]) < circles[0] < circles[2] < circles[1] < float(ends[2]) < float(zero[1]) < circles[3] < 420
    assert "a &lt; b: -0.2 ± 0.1" in drawn and "x &amp; y" in drawn and "…" in drawn
    assert 'viewBox="0 0 420' in intervals_svg("none", [Interval(name="same", value=0.0, half_width=0.0)])


def _axis(svg: str) -> list[str]:
    """The numbers under a chart."""
    return re.findall(r'y="202" text-anchor="middle">([^<]+)<', svg)


def test_axes_have_round_numbers() -> None:
    assert _axis(histogram_svg(Histogram(title="x", edges=[39, 68, 97], counts=[1, 1]))) == ["40", "60", "80"]
    assert _axis(histogram_svg(Histogram(title="x", edges=[-0.3, 0], counts=[1]))) == ["-0.3", "-0.2", "-0.1", "0"]
    assert _axis(lines_svg("x", [Series(name="x", points=[(7, 1.0)])])) == ["7"]
    curve = lines_svg("x", [Series(name="x", points=[(1, 1.0), (100, 2.0), (2000, 3.0)])], is_log=True)
    assert _axis(curve) == ["1", "10", "100", "1,000"]


def test_a_mark_at_the_edge_is_written_inside() -> None:
    place = re.search(r'<text class="mark" x="([\d.]+)"( text-anchor="end")?', histogram_svg(
        Histogram(title="x", edges=[30, 121], counts=[1], mark=(120, "T5 reads 120"))))  # fmt: skip
    assert place is not None and float(place[1]) < 420 and place[2]


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.12345, "0.123"), (12345, "12.3k"), (2.5e6, "2.5M"), (float("nan"), "?")]
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert short_number(value) == shown


def test_images_that_are_gone_are_counted_and_the_page_is_made(tmp_path: Path) -> None:
    text = _report(Path(write_run_with_images(tmp_path)))
    assert text.count("<article") == 1
    assert "2 more could not be read: img_1: " in text
    tar = {"uri": "/data/gone.tar", "member": "0.jpg", "byte_offset": 512, "byte_length": 9}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset_builder.reports.thumbnails.reference_of", lambda row: reference_of({**row, **tar}))
        text = _report(tmp_path / "pictures")
    assert "3 more could not be read: img_0: /data/gone.tar existed when its images were planned" in text
    assert "could not be read" not in _report(tmp_path / "pictures", pictures=0)


def test_nothing_to_report_is_one_line(tmp_path: Path) -> None:
    SmallRun(num_committed=0).write(Folder(str(tmp_path / "run")))
    with pytest.raises(UserError, match="no caption to report on yet"):
        main(ReportConfig(source=str(tmp_path / "run"), out=str(tmp_path / "report.html")))


def _gallery(path: Path, *, nouns: dict[str, int | None]) -> Path:
    """A page of pictures with this many nouns."""
    data = base64.b64encode(jpeg()).decode()
    pictures = [Picture(key=key, jpeg_base64=data, caption="", figures={"nouns": number}) for key, number in nouns.items()]
    section = Section(title="Gallery", lead="", body=gallery_html(Gallery(pictures=pictures)))
    return write(path, page(title="x", subtitle="", sections=[section]))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs Debian's chromium-driver")
def test_a_browser_sorts_tables_and_pictures_and_reports_no_error(run: Path, tmp_path: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    _report(run)
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
    ):
        options.add_argument(flag)
    options.add_argument("--disable-sync")
    options.add_argument(f"--user-data-dir={tmp_path / 'browser'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        browser.get((run.parent / "report.html").as_uri())
        section = browser.find_element(By.ID, f"s{SECTIONS.index('Frequent nouns')}")
        header = section.find_elements(By.TAG_NAME, "th")[2]
        header.click()
        cells = section.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(3)")
        counts = [int(str(cell.get_attribute("data-value"))) for cell in cells]
        assert counts == sorted(counts)
        header.click()
        first = section.find_element(By.CSS_SELECTOR, "tbody td:nth-child(3)")
        assert int(str(first.get_attribute("data-value"))) == max(counts)
        browser.get(_gallery(tmp_path / "gallery.html", nouns={"a": 2, "b": None, "c": 10}).as_uri())
        order = Select(browser.find_element(By.ID, "by"))

        def shown() -> list[str | None]:
            return [card.get_attribute("data-key") for card in browser.find_elements(By.TAG_NAME, "article")]

        order.select_by_visible_text("nouns")
        assert shown() == ["a", "c", "b"]
        browser.find_element(By.ID, "down").click()
        assert shown() == ["c", "a", "b"]  # what has no figure is last both ways
        order.select_by_visible_text("key")
        assert shown() == ["c", "b", "a"]
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []  # type: ignore[no-untyped-call]
    finally:
        browser.quit()
