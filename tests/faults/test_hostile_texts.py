"""Hostile texts: whatever keys, paths, captions and metadata say, it is shown as text, and nothing obeys it."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.query import QueryConfig
from dataset_builder.query import main as query
from dataset_builder.report import ReportConfig
from dataset_builder.report import main as report
from dataset_builder.sql.dataset_files import open_stored
from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.reporting.lines import say
from foundry.storage.folder import Folder
from studio.captions.source import open_sources
from studio.captions.sql_box import SqlBox
from studio.html import failure, table
from tests.dataset_builder.small_run import SmallRun
from tests.faults.conftest import Tally

HOSTILE = {
    "script": "</script><script>alert(1)</script>",
    "handler": "<img src=x onerror=alert(1)> \" onmouseover='alert(2)' `x`",
    "style": "</style><style>*{background:url(http://127.0.0.1:9/)}</style><link rel=stylesheet href=http://127.0.0.1:9/>",
    "template": "${7*7} {{7*7}} {% raw %} <%= 7*7 %> #{7*7} %s %n {0.__class__}",
    "markdown": "```\n---\n# x\n[a](javascript:alert(1)) ![b](http://127.0.0.1:9/x.png) | --- |\n```",
    "SQL": "'; DROP TABLE captions; -- \" OR 1=1 /*",
    "formula": "=cmd|' /C calc'!A0",
    "formulas": "+1+1\t-2\r@SUM(1)",
    "terminal": "\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[8m\x9b31m\x08\x7f",
    "bidirectional": "a\u202egnp.exe\u2066\u2069\u200f",
    "invisible": "a\u200b\u200d\ufeff\u00ad\U000e0041",
    "lines": "a\nb\r\nc\u2028d\u2029e\x0bf\x0cg\x85h",
    "NUL": "a\0b",
    "long": "x" * 1_000_000,
    "YAML": "!!python/object/apply:os.system ['x'] &a *a : - ? # '",
    "JSON": '"}], "x": {"$ref": "\\u0000"',
}
HIDDEN = "\x1b\x07\x08\x9b\x7f\0\u202e\u2066\u2069\u200f"


@dataclass(frozen=True, kw_only=True)
class HostileRun(SmallRun):
    """A run whose texts are all one; of the keys as much of it as a name may be long."""

    text: str = ""

    def _hostile(self, row: dict[str, Any]) -> dict[str, Any]:
        text = self.text
        return row | {
            "alt_text": text,
            "class_label": text,
            "uri": f"/data/{text[:200]}.jpg",
            "metadata": json.dumps({text[:200]: text}),
        }

    def _image(self, key: str) -> dict[str, Any]:
        return self._hostile(super()._image(key))


def hostile_run(folder: Path, text: str) -> str:
    run = HostileRun(
        text=text, captions={"dense": f"An owl {text} and a tree.", "short": text}, carried={text[:200]: "VARCHAR"}
    )
    return replace(run, num_images=4, num_committed=2).write(Folder(str(folder / "run"))).url


_FENCED = re.compile(r"^(`{3,})[^`\n]*\n.*?^\1[ ]*$", re.MULTILINE | re.DOTALL)


class _Page(HTMLParser):
    """What a page would run or fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.wrong: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            address = name in ("src", "href", "action") and value and not value.startswith(("#", "data:image/", "/"))
            if name.startswith("on") or address:
                self.wrong.append(f"{tag} {name}={value!r}"[:200])


def check_page(page: str, plain: str) -> None:
    """Fails where a page has other tags than that of a plain text, handlers, or addresses."""
    found, expected = _Page(page), _Page(plain)
    assert not found.wrong and set(found.tags) == set(expected.tags), (found.wrong, set(found.tags) ^ set(expected.tags))


def asked(run: str, answer_format: Any, sql: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert query(QueryConfig(run=run, sql=sql, format=answer_format)) == 0
    return capsys.readouterr().out


_SAMPLE = ("script", "terminal", "lines")
_OTHERS = [pytest.param(name, marks=[pytest.mark.faults, pytest.mark.slow]) for name in HOSTILE if name not in _SAMPLE]


@pytest.mark.parametrize("name", [*_SAMPLE, *_OTHERS])
def test_a_text_is_a_text_everywhere(tmp_path: Path, name: str, tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    text = HOSTILE[name]
    csv.field_size_limit(10 << 20)
    run, plain = hostile_run(tmp_path / "hostile", text), hostile_run(tmp_path / "plain", "plain")
    pages = {}
    for source in (run, plain):
        assert report(ReportConfig(source=source, out=str(tmp_path / "report.html"))) == 0
        pages[source] = (tmp_path / "report.html").read_text()
        with open_sources([source], cache=tmp_path / "cache") as sources:
            said = SqlBox(sources, limit_s=30).ask(0, "SELECT * FROM captions JOIN images USING (key)")
            pages[source] += said or ""
    check_page(pages[run], pages[plain])
    capsys.readouterr()

    build_dataset(BuildConfig(captions=(run,), out=str(tmp_path / "dataset")))
    card = (tmp_path / "dataset" / "README.md").read_text()
    assert isinstance(yaml.safe_load(card.split("---\n")[1]), dict)
    assert not _Page(_FENCED.sub("", card)).tags, "outside of code, Markdown has tags of HTML"

    sql = "SELECT alt_text FROM images JOIN captions USING (key) WHERE prompt = 'short' ORDER BY key LIMIT 1"
    assert json.loads(asked(run, "json", sql, capsys))[0]["alt_text"] == text
    assert list(csv.reader(io.StringIO(asked(run, "csv", sql, capsys), newline="")))[1] == [text]
    assert not set(HIDDEN) & set(asked(run, "table", sql, capsys)), "the terminal would obey it"

    say(f"image {text}")
    assert run_command(QueryConfig, _refusing(text), prog="python -m x", example="", argv=["--run", "x"]) == 2
    printed = capsys.readouterr()
    assert not set(HIDDEN) & set(printed.out + printed.err) and printed.err.count("\n") == 1
    check_page(failure(text) + table([{text: text}], caption=text), failure("a") + table([{"a": "a"}], caption="a"))
    with open_stored(run) as database, pytest.raises(UserError):
        database.fetch(f"SELECT * FROM {text[:1000]}")
    tally("texts", 1)


def _refusing(text: str) -> Callable[[QueryConfig], int]:
    def main(_config: QueryConfig) -> int:
        raise UserError(f"expected an image, found {text}")

    return main
