"""Frozen autoencoder between images and latents, diffusers' AutoencoderKL or AutoencoderDC. The only home of scale factors.

The network sees latents = (z - shift) * scale of samples z of the encoder's distribution: of about unit variance. The scale
comes from the VAE's own config (0.18215 for sd-vae-ft-ema, PixArt-alpha's; 0.13025 for SDXL's, Sigma's), or was measured for
each channel on the data. AutoencoderDC is deterministic: its latents have no variance.
Shapes: B images, H x W pixels, C latent channels, h x w the sides of the latents.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.errors import NotFiniteOutput, UserError
from foundry.hardware import AutoDtype, resolve_dtype
from foundry.storage.model_files import load_network
from foundry.wording import CHOICE, ModelChoice
from model.encoders.frozen_parts import PUBLISHED, FrozenPart, find_part, fingerprint

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderDC, AutoencoderKL

_AUTOENCODER_KL, _AUTOENCODER_DC = "AutoencoderKL", "AutoencoderDC"
_BLOCKS = {_AUTOENCODER_KL: "block_out_channels", _AUTOENCODER_DC: "encoder_block_out_channels"}
"""Classes of autoencoders that can be read, and the setting of each that has one entry more than the sides are halved."""
_CHANNELS_OF_STABLE_DIFFUSION = 4  # the default scaling factor of AutoencoderKL is that of its VAE


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Settings of the autoencoder."""

    name: str = field(metadata={CHOICE: ModelChoice(real=PUBLISHED[120])})
    """Hub id or folder, also of a whole diffusers pipeline, or `mini`: the small world's toy. There is no default."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    dtype: AutoDtype = "auto"
    """Number format of the autoencoder; auto: bfloat16 if the hardware supports it, otherwise float32. float16 is not offered,
    because SDXL's autoencoder overflows in it."""
    tiled: bool = False
    """Encode and decode in overlapping tiles: little memory at any size, slightly different pixels at the seams."""
    sliced: bool = True
    """Encode and decode one image at a time."""
    tile_px: int | None = None
    """Side of a tile in pixels; default: the size that the autoencoder was trained on."""


@dataclass(frozen=True)
class LatentScale:
    """Scale and shift from the VAE's samples to latents, for all channels or for each. Written with stored features."""

    scaling_factor: float | tuple[float, ...]
    shift_factor: float | tuple[float, ...] = 0.0

    def to_latents(self, samples: "torch.Tensor") -> "torch.Tensor":
        """Scales the autoencoder's samples (B, C, h, w) to the network's latents."""
        return (samples - _by_channel(self.shift_factor, samples)) * _by_channel(self.scaling_factor, samples)

    def from_latents(self, latents: "torch.Tensor") -> "torch.Tensor":
        """Scales the network's latents (B, C, h, w) back to the autoencoder's samples."""
        return latents / _by_channel(self.scaling_factor, latents) + _by_channel(self.shift_factor, latents)


@dataclass(frozen=True)
class LatentDistribution:
    """Mean and log-variance of latents, each (B, C, h, w), not scaled. Stored features hold both."""

    mean: "torch.Tensor"
    log_variance: "torch.Tensor | None"
    """None if the autoencoder is deterministic."""

    def sample(self, scale: LatentScale, *, generator: "torch.Generator | None") -> "torch.Tensor":
        """Latents (B, C, h, w) as the network sees them, drawn in float32; without a generator, those of the mean."""
        import torch

        if generator is None:
            return scale.to_latents(self.mean.float())
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device).to(self.mean.device)
        return self.draw(scale, noise)

    def draw(self, scale: LatentScale, noise: "torch.Tensor") -> "torch.Tensor":
        """Latents (B, C, h, w) as the network sees them, in float32, with standard normal noise of the same shape."""
        if self.log_variance is None:
            return scale.to_latents(self.mean.float())
        deviation = (self.log_variance.float() / 2).exp()
        return scale.to_latents(self.mean.float() + deviation * noise)


class VAE:
    """Autoencoder with the scale of its latents: that of its config, unless another is given. Deterministic."""

    def __init__(
        self, model: "AutoencoderKL | AutoencoderDC", *, part: FrozenPart | None = None, scale: LatentScale | None = None
    ) -> None:
        self.model: Any = model
        self.part = part
        self.own_scale = _own_scale(model.config)
        self.scale = scale or self.own_scale

    @property
    def has_variance(self) -> bool:
        """Whether the latents of an image have a variance."""
        return type(self.model).__name__ == _AUTOENCODER_KL

    @property
    def downsampling(self) -> int:
        """Pixels per latent, along a side."""
        return int(2 ** (len(self.model.config[_BLOCKS[type(self.model).__name__]]) - 1))

    @property
    def latent_channels(self) -> int:
        """Channels C of the latents."""
        return int(self.model.config.latent_channels)

    def encode(self, images: "torch.Tensor") -> LatentDistribution:
        """The distribution of latents of images (B, 3, H, W) in -1..1, in float32.

        Raises UserError if the sides are no multiples of `downsampling`: the encoder would cut pixels off.
        """
        import torch

        height, width = images.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise UserError(f"expected images with sides that {self.downsampling} divides, found {height} x {width} px")
        with torch.inference_mode():
            output = self.model.encode(images.to(self.model.device, self.model.dtype))
        if not self.has_variance:
            return LatentDistribution(output.latent.float().clone(), None)  # (B, C, h, w)
        found = output.latent_dist
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
        """Decodes without the checks of `decode`: NaN stays NaN, and a device is not waited for. For training, which checks
        losses."""
        import torch

        # Scaled in the latents' own precision, float32 as a rule; only then rounded to the autoencoder's.
        samples = self.scale.from_latents(latents).to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            images: torch.Tensor = self.model.decode(samples).sample
        return images.float().clone()

    def fingerprint(self) -> str:
        """Fingerprint of weights and scale, the same for every dtype."""
        return fingerprint(self.model.named_parameters(), also=repr(self.own_scale))

    def tile(self, side_px: int | None = None) -> None:
        """Encode and decode in overlapping tiles of `side_px`, default: the size that the autoencoder was trained on."""
        if side_px is not None:
            if side_px % (4 * self.downsampling):  # the tiles overlap by a quarter
                raise UserError(f"expected tiles whose side {4 * self.downsampling} divides, found {side_px} px")
            if self.has_variance:
                self.model.tile_sample_min_size = side_px
                self.model.tile_latent_min_size = side_px // self.downsampling
            else:
                self.model.enable_tiling(side_px, side_px, side_px * 3 // 4, side_px * 3 // 4)
        self.model.enable_tiling()


def load_vae(config: VAEConfig, *, device: str = "cpu", scale: LatentScale | None = None) -> VAE:
    """Loads the autoencoder; `scale` is one that was measured, in place of its own.

    Raises UserError for a name that leads nowhere, for files of something else, and for a scale of other channels.
    """
    import diffusers
    import torch
    from diffusers.utils import logging

    logging.disable_progress_bar()
    dtype = resolve_dtype(config.dtype, device)
    part = find_part(config.name, "vae", revision=config.revision)
    kind = _class_in(part.folder)
    model = load_network(
        getattr(diffusers, kind).from_pretrained, part.folder, what=f"an {kind}", torch_dtype=getattr(torch, dtype)
    )
    model = model.to(device, memory_format=torch.channels_last).eval()  # bf16 needs channels_last to be quick
    vae = VAE(model, part=part, scale=scale)
    factor = vae.scale.scaling_factor
    if isinstance(factor, tuple) and len(factor) != vae.latent_channels:
        raise UserError(
            f"the scale of the latents is of {len(factor)} channels, the VAE {config.name} has {vae.latent_channels}: give the "
            "VAE of the training"
        )
    if config.sliced:
        vae.model.enable_slicing()
    if config.tiled:
        vae.tile(config.tile_px)
    return vae


def empty_vae(config: VAEConfig) -> VAE:
    """The autoencoder of a name without weights, on torch's meta device: to count what it takes. Raises as load_vae."""
    import diffusers
    import torch

    folder = find_part(config.name, "vae", revision=config.revision).folder
    with torch.device("meta"):
        return VAE(getattr(diffusers, _class_in(folder)).from_config(_read_config(folder / "config.json")).eval())


def read_downsampling(config: VAEConfig) -> int:
    """Pixels per latent, along a side, from the autoencoder's config.json alone."""
    return downsampling_of(find_part(config.name, "vae", revision=config.revision).folder / "config.json")


def downsampling_of(path: Path) -> int:
    """Pixels per latent, along a side, from this config.json. Raises UserError if it is not that of an autoencoder."""
    try:
        values = _read_config(path)
        return int(2 ** (len(values[_BLOCKS[_known(values.get("_class_name", _AUTOENCODER_KL), path)]]) - 1))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not that of an AutoencoderKL or AutoencoderDC, it gives no {error}") from error


def states_scale(folder: Path) -> bool:
    """Whether config.json states the scale of the latents; AutoencoderKL's default is right for four channels alone."""
    values = _read_config(folder / "config.json")
    if {"scaling_factor", "latents_std"} & {name for name, value in values.items() if value is not None}:
        return True
    is_kl = values.get("_class_name", _AUTOENCODER_KL) == _AUTOENCODER_KL
    channels = values.get("latent_channels", _CHANNELS_OF_STABLE_DIFFUSION)
    return bool(is_kl and channels == _CHANNELS_OF_STABLE_DIFFUSION)


def _own_scale(config: Any) -> LatentScale:
    """The scale of a config. Where it gives mean and deviation of each channel, diffusers divides by the deviation too."""
    factor, shift = float(config.scaling_factor), config.get("shift_factor")
    means, deviations = config.get("latents_mean"), config.get("latents_std")
    if means is None or deviations is None:
        return LatentScale(factor, float(shift or 0.0))
    return LatentScale(tuple(factor / float(one) for one in deviations), tuple(float(one) for one in means))


def _class_in(folder: Path) -> str:
    """The class of the autoencoder in a folder. Raises UserError for one that cannot be read."""
    path = folder / "config.json"
    return _known(str(_read_config(path).get("_class_name", _AUTOENCODER_KL)), path)


def _known(kind: str, path: Path) -> str:
    """The class, if it can be read. Raises UserError for another one."""
    if kind not in _BLOCKS:
        raise UserError(f"{path}: expected one of {', '.join(_BLOCKS)}, found the class {kind}: give another VAE")
    return kind


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not that of an AutoencoderKL or AutoencoderDC: {error!r}") from error
    return values if isinstance(values, dict) else {}


def _by_channel(value: float | tuple[float, ...], like: "torch.Tensor") -> "torch.Tensor | float":
    """A factor of all channels, or a tensor (C, 1, 1) of one for each."""
    return value if isinstance(value, float | int) else like.new_tensor(value)[:, None, None]


def to_pixels(images: "torch.Tensor") -> "torch.Tensor":
    """Images (B, 3, H, W) in -1..1 as float32 in 0..1, clamped."""
    return (images / 2 + 0.5).clamp(0, 1)
