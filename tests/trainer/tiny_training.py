"""Feature stores and settings that train in a second: random latents and captions, a DiT of a few thousand parameters."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from safetensors.torch import load_file, save_file

from foundry.storage.folder import Folder
from foundry.units.commits import commit_unit
from model.dit import Captions
from model.encoders.text_encoder import TextEncoder
from model.encoders.vae import LatentDistribution
from model.formats.checkpoint import PartConfig
from trainer.config.data import DataConfig
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig
from trainer.config.optim import EmaConfig, OptimConfig
from trainer.config.running import CheckpointConfig, WatchConfig
from trainer.config.train import TrainConfig
from trainer.features.info import FEATURES_FILE, NULL_CAPTION_FILE, NULL_CAPTION_NAME, FeaturesInfo
from trainer.features.plan import PlannedUnit
from trainer.features.tables import SampleFacts, captions_table, latents_table
from trainer.monitoring.run_folder import newest_checkpoint, read_metrics
from trainer.training.rung import RungTraining

ROOT = Path(__file__).resolve().parents[2]
CAPTION_WIDTH = 16
DOWNSAMPLING = 2
SHAPES = ((16, 16), (24, 8))
"""The buckets, in pixels."""


def write_store(
    features: Path,
    *,
    stage: str = "alignment",
    resolution: int = 16,
    num_units: int = 4,
    rows: int = 6,
    encoder: TextEncoder | None = None,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    **info: Any,
) -> Path:
    """FEATURES/<stage>/<resolution> with units of all buckets in turn; the last two are validation. `info` replaces its facts.

    The captions' features are random, or what `encoder` makes of their texts.
    """
    folder = Folder(str(features / stage / str(resolution)))
    classes = stage == "pixel"
    facts = FeaturesInfo(
        **{
            "stage": stage,
            "resolution": resolution,
            "buckets": tuple((height * resolution // 16, width * resolution // 16) for height, width in shapes),
            "latent_channels": 4,
            "downsampling": DOWNSAMPLING,
            "scaling_factor": 0.5,
            "shift_factor": 0.0,
            "vae": PartConfig(name="nowhere", fingerprint="v"),
            "text_encoder": None if classes else PartConfig(name="nowhere", fingerprint="t"),
            "caption_storage": "none" if classes else "bfloat16",
            "caption_width": 0 if classes else CAPTION_WIDTH,
            "max_caption_tokens": 0 if classes else 10,
            "class_names": ("owl", "key", "cup") if classes else (),
            **info,
        }
    )
    folder.write(FEATURES_FILE, facts.to_json())
    units = [_unit(number, num_units, rows, facts) for number in range(num_units)]
    folder.write("plan/0.json", json.dumps({"units": [asdict(unit) for unit in units], "validation_share": 0.0}).encode())
    for unit in units:
        _commit(folder, unit, facts, encoder)
    null = torch.randn(2, facts.caption_width, generator=torch.Generator().manual_seed(5)).bfloat16()
    if encoder is not None:
        null = encoder.null_captions().tokens.bfloat16()
    save_file({NULL_CAPTION_NAME: null}, Path(folder.root) / NULL_CAPTION_FILE)
    return Path(folder.root)


def _unit(number: int, num_units: int, rows: int, info: FeaturesInfo) -> PlannedUnit:
    split = "validation" if number >= num_units - 2 else "train"
    bucket = info.buckets[number % len(info.buckets)]
    return PlannedUnit(number=number, part="", row_group=0, num_images=rows, split=split, buckets={info.resolution: bucket})


def _commit(folder: Folder, unit: PlannedUnit, info: FeaturesInfo, encoder: TextEncoder | None) -> None:
    generator = torch.Generator().manual_seed(unit.number)
    height, width = unit.buckets[info.resolution]
    shape = (unit.num_images, info.latent_channels, height // info.downsampling, width // info.downsampling)
    latents = LatentDistribution(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator) - 3)
    names = [("dense", "alt_text")] * unit.num_images
    facts = [
        SampleFacts(
            key=f"u{unit.number}r{row}",
            height=height,
            width=width,
            class_label=row % 3 if info.class_names else None,
            captions=() if info.class_names else tuple((name, f"{name} {row}") for name in names[row]),
        )
        for row in range(unit.num_images)
    ]
    control = torch.randn(shape, generator=torch.Generator().manual_seed(100 + unit.number)) if info.control else None
    tables = {"latents": latents_table(facts, latents, info.latent_dtype, control=control)}
    if info.caption_storage != "none":
        lengths = torch.randint(1, info.max_caption_tokens, (2 * unit.num_images,), generator=generator)
        tokens = torch.randn(int(lengths.sum()), info.caption_width, generator=generator)
        captions = Captions(tokens=tokens, lengths=lengths)
        if encoder is not None:
            captions = encoder.encode([text for one in facts for _, text in one.captions])
        tables["captions"] = captions_table(names, captions, as_int8=False)
    commit_unit(folder, run_id="tiny", unit=unit, tables=tables, arrow=list(tables))


def tiny_config(root: Path, *, stage: Any = "alignment", images: int = 40, batch_size: int = 4, **changes: Any) -> TrainConfig:
    """Trains in a second on a store under root/features; `changes` replace its settings."""
    settings: dict[str, Any] = {
        "stage": stage,
        "conditioning": "class" if stage == "pixel" else "text",
        "features": str(root / "features"),
        "run_dir": str(root / "runs"),
        "ladder": (Rung(resolution=16, images=images, batch_size=batch_size),),
        "init_from": "scratch",
        "device": "cpu",
        "precision": "float32",
        "compile": False,
        "network": NetworkConfig(width=24, depth=2, num_heads=2),
        "optim": OptimConfig(lr=1e-3, warmup_steps=2),
        "ema": EmaConfig(half_life_images=20),
        "data": DataConfig(loader_threads=1),
        "checkpoint": CheckpointConfig(every_images=12, keep_last=2),
        "watch": WatchConfig(every_steps=1, validate_every_images=20, validation_images=8, sample_every_images=0),
    }
    return TrainConfig(**settings | changes)


def training_losses(config: TrainConfig) -> dict[int, float]:
    """The losses of a run, by images seen."""
    return {row["images_seen"]: row["loss"] for row in read_metrics(Path(config.run_folder)) if row["kind"] == "train"}


def newest_of(config: TrainConfig) -> Path:
    """The newest checkpoint of a run."""
    checkpoint = newest_checkpoint(Path(config.run_folder))
    assert checkpoint is not None
    return checkpoint


def newest_weights(config: TrainConfig, file: str = "diffusion_pytorch_model.safetensors") -> dict[str, torch.Tensor]:
    """The weights in a run's newest checkpoint; `file` is the one that an adapter or a control is in."""
    return load_file(newest_of(config) / "transformer" / file)


def have_same_weights(first: TrainConfig, second: TrainConfig, file: str) -> bool:
    """Whether the newest checkpoints of two runs are equal bit for bit."""
    ours, theirs = newest_weights(first, file), newest_weights(second, file)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def continued_from(config: TrainConfig, run_dir: Path, *, images_seen: int) -> TrainConfig:
    """The same training in another folder that holds one of its checkpoints."""
    resumed = replace(config, run_dir=str(run_dir))
    name = f"checkpoints/{images_seen:012d}"
    shutil.copytree(Path(config.run_folder) / name, Path(resumed.run_folder) / name)
    return resumed


@contextmanager
def acting_after_step(run: Path, step: int, act: Callable[[], object]) -> Iterator[None]:
    """Calls `act` in this process, in the middle of the training that writes to the folder `run`: after a step, from 1."""
    run_step = RungTraining._step

    def step_and_act(training: RungTraining, *arguments: Any, **more: Any) -> int:
        done = run_step(training, *arguments, **more)
        if Path(training.parts.config.run_folder) == run and done == step:
            act()
        return done

    with patch.object(RungTraining, "_step", step_and_act):
        yield


def run_until_killed(config: TrainConfig, words: str) -> None:
    """Trains by the command in another process, and kills it by SIGKILL when its output has a line with these words."""
    path = Path(config.run_dir).parent / "config.yaml"
    path.write_text(yaml.safe_dump(_plain(asdict(config))))
    command = [sys.executable, "-m", "trainer.fit", "--stage", config.stage, "--config", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if words in line:
                process.kill()
    assert process.returncode == -signal.SIGKILL


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
