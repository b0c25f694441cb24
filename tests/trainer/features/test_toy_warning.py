"""No toy by accident: precompute says so where mini is about to encode photographs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from model.encoders.frozen_parts import PRETRAINED, PUBLISHED
from model.encoders.text_encoder import TextEncoderConfig
from model.encoders.vae import VAEConfig
from tests.trainer import tiny_sources
from tests.trainer.tiny_sources import tiny_precompute, write_dataset
from trainer.features.job import Encoders
from trainer.features.preparation import prepare, toy_warning


def test_the_toys_on_photographs_warn_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_sources, "SIZES", ((64, 64), (300, 400), (256, 2000), (257, 257)))
    dataset = write_dataset(tmp_path / "dataset")
    config = tiny_precompute(tmp_path, dataset)
    tasks = prepare(config, describe=Encoders.describe)
    assert toy_warning(config, tasks) == ""  # neither encoder is the toy

    def with_toys(vae: str, text_encoder: str, **changes: Any) -> str:
        parts: dict[str, Any] = {"vae": VAEConfig(name=vae, sliced=False), "text_encoder": TextEncoderConfig(name=text_encoder)}
        changed = dataclasses.replace(tasks.job, encoders=dataclasses.replace(tasks.job.encoders, **parts))
        return toy_warning(config, dataclasses.replace(tasks, job=changed, **changes))

    assert with_toys("mini", "mini") == (
        "warning: mini only understands 64-pixel emoji scenes, and 10 of 20 images are larger than 256 px on both sides: a "
        f"network learns little from such features; give vae.name {PUBLISHED[120]} and text_encoder.name {PUBLISHED[120]}"
    )
    assert with_toys(str(PRETRAINED / "vae-mini"), config.text_encoder.name).endswith(f"give vae.name {PUBLISHED[120]}")
    assert with_toys("mini", "mini", units=[]) == ""
    monkeypatch.setattr(tiny_sources, "SIZES", ((64, 64),))
    config = tiny_precompute(tmp_path, write_dataset(tmp_path / "scenes"), out=str(tmp_path / "of_scenes"))
    tasks = prepare(config, describe=Encoders.describe)
    assert with_toys("mini", "mini") == ""
