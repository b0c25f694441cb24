"""vae-mini: an AutoencoderKL that makes 8 x 8 positions of 16 channels from a scene of 64 x 64 pixels, and its training.

The latents are treated as a radio channel: their mean power is at most 1, and noise is added to them while training. So what
matters most for the image gets the most power, details get little, and the decoder draws the same for neighbouring latents:
what a diffusion model of few tokens needs. The encoder's variance is a constant, not learned, since a learned one would fill
unused channels with noise of unit variance. One factor scales all channels (`scaling_factor`).

Tensor legend: B batch, C latent channels.
"""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from examples.openmoji.backgrounds import IMAGE_SIZE_PX
from examples.openmoji.composition import draw_scene, render
from examples.openmoji.llava_warmup import normalized
from examples.openmoji.reconstruction import psnr
from examples.openmoji.train_vae import TrainVAEConfig
from examples.openmoji.training_loop import Figures, autocast, fit, muon_and_adamw, run_processes, save_pretrained
from foundry.hardware import auto_dtype

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LATENT_CHANNELS = 16
_BLOCK_WIDTHS = (32, 48, 96, 128)
_NORM_GROUPS = 2  # of 16 channels and more: the backward pass of smaller ones is ten times slower on a CPU
# The deviation that the encoder states, of latents of unit power: small, so that samples are as good as the mean.
_STATED_DEVIATION = 0.02
_SQUARE_WEIGHT, _EDGE_WEIGHT, _POWER_WEIGHT = 5.0, 0.5, 0.5
_SCENES_FOR_SCALE, _SCENES_FOR_PSNR = 512, 64


def train(config: TrainVAEConfig) -> None:
    """Trains from the state in the run folder."""
    run_processes(_train_rank, config, num_processes=config.schedule.num_processes, seed=config.seed)


def _train_rank(config: TrainVAEConfig) -> None:
    model = build_vae()
    fit(
        "vae",
        model,
        functools.partial(figures_of, noise=config.noise),
        optimizers=muon_and_adamw(model, inner_filters(model), config.schedule),
        schedule=config.schedule,
        batches=functools.partial(scene_batches, config),
        run_dir=Path(config.run_dir),
        save=lambda: _save(model, config),
    )


def build_vae() -> "AutoencoderKL":
    """A model with random weights (from torch's generator) in float32."""
    from diffusers import AutoencoderKL

    model: AutoencoderKL = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(_BLOCK_WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(_BLOCK_WIDTHS),
        block_out_channels=_BLOCK_WIDTHS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=_NORM_GROUPS,
        sample_size=IMAGE_SIZE_PX,
        scaling_factor=1.0,
        force_upcast=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    with torch.no_grad():  # the log-variance, a constant: no gradient ever reaches it
        model.encoder.conv_out.weight[LATENT_CHANNELS:] = 0
        model.encoder.conv_out.bias[LATENT_CHANNELS:] = 2 * math.log(_STATED_DEVIATION)
    return model.to(memory_format=torch.channels_last)


def inner_filters(model: "AutoencoderKL") -> list[nn.Parameter]:
    """The filters of all convolutions but the first and the last of encoder and decoder."""
    outer = ("conv_in.weight", "conv_out.weight")
    return [parameter for name, parameter in model.named_parameters() if parameter.ndim > 1 and not name.endswith(outer)]


def figures_of(model: "AutoencoderKL", pixels: Tensor, *, noise: float) -> Figures:
    """Loss of uint8 pixels (B, 3, 64, 64): differences of values and of edges, and what power exceeds 1."""
    images = normalized(pixels)
    mean = model.encoder(images)[:, :LATENT_CHANNELS].float()  # (B, C, 8, 8)
    deviation = noise * torch.rand(len(images), 1, 1, 1)
    error = model.decoder(mean + deviation * torch.randn_like(mean)).float() - images  # (B, 3, 64, 64)
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    square = error.square().mean(dim=(1, 2, 3))
    power = mean.square().mean()
    loss = error.abs().mean() + _SQUARE_WEIGHT * square.mean() + _EDGE_WEIGHT * edges + _POWER_WEIGHT * relu(power - 1)
    # In -1..1 the peak is 2.
    noisy_psnr = (10 * torch.log10(4 / square)).mean().item()
    return loss, {"noisy_psnr_db": noisy_psnr, "power": power.item()}


def scene_batches(config: TrainVAEConfig, first: int, share: tuple[int, int]) -> Iterator[Tensor]:
    """uint8 (B, 3, 64, 64) in channels_last, for ever from batch number `first` on."""
    rank, ranks = share
    start = first * config.schedule.batch_size
    while True:
        indices = range(start + rank, start + config.schedule.batch_size, ranks)
        scenes = [render(draw_scene(seed=config.seed, index=index)) for index in indices]
        yield torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2)
        start += config.schedule.batch_size


def _save(model: "AutoencoderKL", config: TrainVAEConfig) -> None:
    """Measures the scale, writes the model and says how well it reconstructs."""
    scenes = [render(draw_scene(seed=config.seed, index=index)) for index in range(_SCENES_FOR_SCALE)]
    pixels = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2)
    with torch.inference_mode(), autocast(auto_dtype()):
        parts = [model.encoder(normalized(part))[:, :LATENT_CHANNELS].float() for part in pixels.split(32)]
    model.register_to_config(scaling_factor=1 / torch.cat(parts).std().item())
    save_pretrained(model, Path(config.out))
    print(f"vae: {psnr(Path(config.out), count=_SCENES_FOR_PSNR).mean():.2f} dB on unseen scenes", flush=True)
