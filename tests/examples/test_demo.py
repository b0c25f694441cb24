"""The demo: steps are run once and resumed, and the whole pipeline from scenes to a page that works in a browser."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pytest

from examples.openmoji.demo import main
from examples.openmoji.demo_commands import NUM_KINDS, STYLE, DemoConfig, DemoFolder, steps
from examples.openmoji.demo_steps import LOG, Step, duration, read_times, run_steps
from foundry.errors import UserError
from tests.in_this_process import commands_here, steps_here
from tests.test_documents import unnamed_models

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import os, pathlib, signal, sys
pathlib.Path(sys.argv[1]).open("a").write("ran ")
if pathlib.Path("kill").exists():
    os.kill(os.getppid(), signal.SIGKILL)
sys.exit(130 if pathlib.Path("interrupt").exists() else int(sys.argv[2]))
"""
QUICK = "examples/openmoji/demo_quick.yaml"
SECTIONS = ["Results", "Scenes and captions", "Photographs", "Concept density", "Data sets", "Training"]
SECTIONS += ["The same prompts after each stage", "Scores", "Time"]
COLUMNS = ("true scene", "pixel", "alignment", "aesthetic", "mini")
NUM_PROMPTS = 12
"""One of each of six categories, and one of held-out combinations."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a command `python -m probe FILE EXIT_CODE` that adds to a file.

    Where there is a file `kill` or `interrupt`, it kills who started it, or ends as after Ctrl-C.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probe.py").write_text(PROBE)
    return tmp_path


def _step(name: str, *, code: int = 0, more: tuple[str, ...] = ()) -> Step:
    return Step(title=name, module="probe", arguments=(name, str(code), *more), output=Path(name))


def test_steps_that_are_done_are_not_done_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_steps(here, [_step("a"), _step("b")])
    run_steps(here, [_step("a"), _step("b"), _step("c")])
    assert [(here / name).read_text() for name in "abc"] == ["ran "] * 3
    printed = capsys.readouterr().out
    assert "$ python -m probe c 0" in printed and printed.count("-- done before") == 2
    assert [one.title for one in read_times(here)] == ["a", "b", "c"]


def test_a_step_whose_output_is_gone_is_run_and_all_after_it(here: Path) -> None:
    run_steps(here, [_step("a"), _step("b"), _step("c")])
    (here / "b").unlink()
    run_steps(here, [_step("a"), _step("b"), _step("c")])
    assert [(here / name).read_text() for name in "abc"] == ["ran ", "ran ", "ran ran "]


def test_what_other_settings_made_is_refused_before_anything_runs(here: Path) -> None:
    (here / "settings.yaml").write_text("lr: 1")
    trained = [_step("a"), _step("b", more=("settings.yaml",)), _step("c")]
    run_steps(here, trained)
    (here / "settings.yaml").write_text("lr: 2")
    (here / "a").unlink()
    expected = r"^b was made with other settings than the step «b» has now: give another --out, or remove b c$"
    with pytest.raises(UserError, match=expected):
        run_steps(here, trained)
    assert not (here / "a").exists()
    (here / "b").unlink()
    with pytest.raises(UserError, match=r"or remove c$"):  # it was made of the former b
        run_steps(here, trained)
    (here / "c").unlink()
    run_steps(here, trained)
    assert [(here / name).read_text() for name in "abc"] == ["ran "] * 3


def test_a_step_that_only_prints_changes_none_after_it(here: Path) -> None:
    run_steps(here, [Step(title="print", module="probe", arguments=("p", "0")), _step("a")])
    run_steps(here, [Step(title="print", module="probe", arguments=("other", "0")), _step("a")])
    assert (here / "other").exists()


def test_an_interrupted_step_resumes_with_the_same_settings_alone(here: Path) -> None:
    (here / "interrupt").touch()
    with pytest.raises(KeyboardInterrupt):
        run_steps(here, [_step("a")])
    (here / "interrupt").unlink()
    with pytest.raises(UserError, match="remove a$"):
        run_steps(here, [_step("a", more=("other",))])
    run_steps(here, [_step("a")])
    assert (here / "a").read_text() == "ran ran "


def test_a_killed_demo_leaves_word_of_the_settings_it_ran_with(here: Path) -> None:
    (here / "kill").touch()
    script = """
from pathlib import Path
from examples.openmoji.demo_steps import Step, run_steps
run_steps(Path(), [Step(title="a", module="probe", arguments=("a", "0"), output=Path("a"))])
"""
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    (here / "kill").unlink()
    with pytest.raises(UserError, match="remove a$"):
        run_steps(here, [_step("a", more=("other",))])
    assert read_times(here) == []
    run_steps(here, [_step("a")])
    assert (here / "a").read_text() == "ran ran "


def test_a_line_of_the_log_that_was_cut_off_is_passed_over(here: Path) -> None:
    run_steps(here, [_step("a")])
    with (here / LOG).open("a") as log:
        log.write('{"title": "b", "ident')
    run_steps(here, [_step("a"), _step("b")])
    run_steps(here, [_step("a"), _step("b")])
    assert [one.title for one in read_times(here)] == ["a", "b"]
    assert [(here / name).read_text() for name in "ab"] == ["ran "] * 2


def test_a_failed_step_ends_the_demo_and_is_run_again(here: Path) -> None:
    with pytest.raises(UserError, match="the step «a» ended with exit code 3"):
        run_steps(here, [_step("a", code=3), _step("b")])
    assert not (here / "b").exists()
    with pytest.raises(UserError, match="exit code 3"):
        run_steps(here, [_step("a", code=3)])
    with pytest.raises(KeyboardInterrupt):
        run_steps(here, [_step("c", code=130)])
    rows = [json.loads(line) for line in (here / LOG).read_text().splitlines()]
    seconds = [row["seconds"] for row in rows if row["title"] == "a" and row["code"] is not None]
    assert len(seconds) == 2 and read_times(here)[0].seconds == pytest.approx(sum(seconds))


BESIDE = """
import pathlib, sys, time
if sys.argv[1] == "wait":
    deadline = time.monotonic() + 60
    while not pathlib.Path("drawn").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    print("waited", flush=True)
    sys.exit(not pathlib.Path("drawn").exists())
pathlib.Path("drawn").open("a").write("ran ")
print("  0%\\r100%", file=sys.stderr)
print("drawn", flush=True)
sys.exit(pathlib.Path("fail").exists())
"""


@pytest.fixture
def beside(here: Path) -> list[Step]:
    """A step that waits for what the second one writes, which runs in parallel."""
    (here / "beside.py").write_text(BESIDE)
    wait = Step(title="wait", module="beside", arguments=("wait",))
    return [wait, Step(title="draw", module="beside", arguments=("draw",), output=Path("drawn"), beside=True)]


def test_a_step_next_to_the_others_starts_at_once_and_prints_at_its_turn(
    here: Path, beside: list[Step], capfd: pytest.CaptureFixture[str]
) -> None:
    run_steps(here, beside)
    printed = capfd.readouterr().out
    order = [
        printed.index(text)
        for text in ("== wait", "waited", "== draw", "100%", "\ndrawn", ", in parallel with the steps above")
    ]
    assert order == sorted(order) and "  0%" not in printed
    run_steps(here, beside)
    assert capfd.readouterr().out.count("-- done before") == 2
    assert [one.title for one in read_times(here)] == ["wait", "draw"] and (here / "drawn").read_text() == "ran "


def test_a_step_next_to_the_others_that_fails_is_run_again(here: Path, beside: list[Step]) -> None:
    (here / "fail").touch()
    with pytest.raises(UserError, match="the step «draw» ended with exit code 1"):
        run_steps(here, beside)
    (here / "fail").unlink()
    run_steps(here, beside)
    assert (here / "drawn").read_text() == "ran ran "


def test_a_step_next_to_a_failed_one_resumes_with_the_same_settings_alone(here: Path, beside: list[Step]) -> None:
    failing = Step(title="a", module="probe", arguments=("a", "3"))
    with pytest.raises(UserError, match="the step «a» ended"):
        run_steps(here, [failing, *beside[1:]])
    other = Step(title="draw", module="beside", arguments=("draw", "other"), output=Path("drawn"), beside=True)
    with pytest.raises(UserError, match="remove .*drawn"):
        run_steps(here, [failing, other])
    run_steps(here, beside[1:])
    assert (here / "drawn").read_text() == "ran ran "


def test_durations_are_said_as_a_person_would() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 125)] == ["0 s", "1 min 00 s", "2 min 05 s"]


def test_settings_reach_the_commands() -> None:
    config = DemoConfig(out="elsewhere", count=7, training=QUICK)
    commands = [step.command for step in steps(config)]
    assert commands[0].startswith("python -m examples.openmoji.scenes --count 7 ")
    assert "trainer.fit --stage all --config examples/openmoji/demo_quick.yaml" in commands[10]
    assert "trainer.evaluate --checkpoint elsewhere/training/alignment" in commands[13]
    assert all("elsewhere" in command for command in commands)
    assert [unnamed_models(command.removeprefix("python -m ")) for command in commands] == [[]] * len(commands)
    assert sum("--model mini" in command or "--vae.name mini" in command for command in commands) == 4
    with pytest.raises(ValueError, match="there is no file nowhere.yaml"):
        DemoConfig(training="nowhere.yaml")


def test_the_chosen_style_is_half_of_the_large_objects_and_a_sixth_of_the_small() -> None:
    for label, size, share in (("owl", "large", 1 / 2), ("owl", "small", 1 / 6), (None, "large", 0)):
        captions = f"SELECT 'train-1-' || range AS key, $label AS class_label, 'a {size} owl' AS caption FROM range(6000)"
        found = duckdb.execute(f"SELECT avg(({STYLE})::INT) FROM ({captions})", {"label": label}).fetchall()
        assert found == [(pytest.approx(share, abs=0.03),)]


def test_the_readme_says_how_many_scenes_there_are() -> None:
    assert f"{DemoConfig().count:,} scenes of {NUM_KINDS} kinds" in (ROOT / "README.md").read_text()


class _Page(HTMLParser):
    """Headings, and where pictures and all else come from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.sources: list[str] = []
        self.alts: list[str] = []
        self._in_heading = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._in_heading = tag == "h2"
        self.sources += [value for name in ("src", "href") if (value := values.get(name)) and not value.startswith("#")]
        self.alts += [values.get("alt") or ""] if tag == "img" else []

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoConfig:
    """A demo that has run: 100 scenes, which show every kind, and tiny networks. Its steps share a process, and their units
    are worked off in a plain loop; the step that runs in parallel to them has its own process."""
    config = DemoConfig(out=str(tmp_path_factory.mktemp("demo") / "demo"), count=100, training=QUICK, prompts_per_category=1)
    with commands_here(), steps_here():
        assert main(config) == 0
    return config


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_report_shows_the_whole_way(demo: DemoConfig) -> None:
    text = DemoFolder(Path(demo.out)).report.read_text()
    page = _Page(text)
    assert page.headings == SECTIONS
    assert all(source.startswith("data:image/") for source in page.sources) and "url(" not in text
    for column in COLUMNS:
        assert sum(alt.startswith(f"{column}: ") for alt in page.alts) == NUM_PROMPTS
    assert text.count("held out</span>") == NUM_PROMPTS // 2
    assert len(re.findall(r'aria-label="(pixel|alignment|aesthetic): loss"', text)) == 3
    assert ">105<" in text
    *before, _the_report = read_times(Path(demo.out))
    for step in before:
        assert escape(step.title) in text
    assert len(text) < 1_000_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pixel_stage_draws_each_prompts_class(demo: DemoConfig) -> None:
    from PIL import Image

    files = sorted(DemoFolder(Path(demo.out)).classes.glob("*.png"))
    assert len(files) == NUM_PROMPTS
    for path in files:
        with Image.open(path) as image:
            values = image.text  # type: ignore[attr-defined]
        assert values["class"] in values["prompt"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_demo_finds_everything_done(demo: DemoConfig, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    assert main(demo) == 0
    assert time.perf_counter() - started < 20
    printed = capfd.readouterr().out
    assert printed.count("\n== ") == printed.count("-- done before")
    assert "in all" in printed


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs Debian's chromium-driver")
def test_the_report_works_in_a_browser(demo: DemoConfig, tmp_path: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update")
    for flag in (*flags, "disable-sync", f"user-data-dir={tmp_path / 'browser'}", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        browser.get(DemoFolder(Path(demo.out)).report.absolute().as_uri())
        grid = browser.find_element(By.CLASS_NAME, "stages")
        pictures = grid.find_elements(By.TAG_NAME, "img")
        assert len(pictures) == len(COLUMNS) * NUM_PROMPTS
        assert all(browser.execute_script("return arguments[0].naturalWidth", one) == 64 for one in pictures)
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 1280
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []  # type: ignore[no-untyped-call]
    finally:
        browser.quit()
