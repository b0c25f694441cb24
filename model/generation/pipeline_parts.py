"""Parts of a pipeline: loading and lifetime of the network, text encoder and VAE of a checkpoint.

Staged, each is read when it is needed and dropped when it has done its work, so that memory holds one at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, get_args

from foundry.errors import UserError
from foundry.hardware import AUTO, AutoDtype, own_device, resolve_dtype
from model.dit_config import FewSteps
from model.encoders.text_encoder import Quantisation, TextEncoder, TextEncoderConfig, load_text_encoder
from model.encoders.vae import VAE, VAEConfig, load_vae, read_downsampling
from model.formats.checkpoint import (
    PartConfig,
    PipelineConfig,
    check_fingerprint,
    load_checkpoint,
    read_pipeline_config,
    read_transformer_config,
)

if TYPE_CHECKING:
    from model.control.control import Control
    from model.control.settings import ControlChoice
    from model.dit import DiT
    from model.lora.adapter import ScaledAdapter
    from model.lora.settings import LoraChoice

PartT = TypeVar("PartT")
Weights = Literal["full", "int8", "int4"]

GENERATION_BATCH_TOKENS = 2048
"""Caption tokens that are encoded together when generating: few, since they come on top of the text encoder's weights."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Devices, number formats and memory of a pipeline. None changes the images, beyond rounding, but fewer bits of weights."""

    device: str = "auto"
    """Device: cuda, cpu, …; auto: cuda if available."""
    dtype: AutoDtype = "auto"
    """Number format of all computation; auto: bfloat16 if the hardware supports it, otherwise float32."""
    text_encoder_dtype: AutoDtype | None = None
    """Number format of the text encoder; default: `dtype`, and if that is auto, the one for its own device."""
    staged: bool = False
    """Load text encoder, network and VAE one after the other, each again when needed: XL at 1024 px in 8 GB."""
    text_encoder_device: str | None = None
    """Device of the text encoder; cpu keeps the largest part off the GPU; default: `device`."""
    quantisation: Quantisation = "none"
    """Quantisation of the text encoder: int4, or by a library bitsandbytes, torchao (8 bits) or bitsandbytes_4bit."""
    weights: Weights = "full"
    """Number format of the network's weights: full (`dtype`), int8 or int4: a half or about a quarter of bfloat16's memory."""
    tiled_vae: bool = False
    """Decode in tiles: little memory at any size, slightly different pixels at the seams."""
    batch_size: int = 4
    """Number of images that are drawn together."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError("batch_size must be 1 or more")
        if self.weights not in get_args(Weights):
            raise ValueError(f"weights must be one of {', '.join(get_args(Weights))}, found {self.weights}")

    def resolved(self) -> "RuntimeConfig":
        """The same without `auto`. Raises UserError for a device that this machine does not have."""
        import torch

        device = own_device() if self.device == "auto" else self.device
        for name in (device, self.text_encoder_device or device):
            try:
                torch.empty(0, device=name)
            except (RuntimeError, AssertionError) as error:
                raise UserError(f"device {name}: {str(error).splitlines()[0]}") from error
        text_encoder_device = self.text_encoder_device or device
        return replace(
            self,
            device=device,
            dtype=resolve_dtype(self.dtype, device),
            text_encoder_dtype=resolve_dtype(self.text_encoder_dtype or self.dtype, text_encoder_device),
            text_encoder_device=text_encoder_device,
        )


class Part(Generic[PartT]):
    """Part of a pipeline that is loaded when it is first used, and kept or dropped."""

    def __init__(self, load: Callable[[], PartT], *, keep: bool) -> None:
        self._load = load
        self._keep = keep
        self._loaded: PartT | None = None

    def get(self) -> PartT:
        """The part. Where it is not kept, it lives as long as the caller holds it."""
        part = self._loaded if self._loaded is not None else self._load()
        if self._keep:
            self._loaded = part
        return part


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Network, text encoder and VAE of a pipeline."""

    transformer: "Part[DiT]"
    text_encoder: Part[TextEncoder]
    vae: Part[VAE]
    downsampling: int
    """Pixels per latent, along a side: the VAE's, known before it is loaded."""
    few_steps: FewSteps | None = None
    """Distillation of an adapter that is added to the network; none: as pipeline.json says."""
    control: "str | None" = None
    """Control images that the network has a control for, as edges/1, "" if that is unknown; none: it has no control."""


def checkpoint_parts(
    root: Path,
    runtime: RuntimeConfig,
    *,
    text_encoder: str | None = None,
    vae: str | None = None,
    lora: "Sequence[LoraChoice]" = (),
    control: "ControlChoice | None" = None,
) -> Parts:
    """The parts of a checkpoint, none loaded yet; `lora` is added to the network, `control` put into it; both are read here.

    `text_encoder` and `vae` say where else they are: they must be the same.
    """
    config, transformer_config = read_pipeline_config(root), read_transformer_config(root)
    assert runtime.dtype != AUTO, "give RuntimeConfig.resolved()"
    text_encoder_config = TextEncoderConfig(
        name=text_encoder or config.text_encoder.name,
        revision=None if text_encoder else config.text_encoder.revision,
        dtype=runtime.text_encoder_dtype or runtime.dtype,
        quantisation=runtime.quantisation,
        cleaning=config.caption_cleaning,
        template=config.caption_template,
        hidden_state=config.caption_hidden_state,
        max_caption_tokens=transformer_config.max_caption_tokens,
        max_batch_tokens=max(GENERATION_BATCH_TOKENS, transformer_config.max_caption_tokens),
    )
    vae_config = VAEConfig(
        name=vae or config.vae.name,
        revision=None if vae else config.vae.revision,
        dtype=runtime.dtype,
        tiled=runtime.tiled_vae,
    )
    keep = not runtime.staged
    adapters = open_loras(lora, root)
    opened = open_control_choice(control, root)
    return Parts(
        transformer=Part(lambda: _load_transformer(root, runtime, adapters, opened), keep=keep),
        text_encoder=Part(lambda: _load_text_encoder(text_encoder_config, config.text_encoder, runtime), keep=keep),
        vae=Part(lambda: _load_vae(vae_config, config, runtime), keep=keep),
        downsampling=read_downsampling(vae_config),
        few_steps=few_steps_of(adapters),
        control=None if opened is None else opened[0].condition,
    )


def few_steps_of(adapters: "Sequence[ScaledAdapter]") -> FewSteps | None:
    """The distillation among adapters of a network. Raises UserError for several that differ."""
    found = {one.adapter.few_steps: one.source for one in adapters if one.adapter.few_steps is not None}
    if len(found) > 1:
        raise UserError(
            f"{' and '.join(found.values())} are distilled to few steps differently: give one of them", setting="lora"
        )
    return next(iter(found), None)


def open_loras(lora: "Sequence[LoraChoice]", root: Path) -> "Sequence[ScaledAdapter]":
    """The adapters of a checkpoint. Raises UserError for what is missing, or is one of another network."""
    from model.formats.adapters import open_adapters

    return open_adapters(lora, root)


def open_control_choice(control: "ControlChoice | None", root: Path) -> "tuple[Control, float] | None":
    """The control of a checkpoint and its scale. Raises UserError for what is missing, or is one of another network."""
    if control is None:
        return None
    from model.formats.controls import open_control

    return open_control(control, root), control.scale


def _load_transformer(
    root: Path, runtime: RuntimeConfig, adapters: "Sequence[ScaledAdapter]", control: "tuple[Control, float] | None"
) -> "DiT":
    import torch

    from model.control.control import put_control
    from model.layers.quantised import quantise_blocks

    dtype = getattr(torch, runtime.dtype)
    if runtime.weights == "full":
        network = load_checkpoint(root, dtype=dtype, device=runtime.device, adapters=adapters)[0]
    else:
        network = load_checkpoint(root, adapters=adapters)[0]  # quantised before it goes to the device: never all of it there
        quantise_blocks(network, runtime.weights)
        network = network.to(device=runtime.device, dtype=dtype)
    if control is not None:
        put_control(network, control[0], scale=control[1])
    return network


def _load_text_encoder(config: TextEncoderConfig, expected: PartConfig, runtime: RuntimeConfig) -> TextEncoder:
    encoder = load_text_encoder(config, device=runtime.text_encoder_device or runtime.device)
    check_fingerprint("text_encoder", expected, name=config.name, found=encoder.fingerprint())
    return encoder


def _load_vae(config: VAEConfig, pipeline: PipelineConfig, runtime: RuntimeConfig) -> VAE:
    vae = load_vae(config, device=runtime.device, scale=pipeline.latent_scale)
    check_fingerprint("vae", pipeline.vae, name=config.name, found=vae.fingerprint())
    return vae
