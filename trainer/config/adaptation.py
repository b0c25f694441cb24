"""Adaptation: a LoRA or a control (copies of the first blocks) is trained in place of the weights; both are off by default."""

from dataclasses import asdict, dataclass
from typing import Any

from model.control.settings import CONDITIONS, ControlKind, default_blocks
from model.lora.settings import BaseFormat, Injection
from trainer.config.check import Check


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA of the network that training starts from, which is frozen.

    Source: LoRA (arXiv 2106.09685), rsLoRA (2312.03732), DoRA (2402.09353), by peft.
    """

    rank: int = 0
    """Rank of the adapter; setting it enables LoRA. 0: train all weights."""
    alpha: float | None = None
    """Numerator of the adapter's scaling, which is alpha / rank; default: the rank."""
    targets: tuple[str, ...] = ()
    """Layers to adapt, by the ends of their names, such as `attn.qkv cross_attn.kv_linear`; default: attention and MLPs of all
    blocks."""
    dropout: float = 0.0
    """Share of a layer's inputs that the adapter does not see in training, from 0 to 1."""
    dora: bool = False
    """Train the row norms of the changed weights too (DoRA): closer to full training, slower."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (rsLoRA), for ranks of 64 and more."""
    base: BaseFormat = "float32"
    """Number format of the frozen matrices of the blocks: float32, or int8 at a quarter of the memory."""
    trigger_word: str = ""
    """Word of the prompts that asks for what is learned; recorded in the adapter, without effect on training."""

    @property
    def is_on(self) -> bool:
        """True where it takes part in the training."""
        return self.rank > 0

    @property
    def injection(self) -> Injection | None:
        """The adapter as it is made; none if LoRA is off."""
        if not self.is_on:
            return None
        return Injection(
            rank=self.rank,
            alpha=float(self.rank) if self.alpha is None else self.alpha,
            targets=tuple(sorted(self.targets)),
            dropout=self.dropout,
            dora=self.dora,
            rslora=self.rslora,
            base=self.base,
        )

    def record(self) -> dict[str, dict[str, Any]]:
        """The settings that a resumed training must share; empty if it is off."""
        injection = self.injection
        return {} if injection is None else {"lora": asdict(injection) | {"targets": list(injection.targets)}}

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("rank", "0 or more", self.rank >= 0),
            ("alpha", "above 0", self.alpha is None or self.alpha > 0),
            ("targets", "ends of names, none of them empty", all(self.targets)),
            ("dropout", "from 0 to below 1", 0 <= self.dropout < 1),
            ("rank", "1 or more with other settings of lora", self.is_on or self == LoraConfig(rank=self.rank)),
        ]


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """Control of the network that training starts from, which is frozen.

    Source: ControlNet-Transformer of PixArt-delta (arXiv 2401.05252), section 4.
    """

    kind: ControlKind = "none"
    """Kind of the control images, which enables this: edges (of features made with the same control.kind), or none."""
    blocks: int | None = None
    """Number of the first blocks that are copied; default: 13 of 28, in proportion. Source: PixArt-delta."""
    dropout: float = 0.0
    """Share of samples whose control image is blank, from 0 to 1: the control then learns to add nothing without one."""

    @property
    def is_on(self) -> bool:
        """True where it takes part in the training."""
        return self.kind != "none"

    @property
    def condition(self) -> str:
        """Control images as features and controls record them, as edges/1; empty if it is off."""
        return CONDITIONS[self.kind]

    def chosen_blocks(self, depth: int) -> int:
        """Number of copied blocks of a network of this depth; 0 if it is off."""
        return (self.blocks or default_blocks(depth)) if self.is_on else 0

    def record(self) -> dict[str, dict[str, Any]]:
        """The settings that a resumed training must share, besides the number of copies; empty if it is off."""
        values = {"condition": self.condition, "dropout": self.dropout}
        return {"control": values} if self.is_on else {}

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("blocks", "1 or more", self.blocks is None or self.blocks >= 1),
            ("dropout", "from 0 to below 1", 0 <= self.dropout < 1),
            ("kind", "edges with other settings of control", self.is_on or self == ControlConfig()),
        ]
