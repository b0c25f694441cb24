"""Cost in validation loss of captions that are stored in bf16 or int8: `python -m benchmarks.int8_captions`.

In the small world, with the shipped vae-mini and t5-mini and the true descriptions as captions. For each seed two networks see
the same samples, noise and timesteps, one with features in bf16, as they are stored by default, one in int8. Then their EMA is
measured in float32 on other scenes, at fixed noise and timesteps, with features of the same captions by three ways:

loss_float32       computed and kept in float32; the network was trained on bf16
loss_bf16          computed in bf16 and stored so
loss_int8          those, stored in int8 with a scale for each token
loss_trained_int8  the network that was trained on int8, measured on int8
loss_no_captions   the null caption for all: what captions are worth to this network
int8_effect        loss_int8 / loss_bf16 - 1; trained_int8_effect likewise
seed_spread        largest distance of a seed's loss_bf16 from the mean of the seeds, as a share of it
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.report import print_report
from foundry.command_line import run_command
from foundry.hardware import auto_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from model.diffusion import Objective
    from model.dit import Captions
    from trainer.data.batches import MicroBatch
    from trainer.training.train_step import TrainState

_DROPOUT = 0.1
_HALF_LIFE_STEPS = 40
_LR = 1e-3


@dataclass(frozen=True)
class Int8CaptionsConfig:
    """Settings of the benchmark."""

    scenes: int = 1000
    """Scenes that are trained on."""
    validation_scenes: int = 250
    """Other scenes, that the loss is measured on."""
    steps: int = 400
    """Optimiser steps of each network."""
    batch_size: int = 32
    """Scenes of a step."""
    width: int = 128
    """Channels of the network, with heads of 32."""
    depth: int = 4
    """Blocks."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds; each has its own network and order of samples."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """Encoded scenes."""

    latents: "Tensor"
    """(N, C, h, w) as the network sees them."""
    captions: "Mapping[str, Captions]"
    """float32, bf16 and int8: N captions each, and the null caption as the last."""

    def part(self, storage: str, rows: "Tensor", *, dropped: "Tensor", noise: "Tensor", timesteps: "Tensor") -> "MicroBatch":
        """These scenes (B,) for the network; those that are `dropped` (B,) have the null caption."""
        from trainer.data.batches import MicroBatch

        places = dropped.int() * len(self.latents) + ~dropped * rows
        chosen = self.captions[storage].select(places.tolist())
        return MicroBatch(latents=self.latents[rows], noise=noise, timesteps=timesteps, captions=chosen)


def main(config: Int8CaptionsConfig) -> int:
    """Prints the figures; returns 0."""
    scenes = _encode(config.scenes, seed=1)
    held_out = _encode(config.validation_scenes, seed=2)
    losses: dict[str, list[float]] = {}
    for seed in config.seeds:
        trained = {storage: _train(scenes, config, storage=storage, seed=seed) for storage in ("bf16", "int8")}
        found = {f"loss_{storage}": _measure(trained["bf16"], held_out, storage) for storage in ("float32", "bf16", "int8")}
        found["loss_trained_int8"] = _measure(trained["int8"], held_out, "int8")
        found["loss_no_captions"] = _measure(trained["bf16"], held_out, "bf16", without_captions=True)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.6f}" for name, value in found.items()), flush=True)
        for name, value in found.items():
            losses.setdefault(name, []).append(value)
    means = {name: statistics.fmean(values) for name, values in losses.items()}
    effects = {
        "int8_effect": means["loss_int8"] / means["loss_bf16"] - 1,
        "trained_int8_effect": means["loss_trained_int8"] / means["loss_bf16"] - 1,
        "seed_spread": max(abs(value / means["loss_bf16"] - 1) for value in losses["loss_bf16"]),
    }
    print_report("Captions in int8", means | effects, dtype=auto_dtype())
    return 0


def _encode(count: int, *, seed: int) -> Scenes:
    """Scenes of the small world and their dense descriptions, as trainer.precompute would encode them."""
    import numpy as np
    import torch

    from examples.openmoji.composition import draw_scene, render
    from examples.openmoji.descriptions import describe
    from model.dit import Captions
    from model.encoders.text_encoder import NULL_CAPTION, TextEncoderConfig, load_text_encoder
    from model.encoders.vae import VAEConfig, load_vae
    from trainer.features.buckets import to_signed
    from trainer.features.tables import from_int8, to_int8

    drawn = [draw_scene(seed=seed, index=index, split="train") for index in range(count)]
    texts = [*(describe(scene, seed=seed).dense for scene in drawn), NULL_CAPTION]
    vae = load_vae(VAEConfig(name="mini", sliced=False))
    pixels = torch.from_numpy(np.stack([render(scene) for scene in drawn])).split(64)
    latents = torch.cat([vae.encode(to_signed(part)).sample(vae.scale, generator=None) for part in pixels])
    exact = load_text_encoder(TextEncoderConfig(name="mini", dtype="float32")).encode(texts)
    stored = load_text_encoder(TextEncoderConfig(name="mini", dtype="bfloat16")).encode(texts)
    small = Captions(tokens=from_int8(*to_int8(stored.tokens)), lengths=stored.lengths)
    captions = {"float32": exact, "bf16": stored, "int8": small}
    return Scenes(latents, {name: one.to(dtype=torch.float32) for name, one in captions.items()})


def _train(scenes: Scenes, config: Int8CaptionsConfig, *, storage: str, seed: int) -> "TrainState":
    """A small network after all steps; the same order, noise and timesteps for the same seed."""
    import torch

    from trainer.config.optim import OptimConfig
    from trainer.training.optimizer import learning_rate
    from trainer.training.train_step import StepSettings, train_step

    state, objective = _new_state(scenes, config, seed=seed), _objective()
    generator = torch.Generator().manual_seed(seed)
    optim = OptimConfig(lr=_LR, schedule="cosine", warmup_steps=config.steps // 20)
    for step in range(config.steps):
        chosen = torch.randint(len(scenes.latents), (config.batch_size,), generator=generator)
        part = scenes.part(
            storage,
            chosen,
            dropped=torch.rand(config.batch_size, generator=generator) < _DROPOUT,
            noise=torch.randn(config.batch_size, *scenes.latents.shape[1:], generator=generator),
            timesteps=objective.sample_timesteps(config.batch_size, generator=generator),
        )
        settings = StepSettings(
            lr=learning_rate(optim, step=step, num_steps=config.steps),
            ema_decay=min(0.5 ** (1 / _HALF_LIFE_STEPS), step / (step + 10)),
            gradient_clip=1.0,
            precision=getattr(torch, auto_dtype()),
            num_samples=config.batch_size,
        )
        train_step(state, objective, [part], settings)
    return state


def _new_state(scenes: Scenes, config: Int8CaptionsConfig, *, seed: int) -> "TrainState":
    from model.dit import DiTConfig
    from trainer.config.train import TrainConfig
    from trainer.distributed import Workers
    from trainer.training.networks import make_state, new_network

    network = DiTConfig(
        width=config.width,
        depth=config.depth,
        num_heads=config.width // 32,
        patch_size=2,
        sample_size=scenes.latents.shape[-1],
        in_channels=scenes.latents.shape[1],
        learned_variance=False,
        caption_width=scenes.captions["bf16"].tokens.shape[1],
    )
    settings = TrainConfig(stage="all", compile=False)
    return make_state(new_network(network, seed=seed), settings, Workers())


def _measure(state: "TrainState", scenes: Scenes, storage: str, *, without_captions: bool = False) -> float:
    """The mean loss of the EMA over all scenes, in float32."""
    import torch

    from model.diffusion import validation_noise

    objective, total = _objective(), 0.0
    with torch.no_grad(), state.ema.applied():
        for rows in torch.arange(len(scenes.latents)).split(50):
            noise, timesteps = validation_noise(objective, scenes.latents[rows], rows.tolist())
            dropped = torch.full(rows.shape, without_captions)
            part = scenes.part(storage, rows, dropped=dropped, noise=noise, timesteps=timesteps)
            losses = objective.loss(part.predict(state.model, torch.float32), part.latents, noise, timesteps).total
            total += float(losses.double().sum())
    return total / len(scenes.latents)


def _objective() -> "Objective":
    from model.diffusion import RectifiedFlow

    return RectifiedFlow()


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            Int8CaptionsConfig,
            main,
            prog="python -m benchmarks.int8_captions",
            example="python -m benchmarks.int8_captions --steps 400",
        )
    )
