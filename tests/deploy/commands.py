"""Commands of this repository in the files of deploy/, with values in place of variables, and whether they parse."""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMMAND = re.compile(r"-m ((?:captioner|dataset_builder|trainer|model)\.\w+)([^|;&\n]*)")


def commands(text: str, values: Mapping[str, Any] = {}) -> list[tuple[str, list[str]]]:
    """(module, words after it) for each whole command; a \\ continues a line, … marks one that is not whole."""
    joined = re.sub(r"\\\n\s*(?:# *)?", "", text)
    filled = re.sub(r"\$\{?(\w+)\}?", lambda found: str(values.get(found[1], found[0])), joined)
    return [(module, shlex.split(rest)) for module, rest in COMMAND.findall(filled) if "…" not in rest]


def strings(value: Any) -> Iterator[str]:
    """All texts in a YAML document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def parses(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the command takes these words: it then prints its configuration, and does nothing."""
    monkeypatch.setattr(sys, "argv", [module, *words, "--print_config"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    return ended.value.code == 0
