"""The site is built strictly, has the whole repository's pages, and shows what GitHub shows."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import markdown
import pytest

from website import hooks

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = re.compile(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']?https?://""")


def _page(uri: str) -> Any:
    return SimpleNamespace(file=SimpleNamespace(src_uri=uri, dest_uri=uri.replace(".md", ".html")))


@pytest.mark.parametrize(
    ("source", "link", "shown"),
    [
        ("index.md", "docs/training.md#features", "training.md#features"),
        ("index.md", "docs/stages.png", "stages.png"),
        ("index.md", "CONTRIBUTING.md", "contributing.md"),
        ("index.md", "configs", "code/configs/index.md"),
        ("index.md", "NOTICE", "code/NOTICE.md"),
        ("training.md", "limits.md", "limits.md"),
        ("training.md", "../model/dit.py", "code/model/dit.py.md"),
        ("reference/files.md", "../captioning.md#what-it-writes", "../captioning.md#what-it-writes"),
        ("reference/files.md", "../../README.md", "../index.md"),
        ("contributing.md", "docs/architecture.md", "architecture.md"),
        ("training.md", "#features", "#features"),
        ("training.md", "https://example.com/a.md", "https://example.com/a.md"),
    ],
)
def test_a_link_leads_to_where_the_site_has_its_target(source: str, link: str, shown: str) -> None:
    found = hooks.on_page_markdown(f"See [it]({link}).\n\n```\n[it]({link})\n```\n", page=_page(source))
    assert found == f"See [it]({shown}).\n\n```\n[it]({link})\n```\n"


def test_lists_and_tables_may_follow_a_paragraph_without_a_blank_line() -> None:
    text = "All of:\n- a\n- b\n  more\n1. c\nAs a table:\n| a |\n|---|\n\n```\nx\n- y\n```\n"
    found = hooks.on_page_markdown(text, page=_page("a.md"))
    assert found == "All of:\n\n- a\n- b\n  more\n1. c\nAs a table:\n\n| a |\n|---|\n\n```\nx\n- y\n```\n"


def test_nav_takes_folders_in_the_order_of_their_index_and_pages_that_it_does_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a.md": "", "b.md": "", "named.md": "", "guide/index.md": "[2](two.md), [1](one.md#top)", "guide/one.md": ""}
    for name, text in (files | {"guide/two.md": "", "guide/new.md": ""}).items():
        (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / name).write_text(text)
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    config: Any = SimpleNamespace(nav=["named.md", {"Guides": ["guide/", {"More": "*"}]}])
    hooks.on_config(config)
    guides = ["guide/index.md", "guide/two.md", "guide/one.md", "guide/new.md"]
    assert config.nav == ["named.md", {"Guides": [*guides, {"More": ["a.md", "b.md"]}]}]


def test_only_a_page_with_a_diagram_gets_the_script() -> None:
    page = _page("reference/files.md")
    assert hooks.on_post_page("<head></head><p>", page=page) == "<head></head><p>"
    found = hooks.on_post_page('<head></head><pre class="mermaid">', page=page)
    assert found == '<head><script src="../mermaid.tiny.js"></script></head><pre class="mermaid">'


def test_search_needs_no_other_site() -> None:
    output = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
    assert hooks.on_post_page(output, page=_page("reference/files.md")) == '<script src="../iframe-worker.js"></script>'
    assert hooks.on_post_template(output) == '<script src="iframe-worker.js"></script>'


def test_the_copy_button_of_a_console_block_has_the_commands_alone() -> None:
    commands = '$ python -m a.b --out "x" \\\n    --more <n>\nprinted\n\n$ t2i status\nok'
    text = f"```\n{commands}\n```\n\n```\nno command\n```\n\n```yaml\na: $ 1\n```"
    source = hooks.outside_fences(text, lambda part: part)
    assert source == text.replace("```\n$ python", "```console\n$ python", 1)
    page = markdown.markdown(source, extensions=["pymdownx.superfences", "pymdownx.highlight"])
    copied = re.findall(r'data-copy="([^"]*)"', hooks.on_page_content(page))
    assert [html.unescape(one) for one in copied] == ['python -m a.b --out "x" \\\n    --more <n>\nt2i status']


def test_options_in_tables_stay_in_one_piece() -> None:
    page = "<p><code>--a.b c</code></p><table><tr><td>x <code>--data.skip s.parquet</code></td></tr></table>"
    word = '<span class="word">{}</span>'.format
    expected = page.replace("--data.skip s.parquet", f"{word('--data.skip')} {word('s.parquet')}")
    assert hooks.on_page_content(page) == expected
    long = f"<td><code>{'x' * 40}</code></td>"
    assert hooks.on_page_content(long) == long, "a long word may break"


def test_a_notebook_is_shown_with_its_outputs() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [{"text": ["1\n"]}, {"data": {"image/png": "AA\nBB"}}]},
        {"cell_type": "code", "source": ["2"], "outputs": [{"data": {"text/plain": ["2"]}}]},
    ]
    assert hooks.notebook_page(json.dumps({"cells": cells})) == (
        "## Title\ntext\n\n~~~~~~ python\nprint(1)\n~~~~~~\n\n~~~~~~ text\n1\n~~~~~~\n\n"
        "![output](data:image/png;base64,AABB)\n\n~~~~~~ python\n2\n~~~~~~\n\n~~~~~~ text\n2\n~~~~~~"
    )


def test_the_site_is_built_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "Documentation built" in built.stderr, "a build that is quiet counts no warning"
    assert "mkdocs build --strict $(ARGS)" in (ROOT / "Makefile").read_text(encoding="utf-8")
    pages = {path.relative_to(tmp_path / "site").as_posix(): path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    assert {name: found for name, text in pages.items() if (found := ELSEWHERE.findall(text))} == {}
    assert 'src="mermaid.tiny.js"' in pages["index.html"] and (tmp_path / "site" / "mermaid.tiny.js").is_file()
    assert "guidance_scale" in pages["reference/python.html"], "signatures of Python"
    assert "code/configs/paper_64xh100.yaml.html" in pages
    index = (tmp_path / "site" / "search" / "search_index.js").read_text()
    assert "start/concepts.html#concept-density" in index
