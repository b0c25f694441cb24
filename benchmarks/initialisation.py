"""Choices of the shared MLP where a text DiT starts from a class-conditional one: `python -m benchmarks.initialisation`.

Trains a small class-conditional DiT (adaLN in each block, labels dropped one time in ten) on drawn latents, starts text DiTs
from it with each choice of the shared MLP, and compares them with their source without a class, before any further training:
modulation_*   root mean square error of all blocks' modulations over timesteps 0..999, over the source's spread over time
loss_*         noise prediction loss; loss_source is the source's own
loss_after_*   the same after a short training with captions that name the class
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.report import print_report
from foundry.command_line import run_command
from foundry.hardware import auto_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from model.dit import DiT

_CLASSES, _CAPTION_WIDTH = 8, 16


@dataclass(frozen=True)
class InitialisationBenchmarkConfig:
    """Settings of the benchmark."""

    depth: int = 6
    """Blocks."""
    width: int = 96
    """Channels."""
    steps: int = 1500
    """Training steps of the class-conditional source."""
    steps_after: int = 150
    """Training steps of each text-conditional network."""
    batch: int = 64
    """Samples of a step."""
    seed: int = 0
    """Random seed of the weights and the data, the first of `num_seeds`."""
    num_seeds: int = 3
    """Number of repetitions, each from another seed."""


def main(config: InitialisationBenchmarkConfig) -> int:
    """Prints the figures, means over the seeds; returns 0."""
    runs = [_figures(replace(config, seed=config.seed + index)) for index in range(config.num_seeds)]
    figures = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
    print(f"{'shared MLP':<12}{'modulation':>12}{'loss':>12}{'loss after':>12}    loss after, by seed")
    for name in _choices(config):
        by_seed = " ".join(f"{run[f'loss_after_{name}']:.5f}" for run in runs)
        columns = (figures[f"{kind}_{name}"] for kind in ("modulation", "loss", "loss_after"))
        print(f"{name:<12}" + "".join(f"{value:>12.5f}" for value in columns) + f"    {by_seed}")
    print_report("Initialisation", figures, dtype=auto_dtype())
    return 0


def _choices(config: InitialisationBenchmarkConfig) -> dict[str, Literal["mean"] | int]:
    """MLPs that are tried as the shared one."""
    choices: dict[str, Literal["mean"] | int] = {"mean": "mean"}
    return choices | {f"block_{index}": index for index in (0, config.depth // 2, config.depth - 1)}


def _figures(config: InitialisationBenchmarkConfig) -> dict[str, float]:
    """The figures of one seed."""
    import torch

    from model.dit import DiT, DiTConfig
    from model.initialisation import InitialisationConfig, initialise_from_class_dit

    source_config = DiTConfig(
        sample_size=8, width=config.width, depth=config.depth, num_heads=4, conditioning="class", num_classes=_CLASSES
    )
    source = DiT(source_config).initialise(torch.Generator().manual_seed(config.seed))
    _train(source, config, steps=config.steps)
    figures = {"loss_source": _loss(source, config)}
    for name, choice in _choices(config).items():
        target = DiT(replace(source_config, conditioning="text", caption_width=_CAPTION_WIDTH, max_caption_tokens=1))
        generator = torch.Generator().manual_seed(config.seed)
        initialise_from_class_dit(target, source, generator=generator, config=InitialisationConfig(shared_mlp=choice))
        figures[f"modulation_{name}"] = _modulation_error(target, source)
        figures[f"loss_{name}"] = _loss(target, config)
        _train(target, config, steps=config.steps_after)
        figures[f"loss_after_{name}"] = _loss(target, config)
    return figures


def _batch(num: int, generator: "torch.Generator") -> "tuple[Tensor, Tensor]":
    """Latents (B, 4, 8, 8), a soft spot whose place and channels the class tells and whose strength varies, and labels (B,)."""
    import torch

    labels = torch.randint(_CLASSES, (num,), generator=generator)
    axis = torch.arange(8.0)
    row, column = 1.5 + 4 * (labels // 4).float(), 0.5 + 2 * (labels % 4).float()
    spot = ((-((axis - row[:, None]) ** 2) / 4).exp())[:, :, None] * ((-((axis - column[:, None]) ** 2) / 4).exp())[:, None]
    colour = torch.nn.functional.one_hot(labels % 4, 4).float() * (0.5 + torch.rand(num, 1, generator=generator)) * 3
    grain = 0.1 * torch.randn(num, 4, 8, 8, generator=generator)
    return spot[:, None] * colour[:, :, None, None] + grain, labels


def _bind(network: "DiT", labels: "Tensor | None") -> "Callable[[Tensor, Tensor], Tensor]":
    """The network with labels, or with captions of one token that name them; None: without either."""
    import torch

    from model.dit import Captions

    if network.config.conditioning == "class":
        return lambda noisy, timesteps: network(noisy, timesteps, class_labels=labels)

    def predict(noisy: "Tensor", timesteps: "Tensor") -> "Tensor":
        tokens = torch.zeros(len(noisy), _CAPTION_WIDTH)
        if labels is not None:
            tokens[torch.arange(len(noisy)), labels] = 4.0
        captions = Captions(tokens=tokens, lengths=torch.ones(len(noisy), dtype=torch.int64))
        return network(noisy, timesteps, captions=captions)  # type: ignore[no-any-return]

    return predict


def _train(network: "DiT", config: InitialisationBenchmarkConfig, *, steps: int) -> None:
    import torch

    from model.diffusion import Diffusion

    generator = torch.Generator().manual_seed(config.seed + 1)
    optimizer: Any = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    objective = Diffusion()
    for _ in range(steps):
        latents, labels = _batch(config.batch, generator)
        timesteps = objective.sample_timesteps(config.batch, generator=generator)
        if network.config.conditioning == "class":
            labels[torch.rand(config.batch, generator=generator) < 0.1] = _CLASSES
        noise = torch.randn(latents.shape, generator=generator)
        loss = objective.loss(_bind(network, labels), latents, noise, timesteps).total.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


def _loss(network: "DiT", config: InitialisationBenchmarkConfig) -> float:
    """Noise prediction loss on 1024 fixed samples: without a class for the source, and for networks that start from it."""
    import torch

    from model.diffusion import Diffusion, validation_loss

    latents, _ = _batch(1024, torch.Generator().manual_seed(config.seed + 2))
    return float(validation_loss(Diffusion(), _bind(network, None), latents, range(1024)).parts["mse"].mean())


def _modulation_error(target: Any, source: Any) -> float:
    import torch

    timesteps = torch.arange(0.0, 1000.0, 9)
    with torch.no_grad():
        condition = source.t_embedder(timesteps) + source.y_embedder.embedding_table.weight[-1]
        own = torch.stack([block.adaLN_modulation(condition) for block in source.blocks])  # (depth, times, 6 D)
        shared = target.t_block(target.t_embedder(timesteps))  # (times, 6 D)
        found = torch.stack([shared + block.scale_shift_table.flatten() for block in target.blocks])
        spread = own - own.mean(1, keepdim=True)
    return float((found - own).square().mean().sqrt() / spread.square().mean().sqrt())


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            InitialisationBenchmarkConfig,
            main,
            prog="python -m benchmarks.initialisation",
            example="python -m benchmarks.initialisation --seed 1",
        )
    )
