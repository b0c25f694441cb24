"""LoRA in a training: the base that is found and frozen, the adapter that is trained, and its average in checkpoints.

A checkpoint names its base by path and fingerprint. The base is read again when a training resumes, and another one is refused.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from foundry.errors import UserError
from model.dit import DiT
from model.dit_config import DiTConfig, FewSteps
from model.formats.checkpoint import (
    MINI,
    base_of,
    checkpoint_fingerprint,
    is_control,
    mini_checkpoint,
    read_own_adapter,
    read_own_control,
)
from model.lora.adapter import Adapter, ScaledAdapter, with_adapters
from model.lora.injection import base_weights, inject, trained_layers
from model.lora.settings import Injection
from trainer.config.train import TrainConfig
from trainer.training.ema import Ema


@dataclass(frozen=True, kw_only=True)
class LoraState:
    """The adapter of a training: how it is made, and what it is added to."""

    injection: Injection
    base: str
    """Checkpoint of the frozen weights: an absolute folder, or `mini`."""
    base_fingerprint: str
    trigger_word: str = ""
    few_steps: FewSteps | None = None
    """Few steps that the adapter distils its base to; none: it does not."""

    def adapter(self, weights: dict[str, torch.Tensor]) -> Adapter:
        """The adapter among a network's tensors."""
        return Adapter(
            layers=trained_layers(weights, self.injection),
            rslora=self.injection.rslora,
            base=self.base,
            base_fingerprint=self.base_fingerprint,
            trigger_word=self.trigger_word,
            few_steps=self.few_steps,
        )


def find_base(checkpoint: Path, *, resumes: bool) -> tuple[Path, str]:
    """The folder of the base and the name that a checkpoint records of it. Raises UserError where it is missing or another."""
    base = checkpoint
    if resumes:
        base = base_of(checkpoint, read_own_control(checkpoint) if is_control(checkpoint) else read_own_adapter(checkpoint))
    base = base.resolve()
    return base, MINI if base == mini_checkpoint().resolve() else str(base)


def check_same_network(base: DiTConfig, target: DiTConfig, *, checkpoint: Path) -> None:
    """Raises UserError where a training asks for parts that its base lacks: an adapter or a control could not hold them."""
    kept = {name: getattr(base, name) for name in ("sample_size", "position_scale", "max_caption_tokens")}
    if replace(target, **kept) != base:
        raise UserError(
            f"neither a LoRA nor a control can give {checkpoint} what it lacks (conditions, sizes of images, blocks of a text "
            "adapter): train it without them first, or leave these settings out",
            setting="network",
        )


def adapted(network: DiT, injection: Injection, config: TrainConfig, *, name: str, base: Path) -> LoraState:
    """Freezes the network and puts an adapter into it. Raises UserError for targets that are no layers."""
    inject(network, injection, seed=config.seed)
    return LoraState(
        injection=injection,
        base=name,
        base_fingerprint=checkpoint_fingerprint(base),
        trigger_word=config.lora.trigger_word,
        few_steps=config.few_steps.result,
    )


def averaged_adapter(ema: Ema, lora: LoraState, *, keep: bool) -> Adapter | None:
    """The adapter of the average's weights, on the CPU; none unless `keep`. All workers call it."""
    weights = ema.whole_averages(keep=keep)
    return lora.adapter(weights) if keep else None


def averaged_network(ema: Ema, lora: LoraState, *, keep: bool) -> dict[str, torch.Tensor]:
    """The base with the average's adapter added, as whole tensors; empty unless `keep`. All workers call it."""
    weights = ema.full_weights(keep=keep)
    if not keep:
        return {}
    adapter = ScaledAdapter(adapter=lora.adapter(weights), source="the adapter in training")
    return with_adapters(base_weights(weights), [adapter])


def seed_dropout(config: TrainConfig, *, images_seen: int, rank: int) -> None:
    """Seeds torch's generators, which nothing else draws from, for a step: so that a resumed training drops the same inputs."""
    if config.lora.dropout:
        digest = hashlib.sha256(f"{config.seed} {images_seen} {rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "little"))
