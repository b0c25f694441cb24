"""The trainings that are compared. Each is a folder, OUT/trainings/<arm>/<seed>/, and resumes where it was stopped.

Trainings of one seed see the same images in the same order, with the same noise and timesteps, and what is new in their
networks is drawn alike, but for per-block adaLN, which draws in another order: they are pairs.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.commands import run_module
from benchmarks.staged_config import MEASUREMENTS, RESOLUTION_PX, StagedTrainingConfig
from benchmarks.staged_world import features_folder

_ALL_IMAGES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train."""

    name: str
    """Name of its folder."""
    stage: Literal["pixel", "alignment"] = "alignment"
    module: str = "trainer.fit"
    """The command that trains it."""
    captions: str = "dense"
    """The caption variant that it reads, in training and validation."""
    start: Literal["scratch", "pixel", "copied"] = "scratch"
    """Start: from scratch, from the pixel stage of its seed by re-parameterisation, or with the matching weights of that."""
    makes_up_for_pixel: Literal["no", "operations", "images"] = "no"
    """Sees more images, since it does without the pixel stage: by as many operations as that takes, or by as many images."""

    def images(self, config: StagedTrainingConfig) -> int:
        """Images of the training, its pixel stage not counted; whole steps."""
        wanted = config.pixel_images if self.stage == "pixel" else config.images
        more = {"no": 0.0, "operations": config.pixel_image_cost, "images": 1.0}[self.makes_up_for_pixel]
        return math.ceil((wanted + more * config.pixel_images) / config.batch_size) * config.batch_size


PIXEL = Arm(name="pixel", stage="pixel")
SCRATCH = Arm(name="scratch")
ALT_TEXT = Arm(name="alt_text", captions="alt_text")
REPARAMETERISED = Arm(name="reparameterised", start="pixel")
COPIED = Arm(name="copied", start="copied")
SCRATCH_EQUAL_OPERATIONS = Arm(name="scratch_equal_operations", makes_up_for_pixel="operations")
SCRATCH_EQUAL_IMAGES = Arm(name="scratch_equal_images", makes_up_for_pixel="images")
PER_BLOCK = Arm(name="adaln_per_block", module="benchmarks.staged_adaln_fit")


def train(arm: Arm, seed: int, config: StagedTrainingConfig) -> Path:
    """Trains what is not trained yet, the pixel stage before it too; returns the run's folder. Raises UserError."""
    from trainer.monitoring.run_folder import newest_checkpoint

    run = _run_folder(arm, seed, config)
    images = arm.images(config)
    newest = newest_checkpoint(run)
    if newest is None or int(newest.name) < images:
        arguments = fit_arguments(arm, seed, config)  # trains the pixel stage first
        print(f"training {arm.name}, seed {seed}: {images} images; its log: {run / 'log.txt'}", flush=True)
        run_module(arm.module, *arguments)
    return run


def fit_arguments(arm: Arm, seed: int, config: StagedTrainingConfig) -> list[str]:
    """Arguments of the command that trains the arm; a pixel stage that it starts from is trained first."""
    images = arm.images(config)
    ladder = [{"resolution": RESOLUTION_PX, "images": images, "batch_size": config.batch_size}]
    settings = {
        "config": config.recipe,
        "stage": arm.stage,
        "features": features_folder(config),
        "run_dir": _run_folder(arm, seed, config).parent,
        "seed": seed,
        "ladder": json.dumps(ladder),
        "data.caption_weights": json.dumps({arm.captions: 1.0}),
        "watch.validate_every_images": max(1, images // MEASUREMENTS),
        "watch.validation_images": _ALL_IMAGES,
        "watch.sample_every_images": 0,
        "checkpoint.every_images": max(1, images // 4),
        "checkpoint.keep_last": 1,
        "init_from": _start(arm, seed, config),
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def _run_folder(arm: Arm, seed: int, config: StagedTrainingConfig) -> Path:
    return config.folder / "trainings" / arm.name / str(seed) / arm.stage


def _start(arm: Arm, seed: int, config: StagedTrainingConfig) -> str:
    """Value of --init_from."""
    if arm.start == "scratch":
        return "scratch"
    pixel = train(PIXEL, seed, config)
    if arm.start == "pixel":
        return str(pixel)
    copied = config.folder / "trainings" / "start_of_copied" / str(seed)
    if not copied.exists():
        write_copied(pixel, copied, features=features_folder(config, "alignment"), seed=seed)
    return str(copied)


def write_copied(pixel: Path, out: Path, *, features: Path, seed: int) -> list[str]:
    """A checkpoint of a text network as it starts, but for the tensors of the pixel stage with the same name and shape.

    What does not fit is the modulation, which has another form, and the classes. Returns the names of what was copied.
    """
    from dataclasses import replace

    import torch

    from model.dit_config import DiTConfig
    from model.formats.checkpoint import load_checkpoint, save_checkpoint
    from trainer.features.store import FeatureStore
    from trainer.monitoring.run_folder import newest_checkpoint
    from trainer.training.networks import new_network

    newest = newest_checkpoint(pixel)
    assert newest is not None, "the pixel stage was trained"
    source, pipeline = load_checkpoint(newest, dtype=torch.float32)
    info = FeatureStore.open(str(features)).info
    target = replace(
        source.config,
        conditioning="text",
        caption_width=info.caption_width,
        max_caption_tokens=info.max_caption_tokens,
        num_classes=DiTConfig.num_classes,
    )
    network = new_network(target, seed=seed)
    state = network.state_dict()
    fitting = [name for name, tensor in source.state_dict().items() if name in state and state[name].shape == tensor.shape]
    network.load_state_dict(state | {name: source.state_dict()[name] for name in fitting})
    assert info.text_encoder is not None
    save_checkpoint(out, network, replace(pipeline, text_encoder=info.text_encoder, caption_cleaning=info.caption_cleaning))
    return fitting


def validation_losses(run: Path) -> dict[int, float]:
    """Losses by images seen: of the EMA weights, at equal steps over the training, always of the same scenes and noise."""
    from trainer.monitoring.run_folder import read_metrics

    return {row["images_seen"]: row["loss"] for row in read_metrics(run) if row["kind"] == "validation"}


def last_loss(run: Path) -> float:
    """Loss at the end of the training."""
    losses = validation_losses(run)
    return losses[max(losses)]
