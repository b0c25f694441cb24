"""Small networks with random weights everywhere (also where initialise() leaves zeros), and inputs for them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from model.dit import Captions, DiT, DiTConfig

TEXT = DiTConfig(width=48, depth=3, num_heads=4, caption_width=32, sample_size=16, max_caption_tokens=10)
CLASS = DiTConfig(width=48, depth=3, num_heads=4, num_classes=7, sample_size=16, conditioning="class")


def random_network(config: DiTConfig = TEXT, *, seed: int = 0, **changes: Any) -> DiT:
    network = DiT(replace(config, **changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.08, generator=generator)
        for buffer in network.buffers():
            buffer.normal_(generator=generator)
    return network.eval()


def padded_captions(num: int = 3, *, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Embeddings (num, 10, 32) and a mask with 3, 10, 5, … tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([[3, 10, 5, 1][index % 4] for index in range(num)])
    return torch.randn(num, 10, 32, generator=generator), torch.arange(10) < lengths[:, None]


def captions(num: int = 3) -> Captions:
    return Captions.from_padded(*padded_captions(num))


def latents(num: int = 3, *, height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(num, 4, height, width, generator=torch.Generator().manual_seed(2))


TIMESTEPS = torch.tensor([0.0, 411.5, 999.0])
SIZES = torch.tensor([[512.0, 512.0], [640.0, 333.0], [1024.0, 901.0]])
RATIOS = SIZES[:, :1] / SIZES[:, 1:]
