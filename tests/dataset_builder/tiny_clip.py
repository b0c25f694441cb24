"""A CLIP of open_clip with random weights, small enough for tests, in a folder as users have theirs."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

WIDTH = 16

_CONFIG = {
    "model_cfg": {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"},
}


def write_tiny_clip(folder: Path) -> Path:
    """Writes configuration and weights; the same each time."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(_CONFIG))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}")
    save_file(
        {name: weight.contiguous() for name, weight in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


def write_tiny_predictor(path: Path, *, width: int = WIDTH) -> Path:
    """LAION's aesthetic predictor with random weights."""
    generator = torch.Generator().manual_seed(1)
    widths = [width, 1024, 128, 64, 16, 1]
    weights = {}
    for place, (before, after) in zip((0, 2, 4, 6, 7), pairwise(widths), strict=True):
        weights[f"layers.{place}.weight"] = torch.randn(after, before, generator=generator) * before**-0.5
        weights[f"layers.{place}.bias"] = torch.randn(after, generator=generator)
    save_file(weights, path)
    return path


def picture(seed: int) -> Image.Image:
    """A smooth picture of 90 x 60."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((90, 60), Image.Resampling.BICUBIC)
