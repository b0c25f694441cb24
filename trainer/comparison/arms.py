"""Arms of a comparison: `base`, techniques by name, files of settings, and combinations of them. Imports nothing heavy."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from foundry.command_line import read_settings
from foundry.errors import UserError
from foundry.settings.yaml_text import load_yaml
from trainer.comparison.config import CompareConfig
from trainer.config.ladder import Rung
from trainer.config.techniques import STORED
from trainer.config.train import TrainConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

BASE = "base"
"""The arm that the others are compared with."""


@dataclass(frozen=True)
class Switch:
    """A technique by name."""

    what: str
    """The technique, for readers."""
    settings: Mapping[str, Any]
    """Values of trainer.fit's settings, by dotted name."""


SWITCHES: Mapping[str, Switch] = {
    "repa": Switch("REPA with the teacher of `teacher`", {"repa.teacher": STORED}),
    "repa_stop": Switch("REPA for the first 30 % of the training", {"repa.teacher": STORED, "repa.stop_share": 0.3}),
    "sra2": Switch("SRA 2", {"sra2.enabled": True}),
    "layersync": Switch("LayerSync", {"layersync.enabled": True}),
    "dispersive": Switch("dispersive loss", {"dispersive.enabled": True}),
    "muon": Switch("Muon, fused matrices split", {"optim.name": "muon"}),
    "muon_fused": Switch("Muon, fused matrices whole", {"optim.name": "muon", "optim.muon_split": False}),
    "adamw8bit": Switch("AdamW with moments in 8 bits", {"optim.name": "adamw8bit"}),
    "adapter1": Switch("text adapter of one block", {"network.text_adapter_blocks": 1}),
    "adapter2": Switch("text adapter of two blocks", {"network.text_adapter_blocks": 2}),
    "qk_norm": Switch("queries and keys normalised", {"network.qk_norm": True}),
    "flow": Switch("rectified flow", {"objective.name": "rectified_flow", "objective.settings": {}}),
    "tread": Switch("TREAD", {"routing.kind": "tread"}),
    "masking": Switch("masking behind a patch mixer", {"routing.kind": "masking"}),
}
"""Techniques by the names that --try takes."""

_ALIASES = {"adapter": "adapter1", "sra": "sra2"}
_SHARED = (
    *("stage", "recipe", "conditioning", "follows", "ladder", "features", "run_dir", "num_workers", "device", "seed"),
    *("data.loader_threads", "data.prefetch", "checkpoint", "watch", "distributed"),
)
"""Settings that all arms share."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train."""

    name: str
    """The name in tables, and of its folder."""
    config: TrainConfig
    """All settings; seed, ladder and folders are those of base."""
    changes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Values of the settings that differ from base's, by dotted name."""


def make_arms(config: CompareConfig, rung: Rung) -> list[Arm]:
    """Base, then the arms in the order given. Raises UserError for unknown names, and for arms that are equal."""
    base = config.base(rung)
    arms = [Arm(name=BASE, config=base)]
    for word in config.arms:
        name, settings = _read_arm(word, config)
        changed = base
        try:
            for part in settings:
                changed = read_settings(TrainConfig, part, defaults=changed, prog="python -m trainer.fit")
        except UserError as error:
            raise UserError(f"{word}: {error}", setting="arms") from None
        arm = Arm(name=name, config=changed, changes=dict(differences(base, changed)))
        if known := [one.name for one in arms if one.name == name]:
            raise UserError(f"two arms are named {known[0]}: leave one out, or name its file otherwise", setting="arms")
        if equal := [one.name for one in arms if one.config == changed]:
            raise UserError(f"{name} trains as {equal[0]} does: leave it out, or change the settings of {BASE}", setting="arms")
        arms.append(arm)
    return arms


def _read_arm(word: str, config: CompareConfig) -> tuple[str, list[Mapping[str, Any]]]:
    """The name of an arm and the settings of its parts, nested."""
    parts = [_read_part(part, config) for part in ([word] if Path(word).is_file() else word.split("+"))]
    return "+".join(name for name, _ in parts), [settings for _, settings in parts]


def _read_part(word: str, config: CompareConfig) -> tuple[str, Mapping[str, Any]]:
    name = _ALIASES.get(word, word)
    if name in SWITCHES:
        settings = dict(SWITCHES[name].settings)
        if "repa.teacher" in settings:
            settings["repa.teacher"] = config.teacher
        return name, _nested(settings)
    path = Path(word)
    if path.suffix in (".yaml", ".yml"):
        return path.stem, _read_file(path)
    near = difflib.get_close_matches(word, SWITCHES, n=1)
    raise UserError(
        f"{word!r}: expected a technique ({', '.join(SWITCHES)}), or a file .yaml with settings of trainer.fit"
        f"{f'; did you mean {near[0]}?' if near else ''}",
        setting="arms",
    )


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        found = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}", setting="arms") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected settings of trainer.fit, as `optim: {{lr: 1.0e-3}}`", setting="arms")
    if shared := [name for name in _SHARED if _holds(found, name)]:
        raise UserError(f"{path}: all arms share {', '.join(shared)}: leave it out, and give it to all", setting="arms")
    return found


def _holds(settings: Mapping[str, Any], dotted: str) -> bool:
    first, _, rest = dotted.partition(".")
    if first not in settings or not rest:
        return first in settings
    return isinstance(settings[first], dict) and _holds(settings[first], rest)


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for name, value in dotted.items():
        *groups, last = name.split(".")
        into = nested
        for group in groups:
            into = into.setdefault(group, {})
        into[last] = value
    return nested


def differences(base: "DataclassInstance", other: "DataclassInstance", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings of `other` that are not those of `base`, by dotted name."""
    for one in fields(base):
        before, now = getattr(base, one.name), getattr(other, one.name)
        if is_dataclass(before) and not isinstance(before, type):
            yield from differences(before, now, f"{prefix}{one.name}.")
        elif before != now:
            yield f"{prefix}{one.name}", now
