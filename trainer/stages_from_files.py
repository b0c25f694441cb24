"""Configuration files that serve several stages: what stands under `stages: <stage>:` goes over the rest for that stage.

network: {width: 256}
stages:
  pixel: {ladder: [{resolution: 64, images: 100000, batch_size: 64}]}
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from foundry.errors import UserError

SECTION = "stages"


def choose_stage(arguments: Sequence[str], stages: Collection[str]) -> list[str]:
    """The arguments with each file that has a `stages` section replaced by what it says of the stage that they name.

    Flags still go over files. Raises UserError for a section that names no stage.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--stage")
    chosen = early.parse_known_args(list(arguments))[0].stage
    words: list[str] = []
    for word in arguments:
        is_file = bool(words) and words[-1] == "--config"
        prefix, path = ("", word) if is_file else ("--config=", word.removeprefix("--config="))
        sections = _sections(path) if is_file or word.startswith("--config=") else None
        words.append(word if sections is None else prefix + _of_stage(path, sections, chosen, stages))
    return words


def stage_named_by(path: str | None) -> str | None:
    """The `stage` that a file names, if it names one."""
    content = _content(path) if path is not None else {}
    return str(content["stage"]) if "stage" in content else None


def _sections(path: str) -> dict[str, Any] | None:
    """The content of a file with a `stages` section; None for any other, of which the parser says what is wrong."""
    content = _content(path)
    return content if isinstance(content.get(SECTION), dict) else None


def _content(path: str) -> dict[str, Any]:
    """The settings of a file; none where it cannot be read or has something else."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _of_stage(path: str, content: Mapping[str, Any], chosen: str | None, stages: Collection[str]) -> str:
    sections = content[SECTION]
    if unknown := sorted(set(sections) - set(stages)):
        raise UserError(f"{path}: {SECTION}: expected {', '.join(stages)}, found {', '.join(map(str, unknown))}")
    common = {name: value for name, value in content.items() if name != SECTION}
    return yaml.safe_dump(_merge(common, sections.get(chosen or common.get("stage")) or {}))


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, key by key at all depths; where both have one that is no mapping, `above` counts."""
    both = {name for name in below if isinstance(below[name], dict) and isinstance(above.get(name), dict)}
    return {**below, **above, **{name: _merge(below[name], above[name]) for name in both}}
