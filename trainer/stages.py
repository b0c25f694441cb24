"""The stages of each recipe, a function each that returns its whole configuration: the paper's, and a cheaper one.

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

The recipe cheap has two stages. It departs from the paper where later work trains for less, as noted at each setting; its
lengths are ours. With DiT-XL/2 it takes a ninth of the operations of the table.

    stage       px     images  steps  batch  techniques
    alignment   256      205M   200K   1024  flow, text adapter, Muon, REPA for the first 30 %
    aesthetic   512       51M    50K   1024  flow, text adapter, Muon, TREAD for the first 85 %
    aesthetic   1024       5M    10K    512  flow, text adapter, Muon

After the stages of either recipe comes few_steps, which distils the network (trainer/training/techniques/few_steps.py): with
full weights, or as a LoRA.

It wants long captions, 300 tokens of them, and latents of 16 channels or 32 pixels each, which are choices of the features.
"""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from foundry.errors import UserError
from foundry.settings.yaml_text import load_yaml
from trainer.config.data import DataConfig
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig, ObjectiveConfig
from trainer.config.optim import EmaConfig, OptimConfig
from trainer.config.routing import RoutingConfig
from trainer.config.techniques import STORED, FewStepsConfig, RepaConfig
from trainer.config.train import CONFIG_FILE, PAPER, RecipeName, TrainConfig


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


# One block on the captions. Source: i1 (arXiv 2606.11289), 1.9 points of PRISM over the MLP alone, in a network like this one.
_NETWORK = NetworkConfig(text_adapter_blocks=1)
# Velocity, logit-normal times. Source: Stable Diffusion 3 (arXiv 2403.03206), sections 3.1 and 5.3.2: the shift is the root of
# the ratio of pixels. i1, PRX and Iris have 1 to 2 at 256 px, 1 to 3 at 512 and 3.3 to 4 at 1024.
_OBJECTIVE = ObjectiveConfig(name="rectified_flow", shifts={256: 1.0, 512: 2.0, 1024: 4.0})
# Muon for the matrices of blocks, each part of a fused one by itself. Source: Jordan et al. 2024; PRX (Photoroom 2026, part 2):
# FID 15.55 for 18.20. Rate, decay rates, no weight decay, warm-up and clipping: i1 and PRX.
_OPTIM = OptimConfig(name="muon", lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, warmup_steps=2000, gradient_clip=1.0)
_EMA = EmaConfig(half_life_images=7_100_000)  # 0.9999 in a step of 1024. Source: i1, PRX.


def cheap_alignment() -> TrainConfig:
    """Pixels and captions at once, from scratch: networks that read captions from the first step need no pixel stage.

    Source: Stable Diffusion 3 (arXiv 2403.03206), Nitro-T, PRX and i1 have no class-conditional stage. REPA (arXiv 2410.06940)
    stops after 30 % and at the first resolution: later it holds a network back (PRX, Nitro-E, Iris: 15 to 40 %).
    Deviation: what the teacher sees is stored with the latents, since decoding them for it takes more than the teacher.
    """
    return TrainConfig(
        stage="alignment",
        recipe="cheap",
        ladder=(Rung(resolution=256, images=200_000 * 1024, batch_size=1024),),
        init_from="scratch",
        network=_NETWORK,
        objective=_OBJECTIVE,
        optim=_OPTIM,
        ema=_EMA,
        repa=RepaConfig(teacher=STORED, stop_share=0.3),
    )


def cheap_aesthetic() -> TrainConfig:
    """The best images at 512 and 1024 px. TREAD (arXiv 2501.04765) at 1024 tokens, off for the last steps and at the last rung.

    Source: PRX, part 3, trains 512 and then 1024 px alike; at 256 tokens TREAD loses (part 2), so that 256 px is without it.
    Deviation: a shorter warm-up, for a network that is trained and a last rung of 10K steps; where 1024 px is left out, 512 px
    has TREAD all the same, as the only rung.
    """
    return TrainConfig(
        stage="aesthetic",
        recipe="cheap",
        follows="alignment",
        ladder=(
            Rung(resolution=512, images=50_000 * 1024, batch_size=1024),
            Rung(resolution=1024, images=10_000 * 512, batch_size=512),
        ),
        network=_NETWORK,
        objective=_OBJECTIVE,
        optim=replace(_OPTIM, warmup_steps=500),
        ema=_EMA,
        routing=RoutingConfig(kind="tread"),
    )


def few_steps() -> TrainConfig:
    """Few steps: the network of the stage aesthetic learns to draw in four, at 512 px, from itself with guidance.

    Source: LCM (arXiv 2310.04378) and PixArt-delta (2401.05252) for the method, consistency distillation.
    Deviation: lengths and rates are ours, and were not tried at this size.
    """
    return TrainConfig(
        stage="few_steps",
        follows="aesthetic",
        ladder=(Rung(resolution=512, images=4_000 * 256, batch_size=256),),
        optim=OptimConfig(lr=1e-5, warmup_steps=200, weight_decay=0.0, gradient_clip=1.0),
        ema=EmaConfig(half_life_images=20_000),
        data=DataConfig(caption_dropout=0.0),
        few_steps=FewStepsConfig(enabled=True),
    )


def cheap_few_steps() -> TrainConfig:
    """The same for the recipe cheap, at 1024 px."""
    ladder = (Rung(resolution=1024, images=4_000 * 128, batch_size=128),)
    return replace(few_steps(), recipe="cheap", ladder=ladder, network=_NETWORK, objective=_OBJECTIVE)


Stages = Mapping[str, Callable[[], TrainConfig]]
"""Stages in the order of training."""
STAGES: Stages = {"pixel": pixel, "alignment": alignment, "aesthetic": aesthetic}
"""The paper's."""
RECIPES: Mapping[RecipeName, Stages] = {
    PAPER: STAGES,
    "cheap": {"alignment": cheap_alignment, "aesthetic": cheap_aesthetic},
}
AFTER: Mapping[RecipeName, Stages] = {PAPER: {"few_steps": few_steps}, "cheap": {"few_steps": cheap_few_steps}}
"""Stages that come after those of a recipe, and are not in `all`."""
SECTION = "stages"


def offered(stages: Stages) -> Stages:
    """The stages of a recipe, and those that come after them."""
    recipe = next(name for name, own in RECIPES.items() if own is stages)
    return {**stages, **AFTER[recipe]}


def stages_of(arguments: Sequence[str]) -> Stages:
    """The stages of the recipe that the arguments name, else their files, else the runs in their run_dir; else the paper's.

    Raises UserError for a stage that the recipe has not. The parser refuses the name of a recipe that there is not.
    """
    stage = named_by(arguments, "stage")
    recipe = named_by(arguments, "recipe") or recipe_of_runs(named_by(arguments, "run_dir") or TrainConfig.run_dir, stage)
    stages = next((stages for name, stages in RECIPES.items() if name == recipe), STAGES)
    if stage in STAGES and stage not in stages:
        raise UserError(
            f"the recipe {recipe} has no stage {stage}, only {', '.join(stages)}: name one of these, or another recipe",
            setting="stage",
        )
    return stages


def recorded_recipe(run: str) -> str | None:
    """The recipe in the config.yaml of a run's folder; None if there is none."""
    recipe = _content(f"{run.removeprefix('file://')}/{CONFIG_FILE}").get("recipe")
    return None if recipe is None else str(recipe)


def recipe_of_runs(run_dir: str, stage: str | None) -> str | None:
    """The recipe of the stage's run, else of another stage's: stages follow each other in one folder."""
    recipes = (recorded_recipe(f"{run_dir}/{name}") for name in (stage, *STAGES) if name is not None)
    return next((recipe for recipe in recipes if recipe is not None), None)


def named_by(arguments: Sequence[str], name: str) -> str | None:
    """The value of an option, else that of the last file of --config that has it."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config", nargs="?", action="append", default=[])
    early.add_argument(f"--{name}", nargs="?", dest="value")
    found = early.parse_known_args(list(arguments))[0]
    values = (_content(path).get(name) for path in reversed(found.config) if path is not None)
    return found.value or next((str(value) for value in values if value is not None), None)


def choose_stage(arguments: Sequence[str], stages: Collection[str], *, default: str | None = None) -> list[str]:
    """The arguments with each file that has a `stages` section replaced by what it says of the stage that they name.

    Flags still go over files; `default` is the stage where neither names one. Raises UserError for a section that names no
    stage.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--stage", nargs="?")
    chosen = early.parse_known_args(list(arguments))[0].stage
    words: list[str] = []
    for word in arguments:
        is_file = bool(words) and words[-1] == "--config"
        prefix, path = ("", word) if is_file else ("--config=", word.removeprefix("--config="))
        sections = _sections(path) if is_file or word.startswith("--config=") else None
        words.append(word if sections is None else prefix + _of_stage(path, sections, chosen, stages, default=default))
    return words


def _sections(path: str) -> dict[str, Any] | None:
    """The content of a file with a `stages` section; None for any other, of which the parser says what is wrong."""
    content = _content(path)
    return content if isinstance(content.get(SECTION), dict) else None


def _content(path: str) -> dict[str, Any]:
    """The settings of a file; none if it cannot be read or has something else."""
    try:
        content = load_yaml(Path(path).read_text(encoding="utf-8"))
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
