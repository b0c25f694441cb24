"""Memory of each phase of generation, computed from configurations alone: nothing is loaded or run.

Weights are counted; activations are those of the real code, run on tensors without data (torch's fake tensors) of two layers,
since a layer's are freed before the next one's. Assumptions, all on the safe side:
- attention does not materialise its matrix (flash or memory-efficient kernels);
- a text encoder that a library quantises has its linear layers at one byte a weight and a float32 scale per row, or at half a
  byte and a float32 scale per block of 64 weights, but `wo` of its MLPs, which transformers leaves alone, and the embeddings in
  bf16; its activations are counted twice, for the 8-bit copies of them, or for the weights that are expanded to multiply;
- int4, of either network, takes half a byte a weight and two bf16 values per group of 64, `wo` included; int8 a byte and a bf16
  scale per row; of the weights the largest layer is expanded, in bf16 and once more while it is;
- the context of CUDA, its libraries' workspaces and the allocator's gaps take OVERHEAD_BYTES.
"""

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foundry.errors import NotOnHub, UserError
from model.encoders.frozen_parts import find_part
from model.encoders.text_encoder import Quantisation
from model.formats.checkpoint import PartConfig, read_pipeline_config, read_transformer_config
from model.formats.json_files import read_json
from model.generation.pipeline_parts import GENERATION_BATCH_TOKENS, RuntimeConfig, Weights, open_control_choice
from model.generation.request import GenerationRequest
from model.generation.resolution import image_size

if TYPE_CHECKING:
    import torch
    from torch import nn

    from model.control.settings import ControlChoice
    from model.dit_config import DiTConfig

OVERHEAD_BYTES = 1_000_000_000
T5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
"""google/t5-v1_1-xxl."""
STABLE_DIFFUSION_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
}
"""Sizes of sd-vae-ft-ema and of SDXL's."""
_EXPANDED_BYTES = 4
"""For each weight of the layer that is expanded: its code, unpacked to a byte and once more while it is, and bf16."""


@dataclass(frozen=True)
class PhaseBytes:
    """Memory of a phase in bytes, without OVERHEAD_BYTES."""

    weights: int
    activations: int

    @property
    def total(self) -> int:
        """With the overhead: what the device must have."""
        return self.weights + self.activations + OVERHEAD_BYTES


def phase_bytes(
    transformer: "DiTConfig",
    *,
    height: int,
    width: int,
    batch_size: int = 1,
    text_encoder: Mapping[str, Any] = T5_XXL,
    vae: Mapping[str, Any] = STABLE_DIFFUSION_VAE,
    quantisation: Quantisation = "bitsandbytes",
    weights: Weights = "full",
    max_batch_tokens: int = GENERATION_BATCH_TOKENS,
    tiled_vae: bool = True,
    copies: int = 0,
) -> dict[str, PhaseBytes]:
    """Bytes of the phases encode, denoise and decode for guided images of height x width px; all in bf16.

    `text_encoder` and `vae` are settings of T5Config and AutoencoderKL; `copies`: copied blocks of a control. Staged, a device
    needs the largest total; else about the sum of all weights with the largest activations.
    """
    downsampling = 2 ** (len(vae["block_out_channels"]) - 1)
    latents = (height // downsampling, width // downsampling)
    return {
        "encode": _encode_bytes(
            text_encoder, quantisation, length=transformer.max_caption_tokens, max_batch_tokens=max_batch_tokens
        ),
        "denoise": _denoise_bytes(transformer, latents, batch_size=2 * batch_size, weights=weights, copies=copies),
        "decode": _decode_bytes(vae, latents, tiled=tiled_vae),
    }


def memory_lines(
    root: Path,
    request: GenerationRequest,
    runtime: RuntimeConfig,
    *,
    text_encoder: str | None = None,
    vae: str | None = None,
    control: "ControlChoice | None" = None,
) -> list[str]:
    """A table of what the images of a request take, and what of it the device must have; reads configurations alone.

    A text encoder or VAE that is unavailable is taken to be T5-XXL, or Stable Diffusion's, and the table says so. Raises
    UserError for sizes that do not fit, and for other kinds of either than T5 and AutoencoderKL.
    """
    pipeline, transformer = read_pipeline_config(root), read_transformer_config(root)
    of_text = _part_config("text_encoder", text_encoder, pipeline.text_encoder)
    of_vae = _part_config("vae", vae, pipeline.vae)
    downsampling = 2 ** (len(of_vae["block_out_channels"]) - 1)
    size = image_size(
        request.height,
        request.width,
        resolution=pipeline.resolution,
        binning=request.resolution_binning,
        multiple=downsampling * transformer.patch_size,
    )
    phases = phase_bytes(
        transformer,
        height=size.height,
        width=size.width,
        batch_size=min(runtime.batch_size, request.num_images),
        quantisation=runtime.quantisation,
        weights=runtime.weights,
        tiled_vae=runtime.tiled_vae,
        text_encoder=of_text,
        vae=of_vae,
        copies=0 if (opened := open_control_choice(control, root)) is None else opened[0].num_blocks,
    )
    assumed = ["T5-XXL"] * (of_text is T5_XXL) + ["Stable Diffusion's VAE"] * (of_vae is STABLE_DIFFUSION_VAE)
    return [
        f"{size.height} x {size.width} px, computed for bfloat16, in GB:",
        f"  {'':<8}{'weights':>9}{'activations':>13}",
        *(f"  {name:<8}{one.weights / 1e9:>9.2f}{one.activations / 1e9:>13.2f}" for name, one in phases.items()),
        *([f"  assumed: {' and '.join(assumed)}, since pipeline.json names no files that are here"] if assumed else []),
        _needed(phases, runtime),
    ]


def _needed(phases: Mapping[str, PhaseBytes], runtime: RuntimeConfig) -> str:
    """The line that says what the device must have."""
    if runtime.text_encoder_device not in (None, runtime.device):
        phases = {name: one for name, one in phases.items() if name != "encode"}
    if runtime.staged:
        name, largest = max(phases.items(), key=lambda item: item[1].total)
        return (
            f"staged, the device needs {largest.total / 1e9:.2f} GB, for {name}; {OVERHEAD_BYTES / 1e9:g} GB of it is overhead"
        )
    total = sum(one.weights for one in phases.values()) + max(one.activations for one in phases.values()) + OVERHEAD_BYTES
    return f"all parts at once, the device needs {total / 1e9:.2f} GB; {OVERHEAD_BYTES / 1e9:g} GB of it is overhead"


def _part_config(kind: Literal["text_encoder", "vae"], name: str | None, stored: PartConfig) -> Mapping[str, Any]:
    """The settings of a text encoder or VAE; the default one's where nothing is named, or it is not on this machine."""
    default: Mapping[str, Any] = T5_XXL if kind == "text_encoder" else STABLE_DIFFUSION_VAE
    if not (name or stored.name):
        return default
    try:
        folder = find_part(name or stored.name, kind, revision=None if name else stored.revision).folder
    except NotOnHub:
        return default
    values = read_json(folder / "config.json", missing=f"{folder / 'config.json'} is missing: fetch it again")
    found = values.get("model_type") if kind == "text_encoder" else values.get("_class_name")
    if found not in ("t5", "AutoencoderKL"):
        raise UserError(f"the memory of {found} ({folder}) is not computed: T5's and AutoencoderKL's alone is")
    return values


def _encode_bytes(config: Mapping[str, Any], quantisation: Quantisation, *, length: int, max_batch_tokens: int) -> PhaseBytes:
    import torch
    from transformers import T5Config, T5EncoderModel

    def build(num_layers: int) -> T5EncoderModel:
        return T5EncoderModel(T5Config(**{**config, "num_layers": num_layers})).to(torch.bfloat16).eval()

    with torch.device("meta"):
        whole, short = build(config["num_layers"]), build(2)
    weights = largest = 0
    for name, parameter in whole.named_parameters():
        if name == "encoder.embed_tokens.weight":  # tied to `shared`, in a loaded model
            continue
        is_linear = parameter.ndim == 2 and name != "shared.weight" and "relative_attention_bias" not in name
        quantised = is_linear and (quantisation == "int4" or (quantisation != "none" and ".wo." not in name))
        weights += _quantised_bytes(parameter, quantisation) if quantised else 2 * parameter.numel()
        largest = max(largest, parameter.numel() if is_linear else 0)
    batch = max_batch_tokens // length

    def forward() -> None:
        tokens = torch.empty(batch, length, dtype=torch.long)
        short(input_ids=tokens, attention_mask=torch.empty(batch, 1, length, length, dtype=torch.bfloat16))

    activations = peak_bytes(short, forward)
    if quantisation == "int4":
        activations += _EXPANDED_BYTES * largest
    elif quantisation != "none":
        activations *= 2
    return PhaseBytes(weights=weights, activations=activations)


def _quantised_bytes(parameter: "torch.Tensor", quantisation: Quantisation | Weights) -> int:
    if quantisation == "int4":
        return parameter.numel() // 2 + 2 * 2 * parameter.numel() // 64
    if quantisation == "int8":
        return parameter.numel() + 2 * len(parameter)
    if quantisation == "bitsandbytes_4bit":
        return parameter.numel() // 2 + 4 * parameter.numel() // 64
    return parameter.numel() + 4 * len(parameter)


def _denoise_bytes(
    config: "DiTConfig", latents: tuple[int, int], *, batch_size: int, weights: Weights, copies: int
) -> PhaseBytes:
    import torch

    from model.control.control import control_blocks, control_sizes
    from model.dit import DiT, KeysValues, PreparedCaptions
    from model.layers.matrices import block_matrices

    def build(depth: int) -> DiT:
        compression = dataclasses.replace(config.kv_compression, layers=())  # it only saves memory
        return DiT(dataclasses.replace(config, depth=depth, kv_compression=compression)).to("meta", torch.bfloat16).eval()

    with torch.device("meta"):
        whole, short = build(config.depth), build(2)
        short.control_blocks = control_blocks(short.config, min(copies, 1)).to(torch.bfloat16)

    def forward() -> None:
        shape = (batch_size, config.max_caption_tokens, config.num_heads, config.head_width)
        bias = torch.empty(batch_size, 1, 1, config.max_caption_tokens, dtype=torch.bfloat16)
        keys = torch.empty(shape, dtype=torch.bfloat16)
        micro, shown = config.micro_conditioning, (batch_size, config.in_channels, *latents)
        of_block = KeysValues(keys, keys, bias)
        short(
            torch.empty(shown),
            torch.empty(batch_size),
            captions=PreparedCaptions(blocks=(of_block,) * 2, control_blocks=(of_block,)),
            control=torch.empty(shown) if copies else None,
            sizes=torch.empty(batch_size, 2) if micro else None,
            aspect_ratios=torch.empty(batch_size, 1) if micro else None,
        )

    keys_values = 2 * 2 * batch_size * config.max_caption_tokens * config.width * (config.depth + copies)
    matrices = () if weights == "full" else block_matrices(whole)
    stored = [
        (_quantised_bytes(parameter, weights) if name in matrices else 2 * parameter.numel())
        for name, parameter in whole.named_parameters()
    ]
    stored += [2 * control_sizes(config, copies).num_parameters] if copies else []
    expanded = _EXPANDED_BYTES * max((whole.get_parameter(name).numel() for name in matrices), default=0)
    # The scheduler keeps latents and predictions of two steps, in float32.
    scheduler = 8 * 4 * batch_size * config.in_channels * latents[0] * latents[1]
    return PhaseBytes(weights=sum(stored), activations=peak_bytes(short, forward) + keys_values + scheduler + expanded)


def _decode_bytes(config: Mapping[str, Any], latents: tuple[int, int], *, tiled: bool) -> PhaseBytes:
    import torch
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(config)).bfloat16().eval()
    tile = vae.tile_latent_min_size
    sides = [min(side, tile) for side in latents] if tiled else list(latents)
    activations = peak_bytes(vae, lambda: vae.decode(torch.empty(1, vae.config.latent_channels, *sides, dtype=torch.bfloat16)))
    if tiled:  # all tiles wait for each other, overlapping by a quarter; then rows and the whole are put together
        downsampling = 2 ** (len(config["block_out_channels"]) - 1)
        num_tiles = [-(-side // (tile * 3 // 4)) for side in latents]
        activations += 3 * 4 * 3 * num_tiles[0] * num_tiles[1] * (tile * downsampling) ** 2
    return PhaseBytes(weights=sum(2 * parameter.numel() for parameter in vae.parameters()), activations=activations)


def peak_bytes(model: "nn.Module", forward: Callable[[], object]) -> int:
    """The most bytes that tensors other than the model's weights take at once during `forward`, which makes its own inputs."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.no_grad():
        replace_tensors(model, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        counter = storage_counter({tensor.untyped_storage()._cdata for tensor in model.state_dict().values()})
        with counter:
            forward()
    return int(counter.peak)


def replace_tensors(model: "nn.Module", make: "Callable[[torch.Tensor], torch.Tensor]") -> None:
    """Replaces all parameters and buffers of a model."""
    from torch import nn

    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(make(parameter), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, make(buffer))


def storage_counter(known: set[int]) -> Any:
    """A mode that counts the bytes of storages from when an operation makes them until they are freed, but not `known` ones."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    class Counter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.peak = 0
            self._live: dict[int, int] = {}

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for tensor in tree_iter(result):
                if isinstance(tensor, torch.Tensor):
                    self._count(tensor.untyped_storage())
            return result

        def _count(self, storage: Any) -> None:
            if storage._cdata not in known and storage._cdata not in self._live:
                self._live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, storage._cdata, None)
                self.peak = max(self.peak, sum(self._live.values()))

    return Counter()
