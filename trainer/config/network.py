"""Network and objective: sizes of a new network, and what it is trained to predict."""

from dataclasses import dataclass, field
from typing import Any, Literal

from model.dit_config import DiTConfig, KVCompression, default_patch_size
from trainer.config.check import Check

DIFFUSION: Literal["diffusion"] = "diffusion"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of a network that starts from scratch; one that starts from a checkpoint keeps that checkpoint's.

    The rest of model.DiTConfig follows from the stage, the features and the objective.
    """

    width: int = 1152
    """Width of the network: channels per token."""
    depth: int = 28
    """Number of transformer blocks."""
    num_heads: int = 16
    """Attention heads per block."""
    patch_size: int = 0
    """Side of a patch, in latent pixels; 0: 1 if the VAE has 32 pixels per latent or more, otherwise 2."""
    mlp_ratio: float = 4.0
    """Hidden channels of a block's MLP, as a multiple of the width."""
    micro_conditioning: bool = False
    """Condition on the original size and aspect ratio too. A checkpoint without it gains it, at first without effect."""
    qk_norm: bool = False
    """Normalise queries and keys of self-attention (Sigma)."""
    kv_compression: KVCompression = field(default_factory=KVCompression)
    """Compression of the keys and values of self-attention (Sigma)."""
    text_adapter_blocks: int = 0
    """Number of transformer blocks that process the captions before the network reads them: 0, 1 or 2. A checkpoint with fewer
    gains the rest, at first without effect. Source: i1 (arXiv 2606.11289)."""

    def dit_config(
        self,
        *,
        conditioning: Literal["text", "class"],
        sample_size: int,
        in_channels: int,
        learned_variance: bool,
        downsampling: int = 8,
        caption_width: int = 4096,
        max_caption_tokens: int = 120,
        num_classes: int = 1000,
        position_scale: float = 1.0,
    ) -> DiTConfig:
        """The whole configuration, with what features and objective decide. Raises ValueError if it makes no network.

        Micro-conditioning and Sigma's additions are for captions; a class-conditional network is without them.
        """
        text = conditioning == "text"
        return DiTConfig(
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            patch_size=self.patch_size or default_patch_size(downsampling),
            mlp_ratio=self.mlp_ratio,
            micro_conditioning=text and self.micro_conditioning,
            qk_norm=text and self.qk_norm,
            kv_compression=self.kv_compression if text else KVCompression(),
            text_adapter_blocks=self.text_adapter_blocks if text else 0,
            conditioning=conditioning,
            sample_size=sample_size,
            in_channels=in_channels,
            learned_variance=learned_variance,
            caption_width=caption_width,
            max_caption_tokens=max_caption_tokens,
            num_classes=num_classes,
            position_scale=position_scale,
        )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The training objective: see model/diffusion.py."""

    name: Literal["diffusion", "rectified_flow"] = DIFFUSION
    """Objective: diffusion (the paper's) or rectified_flow."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the objective's class, by name; empty: its defaults."""
    shifts: dict[int, float] = field(default_factory=dict)
    """Shift of rectified_flow's times towards noise, by resolution in pixels, instead of `settings.shift`: more pixels need
    more noise. 1 to 2 at 256 px, 1 to 3 at 512, 3.3 to 4 at 1024. Empty: the same at all resolutions. Source: i1, PRX, Iris."""

    @property
    def learned_variance(self) -> bool:
        """True where the network predicts a variance too."""
        return self.name == DIFFUSION and bool(self.settings.get("learned_variance", True))

    def settings_at(self, resolution: int) -> dict[str, Any]:
        """Arguments of the objective's class at a resolution in pixels."""
        shift = self.shifts.get(resolution)
        return self.settings if shift is None else self.settings | {"shift": shift}

    def checks(self) -> list[Check]:
        """Conditions on the values, for error messages."""
        return [
            ("shifts", "empty for the objective diffusion", self.name != DIFFUSION or not self.shifts),
            ("shifts", "above 0", all(shift > 0 for shift in self.shifts.values())),
        ]
