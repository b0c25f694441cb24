"""The first look: a page of captions, pictures and an answer that shows any text as it is, and the whole way to it."""

import re
import shlex
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataset_builder.reports.page import Picture, Table
from examples.openmoji.demo_steps import LOG
from examples.openmoji.first_look import PROMPTS, FirstLookConfig, first_steps, main
from examples.openmoji.first_page import Drawing, first_page
from examples.openmoji.scene_files import TRUTH_FILE
from examples.openmoji.truth import read_caption, read_truths
from model.generation.prompt_files import read_prompts
from tests.in_this_process import run_here, steps_here

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "docs/start/quickstart.md"
DONE_S = 30
"""Seconds for a look that has nothing left to do; a first one takes less than a minute on two idle cores."""
EVIL = "<script>alert('x')</script> & \"quotes\""


class _Page(HTMLParser):
    """Texts by the class or tag that they are in, and what the pictures are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cards: list[dict[str, str]] = []
        self.commands: list[str] = []
        self.cells: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.num_scripts = 0
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.num_scripts += tag == "script"
        if tag == "article":
            self.cards.append({})
        elif tag == "img":
            self.cards[-1]["alt"] = values["alt"]
            self.sources.append(values["src"])
        elif tag == "a":
            self.links.append(values["href"])
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["code"]:
            self.commands.append(data)
        elif self._open[-1:] == ["td"]:
            self.cells.append(data)
        elif "article" in self._open:
            self.cards[-1][self._open[-1]] = data


def test_the_page_shows_any_text_as_it_is() -> None:
    steps = first_steps(Path(EVIL))
    page = _Page(
        first_page(
            steps,
            scenes=[Picture(key=EVIL, jpeg_base64="AAAA", caption=EVIL, figures={})],
            answer=Table(columns=["alt text", "letters"], rows=[[EVIL, 7]]),
            drawings=[Drawing(prompt=EVIL, png=b"png")],
        )
    )
    assert page.cards == [{"alt": EVIL, "h3": EVIL, "p": EVIL}, {"alt": EVIL, "p": EVIL}]
    assert page.cells == [EVIL, "7"]
    assert page.commands[:4] == [step.command for step in steps.in_order]
    assert page.sources == ["data:image/jpeg;base64,AAAA", "data:image/png;base64,cG5n"]
    assert page.num_scripts == 1, "the report's own"


def test_every_command_names_its_model_and_is_told_where_to_write() -> None:
    steps = first_steps(Path("elsewhere"))
    assert all("elsewhere/" in step.command for step in steps.in_order)
    assert "--model mini" in steps.captions.command and "--checkpoint mini" in steps.drawings.command


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_first_look_is_true_and_a_second_one_finds_everything_done(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps run in this process; captions and drawings, on Ray's workers and in parallel to it, do not."""
    config = FirstLookConfig(out=str(tmp_path / "try"))
    with steps_here():
        assert main(config) == 0
    printed = capfd.readouterr().out.replace(f"{tmp_path}/", "")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        _check_quickstart(printed=printed)
    text = (tmp_path / "try" / "index.html").read_text()
    page = _Page(text)
    captions = {card["h3"]: card["p"] for card in page.cards if "h3" in card}
    assert {alt: Counter(read_caption(caption).counts) for alt, caption in captions.items()} == _true_kinds(tmp_path / "try")
    assert [card["p"] for card in page.cards if "h3" not in card] == list(read_prompts(PROMPTS))
    assert len(page.sources) == 10 and all(source.startswith("data:image/") for source in page.sources)
    assert all(link.startswith(("#", "https://openmoji.org", "https://creativecommons.org")) for link in page.links)
    assert len(page.cells) == 4 * 6
    for alt, *numbers in zip(*(page.cells[column::4] for column in range(4)), strict=True):
        assert numbers[:2] == [str(len(alt)), str(len(captions[alt]))] and int(numbers[2]) > 5
    started = time.perf_counter()
    assert main(config) == 0
    assert time.perf_counter() - started < DONE_S
    assert capfd.readouterr().out.count("-- done before") == 4
    assert (tmp_path / "try" / "index.html").read_text() == text
    assert len((tmp_path / "try" / LOG).read_text().splitlines()) == 8, "each step started and ended once"


def _check_quickstart(*, printed: str) -> None:
    """Its commands answer in the working directory what the page says; what `make try` does has been `printed`."""
    text = QUICKSTART.read_text(encoding="utf-8").replace("\\\n", "")
    blocks = re.findall(r"^```\n\$ (.+)\n((?:.+\n)+?)```$", text, re.MULTILINE)
    assert [command.split()[1] for command, _ in blocks] == ["try", "query", "query", "query", "status", "generate"]
    for command, output in blocks:
        if command.split()[1] in ("query", "status"):
            assert run_here("foundry", *shlex.split(command)[1:]).strip() == output.strip(), command
        else:
            shown = ".*".join(map(re.escape, output.strip().lstrip("…\n").split("…")))
            assert re.search(shown, printed), command


def _true_kinds(out: Path) -> dict[str, Counter[str]]:
    """How many of each kind are in the scenes, by alt text."""
    path = out / "scenes" / TRUTH_FILE
    rows = pq.read_table(path, columns=["key", "alt_text"]).to_pylist()
    truths = read_truths(str(path))
    return {row["alt_text"]: Counter(thing.kind for thing in truths[row["key"]].objects) for row in rows}
