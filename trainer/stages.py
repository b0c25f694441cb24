"""The three stages of the paper, each a function that returns its whole configuration, and what departs from the paper.

    stage       px     images of the paper  steps  batch     lr     V100 GPU-days
    pixel       256    1M ImageNet          300K   128 x 8   2e-5    88
    alignment   256    10M SAM              150K   178 x 64  2e-5   672
    aesthetic   256    14M HQ                90K   178 x 64  2e-5   416
    aesthetic   512    14M HQ               100K    40 x 64  2e-5   320
    aesthetic   1024   14M HQ                16K    12 x 32  2e-5   160

Source: PixArt-alpha (arXiv 2310.00426 v3), Table 4; AdamW's settings, warm-up, clipping, EMA and caption dropout from the
authors' code, as noted at each field of trainer/config/.
Deviation: autocast to bfloat16 where the hardware has it, in place of fp16 with float32 attention; no weight decay of norms,
biases, embeddings and tables; the learning rate is the table's, without the square-root scaling by batch size of the public
configurations; no horizontal flips.
"""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from foundry.errors import UserError
from trainer.config.ladder import Rung
from trainer.config.optim import EmaConfig
from trainer.config.train import TrainConfig


def pixel() -> TrainConfig:
    """Pixel dependency: a class-conditional DiT-XL/2 learns what images look like.

    Deviation: the paper downloads DiT's ImageNet checkpoint or trains one; with `--init_from` an imported one is trained on.
    """
    return TrainConfig(
        stage="pixel",
        conditioning="class",
        ladder=(Rung(resolution=256, images=300_000 * 128 * 8, batch_size=128 * 8),),
        init_from="scratch",
        ema=EmaConfig(half_life_images=7_100_000),  # 0.9999 in a step of 1024
    )


def alignment() -> TrainConfig:
    """Text-image alignment: starts from the class-conditional DiT by re-parameterisation, reads dense captions."""
    return TrainConfig(
        stage="alignment",
        follows="pixel",
        ladder=(Rung(resolution=256, images=150_000 * 178 * 64, batch_size=178 * 64),),
    )


def aesthetic() -> TrainConfig:
    """High aesthetics: the aligned network on beautiful images, at rising resolutions, in aspect buckets.

    Deviation: positions are interpolated at each rung, as the paper says; the published 512 px weights have scale 1, which is
    `position_scale: 1` of that rung. Moments of the optimiser are kept from rung to rung, EMA and warm-up begin again.
    """
    return TrainConfig(
        stage="aesthetic",
        follows="alignment",
        ladder=(
            Rung(resolution=256, images=90_000 * 178 * 64, batch_size=178 * 64),
            Rung(resolution=512, images=100_000 * 40 * 64, batch_size=40 * 64),
            Rung(resolution=1024, images=16_000 * 12 * 32, batch_size=12 * 32),
        ),
    )


STAGES: Mapping[str, Callable[[], TrainConfig]] = {"pixel": pixel, "alignment": alignment, "aesthetic": aesthetic}
"""In the order of training."""
SECTION = "stages"


def choose_stage(arguments: Sequence[str], stages: Collection[str], *, default: str | None = None) -> list[str]:
    """The arguments with each file that has a `stages` section replaced by what it says of the stage that they name.

    Flags still go over files; `default` is the stage where neither names one. Raises UserError for a section that names no
    stage.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--stage")
    chosen = early.parse_known_args(list(arguments))[0].stage
    words: list[str] = []
    for word in arguments:
        is_file = bool(words) and words[-1] == "--config"
        prefix, path = ("", word) if is_file else ("--config=", word.removeprefix("--config="))
        sections = _sections(path) if is_file or word.startswith("--config=") else None
        words.append(word if sections is None else prefix + _of_stage(path, sections, chosen, stages, default=default))
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


def _of_stage(
    path: str, content: Mapping[str, Any], chosen: str | None, stages: Collection[str], *, default: str | None
) -> str:
    sections = content[SECTION]
    if unknown := sorted(set(sections) - set(stages)):
        raise UserError(f"{path}: {SECTION}: expected {', '.join(stages)}, found {', '.join(map(str, unknown))}")
    common = {name: value for name, value in content.items() if name != SECTION}
    return yaml.safe_dump(_merge(common, sections.get(chosen or common.get("stage") or default) or {}))


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, key by key at all depths; where both have one that is no mapping, `above` counts."""
    both = {name for name in below if isinstance(below[name], dict) and isinstance(above.get(name), dict)}
    return {**below, **above, **{name: _merge(below[name], above[name]) for name in both}}
