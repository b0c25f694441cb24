"""Token routing in training: most blocks see a part of an image's tokens, TREAD or masking; off by default."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from model.dit_config import RoutedBlocks
from trainer.config.check import Check
from trainer.config.ladder import Rung

PAYS_FROM = 1024
"""Tokens of an image from which routing is in use. Source: PRX (1024 tokens gain, 256 lose), Nitro-T."""

ADVICE = f"leave routing.min_tokens at {PAYS_FROM}, or train at a higher resolution"


@dataclass(frozen=True, kw_only=True)
class RoutingConfig:
    """Token routing, for 1024 tokens and more: saves operations while most of a training lasts.

    Deviation: masking takes the network's first blocks as the patch mixer, where MicroDiT and Nitro-T put further ones before
    the network: it stays the same network, with and without.
    Source: TREAD (arXiv 2501.04765); masking: MicroDiT (2407.15811), Nitro-T.
    """

    kind: Literal["off", "tread", "masking"] = "off"
    """Kind of routing: tread leads some of the tokens past the middle blocks and back; masking drops them after the first
    blocks, and the loss counts only the rest."""
    share: float = 0.5
    """Share of the tokens that skip the blocks, between 0 and 1. Source: 0.5 TREAD, 0.5 to 0.75 masking."""
    blocks_before: int = 2
    """Number of first blocks, which see all tokens: for masking, the patch mixer. Source: TREAD, Nitro-T."""
    blocks_after: int = 2
    """Number of last blocks, which see all tokens again; masking has none. Source: TREAD."""
    stop_share: float = 0.85
    """Share of each resolution step's images after which all blocks see all tokens. Source: 0.8 to 0.9, TREAD and PRX."""
    last_resolution: bool = False
    """Also route at the last resolution of a ladder with several. Source: PRX does not."""
    min_tokens: int = PAYS_FROM
    """Minimum number of tokens of a square image; smaller resolutions are not routed. Source: PRX gains at 1024 and loses at
    256."""

    @property
    def is_on(self) -> bool:
        """True where it takes part in the training."""
        return self.kind != "off"

    @property
    def blocks(self) -> RoutedBlocks | None:
        """The blocks that see a part of the tokens; none if it is off."""
        after = 0 if self.kind == "masking" else self.blocks_after
        return RoutedBlocks(share=self.share, before=self.blocks_before, after=after) if self.is_on else None

    def routed_images(self, ladder: tuple[Rung, ...], index: int, *, num_tokens: int) -> int:
        """The number of images of a resolution step that are trained with routing: a whole number of steps.

        `num_tokens`: of a square image at that resolution.
        """
        if not self.is_on or self.off_reason(ladder, index, num_tokens=num_tokens):
            return 0
        return round(self.stop_share * ladder[index].num_steps) * ladder[index].batch_size

    def off_reason(self, ladder: tuple[Rung, ...], index: int, *, num_tokens: int) -> str:
        """Reason why a resolution step is trained without routing although it is on; empty if it is routed."""
        if num_tokens < self.min_tokens:
            return f"{num_tokens} tokens an image, where it does not pay: routing.min_tokens is {self.min_tokens}"
        is_last = len(ladder) > 1 and index == len(ladder) - 1
        return "the last resolution: routing.last_resolution is false" if is_last and not self.last_resolution else ""

    def record(self) -> dict[str, dict[str, Any]]:
        """The settings that a resumed training must share; empty if it is off."""
        return {"routing": asdict(self)} if self.is_on else {}

    def does_not_pay(self, num_tokens: int) -> str:
        """A warning where images have so few tokens that routing costs more quality than it saves; else empty."""
        return f"{self.kind} at {num_tokens} tokens an image does not pay" if self.is_on and num_tokens < PAYS_FROM else ""

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("share", "above 0 and below 1", 0 < self.share < 1),
            ("blocks_before", "0 or more", self.blocks_before >= 0),
            (
                "blocks_before",
                "1 or more for masking: they are its patch mixer",
                self.kind != "masking" or self.blocks_before > 0,
            ),
            ("blocks_after", "1 or more for tread", self.kind != "tread" or self.blocks_after > 0),
            ("min_tokens", "1 or more", self.min_tokens >= 1),
            ("stop_share", "above 0 and at most 1", 0 < self.stop_share <= 1),
        ]
