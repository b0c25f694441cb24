"""The experiments of the recipe: for each one a question, the arms that answer it, and what is changed for all of them.

Arms are settings of trainer.fit in which they differ from `base`; base is benchmarks/recipes/experiments.yaml with the changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Name = Literal["T1", "T2", "T3", "T4", "T5", "T6", "T7"]
World = Literal["captions", "teacher", "structured"]
Settings = Mapping[str, Any]
NOTHING: Settings = MappingProxyType({})
RATES = {"1e-3": 1e-3, "3e-3": 3e-3, "1e-2": 1e-2}
BASE_RATE = "3e-3"
PROSE, STRUCTURED, COMPACT = "structured_prose", "structured", "compact"
"""Names of the caption variants of structured_world.py: about 70, 300 and 76 tokens of a scene."""
_WIDTHS = {128: 2, 256: 4, 384: 6}
"""Heads by width: 64 channels each."""
_BASE_WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A comparison by trainer.compare."""

    title: str
    question: str
    """Question, and description of base."""
    arms: Mapping[str, Settings]
    """Settings of trainer.fit by the arm's name."""
    base: Settings = field(default_factory=lambda: NOTHING)
    """Settings of trainer.compare that replace those of the file."""
    world: World = "captions"
    """Features: of dense captions, with what a teacher sees, or of true structured captions."""


def _optimisers() -> dict[str, Settings]:
    """AdamW, and Muon with matrices split and fused, at each rate; base is AdamW at its rate."""
    kinds: dict[str, dict[str, Any]] = {
        "adamw": {},
        "muon": {"name": "muon"},
        "muon_fused": {"name": "muon", "muon_split": False},
    }
    arms = {f"{kind}_{rate}": {"optim": {**own, "lr": lr}} for kind, own in kinds.items() for rate, lr in RATES.items()}
    return {name: settings for name, settings in arms.items() if name != f"adamw_{BASE_RATE}"}


def _widths() -> dict[str, Settings]:
    """AdamW and Muon at each rate and width; base is AdamW at its rate and width."""
    kinds: dict[str, dict[str, Any]] = {"adamw": {}, "muon": {"name": "muon"}}
    arms = {
        f"width{width}_{kind}_{rate}": {"network": {"width": width, "num_heads": heads}, "optim": {**own, "lr": lr}}
        for width, heads in _WIDTHS.items()
        for kind, own in kinds.items()
        for rate, lr in RATES.items()
    }
    return {name: settings for name, settings in arms.items() if name != f"width{_BASE_WIDTH}_adamw_{BASE_RATE}"}


def _captions(*, prose: float = 0.0, compact: float = 0.0, structured: float = 0.0) -> Settings:
    return {"data": {"caption_weights": {PROSE: prose, COMPACT: compact, STRUCTURED: structured}}}


_SRA2, _LAYERSYNC, _DISPERSIVE = ({name: {"enabled": True}} for name in ("sra2", "layersync", "dispersive"))
COMPARISONS: Mapping[Name, Experiment] = {
    "T1": Experiment(
        title="Muon against AdamW",
        question="Does Muon learn faster than AdamW, each at its best of three rates, and do fused matrices have to be split? "
        f"Base is AdamW at {BASE_RATE}.",
        arms=_optimisers(),
    ),
    "T2": Experiment(
        title="Losses without a teacher",
        question="What are SRA 2, LayerSync and the dispersive loss worth, alone and together? Base has none of them.",
        arms={
            "sra2": _SRA2,
            "layersync": _LAYERSYNC,
            "dispersive": _DISPERSIVE,
            "all_three": {**_SRA2, **_LAYERSYNC, **_DISPERSIVE},
        },
    ),
    "T3": Experiment(
        title="REPA by the captioner's own tower",
        question="Does alignment with the tower of llava-mini help, always or for the first 30 %? Base is without. What the "
        "tower sees is stored, so that its own operations are not among those that arms have alike.",
        arms={"repa": {"repa": {"teacher": "stored"}}, "repa_first_30": {"repa": {"teacher": "stored", "stop_share": 0.3}}},
        world="teacher",
    ),
    "T4": Experiment(
        title="Text adapter",
        question="Do one or two blocks on the captions help with prompts as a person writes them? Base has none.",
        arms={f"adapter{blocks}": {"network": {"text_adapter_blocks": blocks}} for blocks in (1, 2)},
    ),
    "T6": Experiment(
        title="Prose against structured captions",
        question="Does a network learn more of prose, of JSON of as many tokens with the same content (compact), or of both in "
        "turn, and what does JSON with all keys cost, which has four times the tokens? All by equal operations. Base reads "
        "prose; prompts are as a person writes them, which none of the arms has read.",
        arms={
            "compact": _captions(compact=1.0),
            "mixed": _captions(prose=0.5, compact=0.5),
            "whole_json": _captions(structured=1.0),
        },
        base=_captions(prose=1.0),
        world="structured",
    ),
    "T7": Experiment(
        title="Learning rate over width",
        question="Does the best rate move with the width? Under AdamW theory (muP) has it fall as 1 / width; Muon scales each "
        f"matrix by its sides. All see the same images. Base is AdamW at {BASE_RATE} and width {_BASE_WIDTH}.",
        arms=_widths(),
        base={"equal": "images"},
    ),
}
"""All but T5, whose networks are trained already."""
QUICK: Settings = {
    "network": {"width": 64, "depth": 5, "num_heads": 2},
    "ladder": [{"resolution": 64, "images": 128, "batch_size": 64}],
    "watch": {"every_steps": 1, "validation_images": 16, "sample_every_images": 0},
    "validations": 2,
    "evaluation": {"openmoji": {"num_kinds": 16, "single_objects": True, "prompts_per_category": 1}},
}
"""Settings that let every experiment be tried in minutes: they measure nothing."""
