"""Every command in a guide parses, to the last option and value; every guide can be found from the list of its folder."""

import re
from pathlib import Path
from typing import Any

import pytest

from captioner.prompt_sets import load_prompts
from foundry import command_line
from tests.guides.pages import FOLDERS, PAGES, ROOT, blocks, joined, our_commands
from tests.in_this_process import run_here

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that has what a checkout has."""
    for name in ("configs", "examples", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that commands would be called with, in place of calling them."""
    found: list[Any] = []

    def keep(_main: Any, parser: Any, config_class: Any, values: Any) -> int:
        found.append(command_line._configuration(parser, config_class, values))
        return 0

    monkeypatch.setattr(command_line, "_call", keep)
    return found


@each_page
def test_its_commands_parse(page: Path, here: Path, only_parsed: list[Any]) -> None:
    for block in blocks(page):
        if block.name:
            (here / block.name).parent.mkdir(parents=True, exist_ok=True)
            (here / block.name).write_text("\n".join(block.lines) + "\n", encoding="utf-8")
            if "prompts:" in block.lines:
                load_prompts(block.name)
    for block in blocks(page):
        if block.kind not in ("", "yaml"):
            continue
        for line in joined(block.lines):
            for module, words in our_commands(line):
                before = len(only_parsed)
                run_here(module, *words)
                assert len(only_parsed) > before or "--help" in words, f"{page.name}: {line} was not parsed"


def test_the_check_sees_an_option_that_is_unknown_and_a_value_that_is_wrong(
    only_parsed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--run_dri", "x"], ["--num_workers", "many"], ["--stage", "pixels"]):
        with pytest.raises(AssertionError):
            run_here("trainer.fit", "--stage", "pixel", *words)
    assert "run_dri" in capsys.readouterr().err
    assert only_parsed == []


def test_commands_are_found_within_a_line_of_the_shell() -> None:
    assert list(our_commands("t2i query runs \"SELECT 'a;b' | t2i fit\" --format csv > a.csv")) == [
        ("dataset_builder.query", ["runs", "SELECT 'a;b' | t2i fit", "--format", "csv"])
    ]
    assert list(our_commands("ray job submit --working-dir . -- python -m captioner.run --out a")) == [
        ("captioner.run", ["--out", "a"])
    ]
    assert list(our_commands("python -m pip install t2i-foundry")) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_page_is_in_the_list_of_its_folder(folder: str) -> None:
    index = ROOT / "docs" / folder / "index.md"
    linked = set(re.findall(r"\]\(([\w-]+\.md)", index.read_text(encoding="utf-8")))
    assert linked == {path.name for path in index.parent.glob("*.md")} - {index.name}


def test_most_pages_show_commands() -> None:
    lines = {page: [line for block in blocks(page) if not block.kind for line in joined(block.lines)] for page in PAGES}
    num_commands = {page: sum(1 for line in shown for _ in our_commands(line)) for page, shown in lines.items()}
    assert sum(num_commands.values()) > 100
    assert {page.name for page, number in num_commands.items() if not number} <= {
        "index.md",
        "notebooks.md",
    }  # which shows Python
