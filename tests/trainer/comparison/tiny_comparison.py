"""Comparisons that take seconds: the tiny trainings of tests/trainer/tiny_training.py, arm by arm."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from tests.trainer.tiny_training import tiny_config
from trainer.comparison.config import CompareConfig
from trainer.config.running import WatchConfig
from trainer.config.train import TrainConfig


def tiny_comparison(features: Path, run_dir: Path, *arms: str, **changes: Any) -> CompareConfig:
    """Trains arms for 40 images each on a store under `features`, with two seeds and two validations."""
    tiny = tiny_config(run_dir)
    settings = {one.name: getattr(tiny, one.name) for one in fields(TrainConfig)}
    settings |= {"features": str(features), "run_dir": str(run_dir), "arms": arms, "seeds": 2, "validations": 2}
    settings["watch"] = WatchConfig(every_steps=1, validation_images=8)
    return CompareConfig(**settings | changes)
