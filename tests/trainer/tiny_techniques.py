"""Trainings of a second with techniques on: a teacher of a few thousand parameters, its VAE, and features that name it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model

from model.formats.checkpoint import PartConfig
from tests.model.tiny_parts import save_tiny_vae, tiny_vae
from tests.trainer.tiny_training import tiny_config, write_store
from trainer.config.techniques import DispersiveConfig, LayerSyncConfig, RepaConfig, Sra2Config
from trainer.config.train import TrainConfig

TECHNIQUES: dict[str, Any] = {
    "repa": RepaConfig(teacher="teacher", hidden=32),
    "sra2": Sra2Config(enabled=True),
    "layersync": LayerSyncConfig(enabled=True),
    "dispersive": DispersiveConfig(enabled=True, group=2),
}
"""Each switched on for tiny networks; the teacher is named without its folder."""


def save_tiny_teacher(folder: Path, *, seed: int = 0, width: int = 16) -> Path:
    """A DINOv2 with patches of 4 px, and the normalisation of its images, as save_pretrained writes them."""
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, patch_size=4, image_size=16
    )
    Dinov2Model(config).save_pretrained(folder)
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def write_features(root: Path, **options: Any) -> Path:
    """root/features with a tiny VAE in root/vae, which they name, and a teacher in root/teacher."""
    vae = save_tiny_vae(root / "vae", scaling_factor=0.5)
    save_tiny_teacher(root / "teacher")
    part = PartConfig(name=str(vae), fingerprint=tiny_vae(vae).fingerprint())
    return write_store(root / "features", vae=part, **options)


def technique_config(root: Path, run_dir: Path, *names: str, **changes: Any) -> TrainConfig:
    """Trains on root/features with the techniques of these names on."""
    settings = {name: TECHNIQUES[name] for name in names}
    if "repa" in settings:
        settings["repa"] = replace(settings["repa"], teacher=str(root / "teacher"))
    return tiny_config(run_dir, features=str(root / "features"), **settings | changes)
