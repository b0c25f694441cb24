"""Frozen autoencoder between images and latents, diffusers' AutoencoderKL. The only home of scale factors.

The network sees latents = (z - shift) * scale of samples z of the encoder's distribution: of about unit variance. The scale
comes from the VAE's own config: 0.18215 for sd-vae-ft-ema (PixArt-alpha), 0.13025 for SDXL's (Sigma).
Shapes: B images, H x W pixels, C latent channels, h x w the sides of the latents.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.errors import NotFiniteOutput, UserError
from foundry.hardware import AutoDtype, resolve_dtype
from foundry.storage.model_files import load_network
from foundry.wording import CHOICE, ModelChoice
from model.encoders.frozen_parts import PUBLISHED, FrozenPart, find_part, fingerprint

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Settings of the autoencoder."""

    name: str = field(metadata={CHOICE: ModelChoice(real=PUBLISHED[120])})
    """Hub id or folder, also of a whole diffusers pipeline, or `mini`: the small world's toy. There is no default."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    dtype: AutoDtype = "auto"
    """Number format of the autoencoder; auto: bfloat16 where the hardware has it, else float32. SDXL's overflows
    in float16, which is therefore no choice."""
    tiled: bool = False
    """Encode and decode in overlapping tiles: little memory at any size, slightly different pixels at the seams."""
    sliced: bool = True
    """Encode and decode one image at a time."""
    tile_px: int | None = None
    """Side of a tile in pixels; default: the size that the autoencoder was trained on."""


@dataclass(frozen=True)
class LatentScale:
    """Scale and shift from the VAE's samples to latents. Written with stored features."""

    scaling_factor: float
    shift_factor: float = 0.0

    def to_latents(self, samples: "torch.Tensor") -> "torch.Tensor":
        """From the autoencoder's samples to the network's latents."""
        return (samples - self.shift_factor) * self.scaling_factor

    def from_latents(self, latents: "torch.Tensor") -> "torch.Tensor":
        """From the network's latents to the autoencoder's samples."""
        return latents / self.scaling_factor + self.shift_factor


@dataclass(frozen=True)
class LatentDistribution:
    """Mean and log-variance of latents, each (B, C, h, w), not scaled. Stored features hold both."""

    mean: "torch.Tensor"
    log_variance: "torch.Tensor"

    def sample(self, scale: LatentScale, *, generator: "torch.Generator | None") -> "torch.Tensor":
        """Latents (B, C, h, w) as the network sees them, drawn in float32; without a generator, those of the mean."""
        import torch

        if generator is None:
            return scale.to_latents(self.mean.float())
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device).to(self.mean.device)
        return self.draw(scale, noise)

    def draw(self, scale: LatentScale, noise: "torch.Tensor") -> "torch.Tensor":
        """Latents (B, C, h, w) as the network sees them, in float32, with standard normal noise of the same shape."""
        deviation = (self.log_variance.float() / 2).exp()
        return scale.to_latents(self.mean.float() + deviation * noise)


class VAE:
    """AutoencoderKL with its scale. Deterministic."""

    def __init__(self, model: "AutoencoderKL", *, part: FrozenPart | None = None) -> None:
        self.model = model
        self.part = part

    @property
    def scale(self) -> LatentScale:
        """Scale of the latents, from the autoencoder's config."""
        return LatentScale(float(self.model.config.scaling_factor), float(self.model.config.shift_factor or 0.0))

    @property
    def downsampling(self) -> int:
        """Pixels per latent, along a side."""
        return int(2 ** (len(self.model.config.block_out_channels) - 1))

    @property
    def latent_channels(self) -> int:
        """Channels C of the latents."""
        return int(self.model.config.latent_channels)

    def encode(self, images: "torch.Tensor") -> LatentDistribution:
        """The distribution of latents of images (B, 3, H, W) in -1..1, in float32.

        Raises UserError where the sides are no multiples of `downsampling`: the encoder would cut pixels off.
        """
        import torch

        height, width = images.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise UserError(f"expected images with sides that {self.downsampling} divides, found {height} x {width} px")
        with torch.inference_mode():
            found = self.model.encode(images.to(self.model.device, self.model.dtype)).latent_dist
        # Copies outside inference mode, so that a trainer may use them under autograd; diffusers has clamped the log-variance.
        return LatentDistribution(found.mean.float().clone(), found.logvar.float().clone())  # (B, C, h, w) each

    def decode(self, latents: "torch.Tensor") -> "torch.Tensor":
        """Images (B, 3, H, W) in float32, nominally in -1..1 and not clamped, from the network's latents (B, C, h, w).

        Raises UserError for latents of another shape, NotFiniteOutput where the latents or the images are NaN or infinite.
        """

        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise UserError(f"expected latents (B, {self.latent_channels}, h, w), found {tuple(latents.shape)}")
        if not bool(latents.isfinite().all()):
            raise NotFiniteOutput("the latents to decode are NaN or infinite: the network that drew them is damaged")
        images = self.reconstruct(latents)
        if not bool(images.isfinite().all()):
            dtype = str(self.model.dtype).removeprefix("torch.")
            name = f" {self.part.name}" if self.part else ""
            cause = "" if dtype == "float32" else f", or {dtype} overflows; try dtype float32"
            raise NotFiniteOutput(
                f"the VAE{name} decodes finite latents to NaN or infinity in {dtype}: its weights are damaged{cause}; "
                "fetch it again, or give another VAE"
            )
        return images

    def reconstruct(self, latents: "torch.Tensor") -> "torch.Tensor":
        """As `decode`, without its checks: NaN stays NaN, and a device is not waited for. For training, which checks losses."""
        import torch

        # Scaled in the latents' own precision, float32 as a rule; only then rounded to the autoencoder's.
        samples = self.scale.from_latents(latents).to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            images: torch.Tensor = self.model.decode(samples).sample
        return images.float().clone()

    def fingerprint(self) -> str:
        """Fingerprint of weights and scale, the same for every dtype."""
        return fingerprint(self.model.named_parameters(), also=repr(self.scale))

    def tile(self, side_px: int | None = None) -> None:
        """Encode and decode in overlapping tiles of `side_px`, default: the size that the autoencoder was trained on."""
        if side_px is not None:
            if side_px % (4 * self.downsampling):  # the tiles overlap by a quarter
                raise UserError(f"expected tiles whose side {4 * self.downsampling} divides, found {side_px} px")
            self.model.tile_sample_min_size = side_px
            self.model.tile_latent_min_size = side_px // self.downsampling
        self.model.enable_tiling()


def load_vae(config: VAEConfig, *, device: str = "cpu") -> VAE:
    """Loads the autoencoder. Raises UserError for a name that leads nowhere and for files of something else."""
    import torch
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.disable_progress_bar()
    dtype = resolve_dtype(config.dtype, device)
    part = find_part(config.name, "vae", revision=config.revision)
    number_format = getattr(torch, dtype)
    model = load_network(AutoencoderKL.from_pretrained, part.folder, what="an AutoencoderKL", torch_dtype=number_format)
    vae = VAE(model.to(device, memory_format=torch.channels_last).eval(), part=part)  # bf16 needs channels_last to be quick
    if config.sliced:
        vae.model.enable_slicing()
    if config.tiled:
        vae.tile(config.tile_px)
    return vae


def read_downsampling(config: VAEConfig) -> int:
    """Pixels per latent, along a side, from the autoencoder's config.json alone."""
    return downsampling_of(find_part(config.name, "vae", revision=config.revision).folder / "config.json")


def downsampling_of(path: Path) -> int:
    """Pixels per latent, along a side, from this config.json. Raises UserError where it is not that of an AutoencoderKL."""
    try:
        channels = json.loads(path.read_text(encoding="utf-8"))["block_out_channels"]
        return int(2 ** (len(channels) - 1))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not that of an AutoencoderKL, it gives no block_out_channels: {error!r}") from error


def to_pixels(images: "torch.Tensor") -> "torch.Tensor":
    """Images (B, 3, H, W) in -1..1 as float32 in 0..1, clamped."""
    return (images / 2 + 0.5).clamp(0, 1)
