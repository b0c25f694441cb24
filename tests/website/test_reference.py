"""Pages that are generated from code are up to date, and those beside them leave out nothing that the code has."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from foundry.command_line import options_of
from foundry.commands import COMMANDS
from website.options import FOLDER, option_pages
from website.reference import write_reference

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("foundry", "captioner", "dataset_builder", "trainer", "model", "publisher", "studio")
NO_VARIABLES = {"FIRST_COMPLETED", "AF_UNIX"}
"""Constants of libraries that look like names of environment variables."""


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return option_pages()


@cache
def _constants() -> list[str]:
    """All texts in the code of the packages, the parts of f-strings each by itself."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    nodes = (node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_the_pages_of_options_are_up_to_date(pages: dict[str, str]) -> None:
    written = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / FOLDER).glob("*.md")}
    assert sorted(written) == sorted(pages), "run `make reference`"
    assert [name for name, text in pages.items() if written[name] != text] == [], "run `make reference`"


def test_a_page_has_each_option_once_with_its_text(pages: dict[str, str]) -> None:
    for name, command in COMMANDS.items():
        rows = re.findall(r"^\| `--([\w.]+)` \| (.+?) \| (.*?) \| (.*) \|$", pages[f"{FOLDER}/{name}.md"], re.MULTILINE)
        assert sorted(row[0] for row in rows) == sorted(options_of(command.module).hints), name
        assert [option for option, kind, _, text in rows if not kind or not text] == [], name


def test_a_page_shows_types_defaults_and_what_presets_change(pages: dict[str, str]) -> None:
    fit, caption, compare = (pages[f"{FOLDER}/{name}.md"] for name in ("fit", "caption", "compare-techniques"))
    assert "| `--conditioning` | `text` or `class` | `text`, `class` (stage pixel) |" in fit
    assert "| `--ladder` | list of [Rung](#rung) |" in fit and "### Rung" in fit and "| `batch_size` | integer |" in fit
    assert "| `--optim.betas` | 2 values: number, number | `[0.9, 0.999]` |" in fit
    assert "run_dir/&lt;stage>" in fit, "what would be a tag is shown"
    assert "| `--out` | text | **required** |" in caption and "t2i-foundry[caption]" in caption
    assert "| `--try` |" in compare, "an option whose name Python forbids"


def test_pages_of_commands_that_are_gone_are_removed(tmp_path: Path) -> None:
    gone = tmp_path / FOLDER / "gone.md"
    gone.parent.mkdir(parents=True)
    gone.write_text("# t2i gone")
    write_reference(tmp_path)
    assert not gone.exists() and (tmp_path / FOLDER / "fit.md").is_file()
    assert (tmp_path / "docs/reference/data_dictionary.md").is_file()


def test_the_page_of_jobs_links_to_every_command() -> None:
    page = (ROOT / "docs/start/commands.md").read_text(encoding="utf-8")
    assert {f"[`t2i {name}`](../reference/commands/{name}.md)" for name in COMMANDS} <= set(
        re.findall(r"\[`t2i [\w-]+`\]\([^)]+\)", page)
    )


def test_every_environment_variable_of_the_code_is_on_the_page() -> None:
    page = (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
    used = {text for text in _constants() if re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", text)} - NO_VARIABLES
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            used |= set(re.findall(r"""os\.environ(?:\.\w+\(|\[)["'](\w+)["']""", path.read_text(encoding="utf-8")))
    assert {"T2I_AUTO_DTYPE", "TMPDIR", "CXX", "WORLD_SIZE"} <= used
    assert sorted(name for name in used if f"`{name}`" not in page) == []


def test_messages_that_troubleshooting_explains_are_in_the_code() -> None:
    page = (ROOT / "docs/start/troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(headings) > 10
    code = "\n".join(_constants())
    assert [part for heading in headings for part in heading.split("…") if part not in code] == []
