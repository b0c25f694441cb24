"""Sizes of a DiT and its conditioning; JSON in and out. Imports no torch, so that commands can show their help."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Conditioning = Literal["text", "class"]
FewStepsMethod = Literal["consistency", "rectification"]


@dataclass(frozen=True)
class KVCompression:
    """Blocks whose self-attention reads fewer keys and values. Source: PixArt-Sigma, section 3.3."""

    layers: tuple[int, ...] = ()
    """Indices of the blocks, from 0; empty: none."""
    factor: int = 2
    """Side of the square of tokens that become one key and one value."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))  # JSON has lists
        if self.factor < 2:
            raise ValueError(f"kv_compression.factor: expected 2 or more, found {self.factor}")


@dataclass(frozen=True, kw_only=True)
class RoutedBlocks:
    """Blocks that see a part of an image's tokens in a forward pass: see model/layers/token_routing.py."""

    share: float = 0.5
    """Share of the tokens that pass these blocks by."""
    before: int = 2
    """Blocks before them, which see all tokens."""
    after: int = 2
    """Blocks behind them, which see all tokens; 0: masking."""

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and self.before >= 0 and self.after >= 0):
            raise ValueError(f"routing: expected a share between 0 and 1, and 0 or more blocks before and after, found {self}")

    def num_kept(self, num_tokens: int) -> int:
        """Tokens that the blocks see, of this many; at least one."""
        return max(1, round((1 - self.share) * num_tokens))


@dataclass(frozen=True, kw_only=True)
class FewSteps:
    """Distillation of a network: what it was trained to do in few steps, and what follows for sampling."""

    method: FewStepsMethod
    """consistency: each prediction leads to the image, which sampler lcm makes noisy again. rectification: each leads straight
    to the next of the steps, which sampler ddim takes."""
    num_inference_steps: int
    """Number of steps that it was trained for; more or fewer can be taken."""
    guidance_scale: float
    """Guidance scale of the network that taught it: its own predictions are guided already."""

    def __post_init__(self) -> None:
        if self.method not in get_args(FewStepsMethod) or self.num_inference_steps < 1 or self.guidance_scale < 1:
            expected = f"a method of {', '.join(get_args(FewStepsMethod))}, 1 step or more and a guidance scale of 1 or more"
            raise ValueError(f"few_steps: expected {expected}, found {self}")

    @property
    def sampler(self) -> str:
        """The sampler that fits it."""
        return "lcm" if self.method == "consistency" else "ddim"


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a DiT. The defaults are PixArt-alpha XL/2 at 256 pixels."""

    sample_size: int = 32
    """Side of the square latents that the positions are based on, in latent pixels."""
    patch_size: int = 2
    """Side of a patch in latent pixels; a patch is a token."""
    in_channels: int = 4
    """Channels of the latents."""
    width: int = 1152
    """Channels of a token in the network."""
    depth: int = 28
    """Number of blocks."""
    num_heads: int = 16
    """Attention heads of a block."""
    mlp_ratio: float = 4.0
    """Hidden channels of a block's MLP, in widths."""
    conditioning: Conditioning = "text"
    """text: cross-attention and adaLN-single (PixArt). class: each block has its own adaLN (DiT)."""
    caption_width: int = 4096
    """Channels of the text encoder's tokens."""
    max_caption_tokens: int = 120
    """Longest caption in tokens (Sigma: 300)."""
    num_classes: int = 1000
    """Classes of a class-conditional DiT."""
    null_class: bool = True
    """Whether a class-conditional DiT has learned one more class, which means none."""
    learned_variance: bool = True
    """Twice the output channels: the second half interpolates the variance."""
    micro_conditioning: bool = False
    """Conditioning on the image's original size and aspect ratio too (multi-scale models)."""
    position_scale: float = 1.0
    """Divisor of the positions. alpha: 1 at 256 and 512 pixels, 2 at 1024; Sigma: 0.5, 1, 2, 4 from 256 to 2048."""
    qk_norm: bool = False
    """Normalise queries and keys of self-attention over the whole width (Sigma)."""
    kv_compression: KVCompression = KVCompression()
    """Self-attention over fewer keys and values (Sigma)."""
    text_adapter_blocks: int = 0
    """Transformer blocks on the captions before the network reads them: 0, 1 or 2. Source: i1 (arXiv 2606.11289)."""

    def __post_init__(self) -> None:
        if isinstance(self.kv_compression, Mapping):
            object.__setattr__(self, "kv_compression", KVCompression(**self.kv_compression))
        problems = [
            f"{name}: expected a positive number, found {value}"
            for name, value in asdict(self).items()
            if not isinstance(value, str | bool | dict) and not value > 0 and name != "text_adapter_blocks"
        ]
        if self.conditioning not in get_args(Conditioning):
            problems.append(f"conditioning: expected text or class, found {self.conditioning!r}")
        if not problems:
            problems = self._mismatches()
        if problems:
            raise ValueError("DiT: " + "; ".join(problems))

    def _mismatches(self) -> list[str]:
        text = self.conditioning == "text"
        compressed = self.kv_compression.layers
        checks = {
            f"width: expected a multiple of 4 (for 2-D positions), found {self.width}": self.width % 4,
            f"width: expected a multiple of num_heads {self.num_heads}, found {self.width}": self.width % self.num_heads,
            f"sample_size: expected a multiple of patch_size {self.patch_size}, found {self.sample_size}": (
                self.sample_size % self.patch_size
            ),
            f"width: expected a multiple of 3 for micro_conditioning, found {self.width}": (
                self.micro_conditioning and self.width % 3
            ),
            f"text_adapter_blocks: expected 0, 1 or 2, found {self.text_adapter_blocks}": self.text_adapter_blocks
            not in (0, 1, 2),
            "micro_conditioning, qk_norm, kv_compression and text_adapter_blocks: expected with conditioning=text only": (
                not text and (self.micro_conditioning or self.qk_norm or compressed or self.text_adapter_blocks)
            ),
            f"kv_compression.layers: expected indices below depth {self.depth}, found {list(compressed)}": (
                compressed and not 0 <= min(compressed) <= max(compressed) < self.depth
            ),
        }
        return [message for message, failed in checks.items() if failed]

    def check_routed(self, blocks: RoutedBlocks) -> None:
        """Raises ValueError if this network cannot route tokens past these blocks."""
        if blocks.before + blocks.after >= self.depth:
            raise ValueError(
                f"routing: expected blocks between the first {blocks.before} and the last {blocks.after}, "
                f"found a depth of {self.depth}"
            )
        if self.kv_compression.layers:
            raise ValueError("routing: expected a network without kv_compression, which reads squares of tokens")

    @property
    def out_channels(self) -> int:
        """Channels of the output: the prediction and, with learned_variance, as many for the variance."""
        return self.in_channels * (2 if self.learned_variance else 1)

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Hidden channels of a block's MLP."""
        return math.floor(self.width * self.mlp_ratio + 1e-6)  # a ratio that was read off shapes gives these back

    @property
    def adapter_hidden(self) -> int:
        """Hidden channels of the text adapter's SwiGLU: two thirds of four widths, rounded up to a multiple of 8."""
        return -(-8 * self.width // 24) * 8

    @property
    def base_grid(self) -> int:
        """Patches per side of the square that the positions are based on."""
        return self.sample_size // self.patch_size

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives the same configuration back."""
        values = asdict(self)
        if not self.text_adapter_blocks:  # so that earlier versions open what they can hold
            del values["text_adapter_blocks"]
        values["kv_compression"]["layers"] = list(self.kv_compression.layers)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DiTConfig":
        """Raises ValueError for a key that is not a field, with the nearest field, and for a value of another type."""
        known = {field.name: type(getattr(PRESETS["XL/2"], field.name)) for field in fields(cls)}
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(key, list(known), n=1)
                raise ValueError(f"DiT: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
            expected = {float: (int, float), KVCompression: (KVCompression, Mapping)}.get(known[key], known[key])
            if not isinstance(value, expected) or (isinstance(value, bool) and known[key] is not bool):
                raise ValueError(f"DiT: {key}: expected {known[key].__name__}, found {value!r}")
        try:
            return cls(**values)
        except TypeError as error:  # an unknown key of kv_compression
            raise ValueError(f"DiT: kv_compression: expected layers and factor, found {values['kv_compression']}") from error


PRESETS: dict[str, DiTConfig] = {
    # The small world's, as dit-mini: 64 px as vae-mini's 16 x 8 x 8 latents, a token for 2 x 2; t5-mini's channels.
    "mini": DiTConfig(sample_size=8, patch_size=2, in_channels=16, width=256, depth=6, num_heads=4, caption_width=192),
    "S/2": DiTConfig(width=384, depth=12, num_heads=6),
    "B/2": DiTConfig(width=768, depth=12, num_heads=12),
    "L/2": DiTConfig(width=1024, depth=24, num_heads=16),
    "XL/2": DiTConfig(),
}


def default_patch_size(downsampling: int) -> int:
    """Side of a patch in latent pixels, by the VAE's pixels per latent: 1 from 32 on, where a patch of 2 would span 64 px."""
    return 1 if downsampling >= 32 else 2


@dataclass(frozen=True)
class UnstatedConfig:
    """Settings that an official file does not record; 0: as published, or as the file's pos_embed and y_embedding say."""

    num_heads: int = 0
    """Attention heads; 0: as published for the width."""
    num_classes: int = 0
    """Classes of a class-conditional DiT; 0: rows of the file's class embedding, without the null class."""
    sample_size: int = 0
    """Side of the latents in latent pixels (image side / 8); needed for a file without pos_embed."""
    position_scale: float = 0.0
    """Divisor of the positions; 0: as published."""
    max_caption_tokens: int = 0
    """Longest caption in tokens: 120 (alpha) or 300 (Sigma); needed for a diffusers folder of the transformer alone."""
