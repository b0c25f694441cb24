"""Pages of docs/sql, docs/tutorials and docs/how-to: the commands, SQL and Python that they show, and what they say comes out.

In a block of code a line that begins with `$ ` is a command, and the lines below it are what it prints. A block `sql` is
asked of the folder that the last comment `<!-- ask: FOLDER -->` names, and the block below it is the answer; so it is with the
blocks `python` of a page, which are one program, while a block `py` is not run. In what is printed, a line `…` is any number of
lines, and `…` in a line any text. A block `yaml` or `python` that begins with `# NAME` is that file.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from foundry.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("sql", "tutorials", "how-to")
PAGES = sorted(path for folder in FOLDERS for path in (ROOT / "docs" / folder).glob("*.md"))
OURS = ("foundry", "captioner", "dataset_builder", "trainer", "model", "publisher", "studio", "examples", "benchmarks")
ANY = "…"
_ASK = re.compile(r"^<!-- ask: (\S+) -->$")
_FENCE = re.compile(r"^ *```(\w*)$")
_NAMED = re.compile(r"^# (\S+\.\w+)$")
_OUR_COMMAND = re.compile(r"(?:^|[$|;&:] *|-- )(?:t2i ([a-z][a-z-]*)|(?:\S*/)?python3? -m ([\w.]+))((?: [^|;&>]*)?)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code."""

    line: int
    """Line of the page, from 1."""
    kind: str
    """What is written behind the fence: sql, yaml, python, or nothing."""
    lines: tuple[str, ...]
    asked: str
    """The folder that SQL is asked of."""

    @property
    def name(self) -> str:
        """Name of the file that the block is; "" for none."""
        found = _NAMED.match(self.lines[0]) if self.lines else None
        return found[1] if found and self.kind in ("yaml", "python", "sql") else ""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A command, SQL or Python, and what the page says that it prints."""

    line: int
    kind: str
    """command, sql or python."""
    text: str
    output: tuple[str, ...]
    asked: str = ""
    """The folder that SQL is asked of."""


def blocks(page: Path) -> list[Block]:
    """All blocks of code of a page, in order."""
    found: list[Block] = []
    asked, kind, start = "", "", 0
    body: list[str] | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if body is not None and line.strip() == "```":
            found.append(Block(line=start, kind=kind, lines=tuple(body), asked=asked))
            body = None
        elif body is not None:
            body.append(line)
        elif fence:
            kind, start, body = fence[1], number, []
        elif comment := _ASK.match(line):
            asked = comment[1]
    assert body is None, f"{page.name}: the block of line {start} does not end"
    return found


def shown(page: Path) -> list[Shown]:
    """What a page shows, in order; without files of settings."""
    found: list[Shown] = []
    before: Block | None = None
    for block in blocks(page):
        if block.kind == "" and before is not None and before.kind in ("sql", "python") and not _commands_in(block):
            last = found.pop()
            found.append(Shown(line=last.line, kind=last.kind, text=last.text, output=block.lines, asked=last.asked))
        elif block.kind in ("sql", "python") and not block.name:
            found.append(Shown(line=block.line, kind=block.kind, text="\n".join(block.lines), output=(), asked=block.asked))
        elif block.kind == "":
            found += _commands_in(block)
        before = block
    return found


def _commands_in(block: Block) -> list[Shown]:
    """The commands of a block that begin with `$ `, each with the lines below it."""
    found: list[Shown] = []
    for line in joined(block.lines):
        if line.startswith("$ "):
            found.append(Shown(line=block.line, kind="command", text=line.removeprefix("$ "), output=()))
        elif found:
            last = found.pop()
            found.append(Shown(line=last.line, kind="command", text=last.text, output=(*last.output, line)))
    return found


def joined(lines: Sequence[str]) -> list[str]:
    """Lines of which one that ends in a backslash is one with the next."""
    return "\n".join(lines).replace("\\\n", " ").split("\n")


def our_commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """(module, words after it) of each command of this package in a line of the shell."""
    for name, module, rest in _OUR_COMMAND.findall(_without_quoted(text)):
        found = COMMANDS[name].module if name else module
        if found.split(".")[0] in OURS:
            yield found, shlex.split(_with_quoted(rest, text), comments=True)


_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")


def _without_quoted(text: str) -> str:
    """The line with each text in quotation marks as a number in them, since SQL has the signs of the shell."""
    numbers = iter(range(len(text)))
    return _QUOTED.sub(lambda _: f"'{next(numbers)}'", text)


def _with_quoted(part: str, text: str) -> str:
    quoted = _QUOTED.findall(text)
    return re.sub(r"'(\d+)'", lambda found: quoted[int(found[1])], part)


def differences(expected: Sequence[str], found: Sequence[str]) -> str:
    """The first line that is not as the page says, and what there is; "" where all is true."""
    pattern = "\n".join(".*?" if line.strip() == ANY else _line(line) for line in expected)
    text = "\n".join(line.rstrip() for line in found).strip("\n")
    if re.fullmatch(pattern.strip("\n"), text, re.DOTALL):
        return ""
    missing = [line for line in expected if line.strip() != ANY and not re.search(f"^{_line(line)}$", text, re.MULTILINE)]
    return f"the page says {missing[:2] or 'these lines in another order'}, there is:\n{text}"


def _line(line: str) -> str:
    return r"[^\n]*?".join(map(re.escape, line.rstrip().split(ANY)))
