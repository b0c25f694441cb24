"""Checkpoint folder: `transformer/` (config.json, safetensors with official parameter names) and `pipeline.json`.

That of a LoRA training holds transformer/lora.safetensors in place of the weights: the adapter, which names the checkpoint that
it is added to when it is read. That of a control training holds transformer/control.safetensors: no network by itself.
pipeline.json holds all else that generating needs: the objective, the resolution, which text encoder and VAE with their
fingerprints, how captions are cleaned, the licence. Loads are strict. A folder appears whole or not at all.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from foundry.errors import UserError
from foundry.storage.folder import new_folder
from model.dit_config import DiTConfig, FewSteps, RoutedBlocks
from model.encoders.caption_template import PLACE
from model.encoders.frozen_parts import PRETRAINED, UNNAMED, fingerprint
from model.encoders.text_encoder import Cleaning
from model.encoders.vae import LatentScale
from model.formats.json_files import read_part, strict, write_json

if TYPE_CHECKING:
    import torch

    from model.control.control import Control
    from model.dit import DiT
    from model.lora.adapter import Adapter, ScaledAdapter

FORMAT_VERSION = 1
TRANSFORMER = "transformer"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ADAPTER = "lora.safetensors"
CONTROL = "control.safetensors"
PIPELINE = "pipeline.json"
MINI = "mini"
MINI_FEW_STEPS = "mini-few-steps"
_NULL_CAPTION = "y_embedder.y_embedding"
_TYPES = {
    "resolution": int,
    "objective_settings": dict,
    "latent_scaling": list,
    "latent_shift": list,
    "caption_hidden_state": int,
    "share": float,
    "num_inference_steps": int,
    "guidance_scale": float,
    "before": int,
    "after": int,
}
"""Types of fields in JSON that are no text."""
_ADDED_LATER = ("latent_scaling", "latent_shift", "caption_template", "caption_hidden_state", "routed", "rewriter", "few_steps")
"""Fields of pipeline.json that earlier versions do not know: without them, they read what is written here."""


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """Frozen part that the checkpoint was trained with."""

    name: str = UNNAMED
    """Hub id, folder or `mini`, as frozen_parts.py finds it. Empty: not known, or none (networks of classes read no text)."""
    revision: str | None = None
    """Commit of a hub model."""
    fingerprint: str = ""
    """Fingerprint of its weights; a part with another one is refused. Empty: unknown (an imported checkpoint), unchecked."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Content of a checkpoint's pipeline.json."""

    objective: str
    """Objective: diffusion or rectified_flow, the name of a class in model/diffusion.py."""
    resolution: int
    """Side of the square images that it was trained on last, in pixels."""
    objective_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of that class; empty: its defaults."""
    text_encoder: PartConfig = field(default_factory=PartConfig)
    """Text encoder of the captions."""
    vae: PartConfig = field(default_factory=PartConfig)
    """VAE between images and latents."""
    latent_scaling: tuple[float, ...] = ()
    """Scaling factor of each latent channel, measured on the features of the training; empty: as the VAE's config says."""
    latent_shift: tuple[float, ...] = ()
    """Shift of each latent channel likewise."""
    rewriter: PartConfig = field(default_factory=PartConfig)
    """Rewriter of prompts for this network, if there is one; it draws nothing by itself."""
    caption_cleaning: Cleaning = "lower"
    """Cleaning of captions in training: see TextEncoderConfig."""
    caption_template: str = PLACE
    """Text around a caption in training, that of a chat template included: see TextEncoderConfig."""
    caption_hidden_state: int = -1
    """Hidden state of the text encoder that training read, counted from the end."""
    licence: str = ""
    """Licence of the weights and terms of their training data."""
    routed: RoutedBlocks | None = None
    """Blocks that training led a part of the tokens past and back (TREAD), as guidance by routing does again; none: no such."""
    few_steps: FewSteps | None = None
    """Few steps that the network was distilled to; none: it was not."""

    def __post_init__(self) -> None:
        for name in ("latent_scaling", "latent_shift"):  # JSON has lists
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if len(self.latent_scaling) != len(self.latent_shift):
            raise ValueError("latent_scaling and latent_shift: expected as many values of one as of the other")
        if self.caption_template.count(PLACE) != 1:
            raise ValueError(f"caption_template: expected a text that has {PLACE} once, found {self.caption_template!r}")
        expected = get_args(Cleaning)
        if self.caption_cleaning not in expected:
            raise ValueError(f"caption_cleaning: expected one of {', '.join(expected)}, found {self.caption_cleaning!r}")

    @property
    def latent_scale(self) -> LatentScale | None:
        """The measured scale of the latents; none: the VAE's own."""
        return LatentScale(self.latent_scaling, self.latent_shift) if self.latent_scaling else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives the same configuration back. What was added later is left out at its default."""
        values = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        for one in dataclasses.fields(self):
            default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
            if one.name in _ADDED_LATER and getattr(self, one.name) == default:
                del values[one.name]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PipelineConfig":
        """Raises ValueError for what is not a configuration of this version."""
        rest = dict(values)
        if (version := rest.pop("format_version", None)) != FORMAT_VERSION:
            raise ValueError(f"expected format_version {FORMAT_VERSION}, found {version}")
        names = ("text_encoder", "vae", "rewriter")
        parts: dict[str, Any] = {name: strict(PartConfig, rest.pop(name, {}), types=_TYPES) for name in names}
        for name, kind in (("routed", RoutedBlocks), ("few_steps", FewSteps)):
            if name in rest:
                parts[name] = strict(kind, rest.pop(name), types=_TYPES)
        config: PipelineConfig = strict(cls, rest | parts, types=_TYPES)
        return config


def load_checkpoint(
    folder: str | Path,
    *,
    dtype: "torch.dtype | None" = None,
    device: str = "cpu",
    adapters: "Sequence[ScaledAdapter]" = (),
) -> "tuple[DiT, PipelineConfig]":
    """The network in evaluation mode, in `dtype` (default: as stored), and its pipeline.json. `mini` is the shipped one.

    `adapters` are added to its weights. Raises UserError, one line, for what is missing, cut off or foreign.
    """
    import torch

    from model.dit import DiT

    root = find_checkpoint(folder)
    config = read_pipeline_config(root)
    with torch.device("meta"):
        transformer = DiT(read_transformer_config(root))
    tensors = _checkpoint_tensors(root, transformer.state_dict())
    if adapters:
        from model.lora.adapter import with_adapters

        tensors = with_adapters(tensors, adapters, dtype=dtype)
    transformer.load_state_dict(tensors, strict=True, assign=True)
    return transformer.to(device=device, dtype=dtype).eval(), config


def _checkpoint_tensors(root: Path, expected: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The tensors of these names and shapes in a checkpoint; of a LoRA's, those of its base with the adapter added."""
    check_is_network(root)
    path = root / TRANSFORMER / WEIGHTS
    if is_adapted(root):
        from model.lora.adapter import ScaledAdapter, with_adapters

        adapter, path = read_own_adapter(root), root / TRANSFORMER / ADAPTER
        network = load_checkpoint(base_of(root, adapter))[0]
        tensors = with_adapters(network.state_dict(), [ScaledAdapter(adapter=adapter, source=str(path))])
        if (null := tensors.get(_NULL_CAPTION)) is not None and null.shape != expected[_NULL_CAPTION].shape:
            tensors[_NULL_CAPTION] = null.new_zeros(expected[_NULL_CAPTION].shape)  # never read, of another longest caption
    else:
        tensors = _read_tensors(path)
    check_tensors(tensors, expected, complaint=f"{path} does not fit its config.json")
    return tensors


def is_adapted(root: Path) -> bool:
    """Whether a checkpoint holds a LoRA and not a whole network."""
    return (root / TRANSFORMER / ADAPTER).is_file()


def is_control(root: Path) -> bool:
    """Whether a checkpoint holds a control and not a network."""
    return (root / TRANSFORMER / CONTROL).is_file()


def check_is_network(root: Path) -> None:
    """Raises UserError for a checkpoint that holds a control."""
    if is_control(root):
        base = read_own_control(root).base
        draw = f"python -m model.generate --checkpoint {base} --control {root}"
        export = f"python -m model.convert --source native --target controlnet {root} OUT"
        raise UserError(
            f"{root} is a control of {base}, neither a network nor a LoRA: {draw} draws with it, and {export} exports it"
        )


def read_own_control(root: Path) -> "Control":
    """The control of a control's checkpoint. Raises UserError if it cannot be read."""
    from model.control.file import read_control

    return read_control(root / TRANSFORMER / CONTROL)


def read_own_adapter(root: Path) -> "Adapter":
    """The adapter of a LoRA's checkpoint. Raises UserError if it cannot be read."""
    from model.lora.file import read_adapter

    return read_adapter(root / TRANSFORMER / ADAPTER)


def base_of(root: Path, part: "Adapter | Control") -> Path:
    """The checkpoint that a LoRA or a control is added to. Raises UserError if it is missing or another one."""
    try:
        base = find_checkpoint(part.base)
    except UserError as error:
        raise UserError(
            f"{root} is a {part.what} of {part.base}, which does not exist ({error}): restore it, or name the network as the "
            f"checkpoint and {root} as its {part.what}"
        ) from error
    check_base(part, checkpoint_fingerprint(base), source=str(root), base=str(base))
    return base


def check_base(part: "Adapter | Control", found: str, *, source: str, base: str) -> None:
    """Raises UserError if a LoRA or a control was trained on other weights than those with the fingerprint `found`."""
    if part.base_fingerprint and part.base_fingerprint != found:
        raise UserError(
            f"{source} is a {part.what} of {part.base or 'a network'} with the fingerprint {part.base_fingerprint}, and {base} "
            f"has {found}: give the network that it was trained on",
            setting=part.what.lower(),
        )


def save_checkpoint(folder: str | Path, transformer: "DiT", config: PipelineConfig) -> Path:
    """Writes transformer/ and pipeline.json, the folder at once where it is new, pipeline.json last where it is not.

    Raises UserError if the folder already holds a checkpoint. What else lies in it (training/) stays.
    """
    from safetensors.torch import save_file

    def write(transformer_folder: Path) -> None:
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in transformer.state_dict().items()}
        save_file(tensors, transformer_folder / WEIGHTS, metadata={"format": "pt"})

    return _save(Path(folder), write, transformer.config, config)


def save_adapter_checkpoint(folder: str | Path, adapter: "Adapter", network: DiTConfig, config: PipelineConfig) -> Path:
    """Writes the checkpoint of a LoRA; `network` is the whole one's configuration. Otherwise as save_checkpoint does."""
    from model.lora.file import write_adapter

    return _save(Path(folder), lambda transformer: write_adapter(transformer / ADAPTER, adapter), network, config)


def save_control_checkpoint(folder: str | Path, control: "Control", network: DiTConfig, config: PipelineConfig) -> Path:
    """Writes the checkpoint of a control; `network` is the configuration of its base. Otherwise as save_checkpoint does."""
    from model.control.file import write_control

    return _save(Path(folder), lambda transformer: write_control(transformer / CONTROL, control), network, config)


def _save(target: Path, write_weights: Callable[[Path], None], network: DiTConfig, config: PipelineConfig) -> Path:
    if (target / PIPELINE).exists() or (target / TRANSFORMER).exists():
        raise UserError(f"{target} already holds a checkpoint: give another folder, or remove it first")
    with new_folder(target) as partial:
        (partial / TRANSFORMER).mkdir()
        write_weights(partial / TRANSFORMER)
        write_json(partial / TRANSFORMER / "config.json", network.to_dict())
        write_json(partial / PIPELINE, config.to_dict())
    return target


def mini_checkpoint() -> Path:
    """Folder of the shipped network of the last stage, which may be missing; those of earlier stages are next to it."""
    return PRETRAINED / "dit-mini" / "aesthetic"


def is_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint is there, without a look inside."""
    return (folder / PIPELINE).is_file()


def find_checkpoint(folder: str | Path) -> Path:
    """The folder of a checkpoint: `mini` and `mini-few-steps` are the shipped ones, of a training's folder it is the newest.

    Raises UserError if there is none, and says what was found.
    """
    shipped = {MINI: mini_checkpoint(), MINI_FEW_STEPS: mini_checkpoint().with_name("few_steps")}
    is_mini = str(folder) in shipped
    root = shipped.get(str(folder), Path(folder).expanduser())
    if is_checkpoint(root):
        return root
    if of_training := [path for path in sorted(root.glob("checkpoints/[0-9]*")) if is_checkpoint(path)]:
        return of_training[-1]
    if is_mini:
        raise UserError(
            f"this copy has no {folder} ({root} is missing): give a folder, such as `make demo` trains, or use a checkout"
        )
    if (root / "model_index.json").is_file():
        raise UserError(
            f"{root} is a diffusers pipeline, not a checkpoint of T2I Foundry: convert it: "
            f"python -m model.convert --source diffusers --target native {root} OUT"
        )
    if root.is_file() and is_checkpoint(root.parent.parent):
        raise UserError(f"{root} is a file of the checkpoint {root.parent.parent}: give that folder")
    if stages := sorted({path.parents[1] for path in root.glob("*/checkpoints/[0-9]*") if is_checkpoint(path)}):
        raise UserError(f"{root} holds several stages of a training: give one of {', '.join(map(str, stages))}")
    if root.is_file() and root.suffix in (".pth", ".safetensors", ".ckpt"):
        raise UserError(
            f"{root} is a file of weights, not a checkpoint of T2I Foundry: convert it: "
            f"python -m model.convert --source official --target native {root} OUT"
        )
    found = "a folder without pipeline.json" if root.is_dir() else "nothing"
    raise UserError(f"expected a checkpoint (transformer/ and pipeline.json) at {root}, found {found}")


def read_pipeline_config(root: Path) -> PipelineConfig:
    """pipeline.json of a checkpoint folder."""
    try:
        return PipelineConfig.from_dict(read_part(root / PIPELINE))
    except (TypeError, ValueError) as error:
        raise UserError(f"{root / PIPELINE}: {error}") from error


def read_transformer_config(root: Path) -> DiTConfig:
    """transformer/config.json of a checkpoint folder."""
    path = root / TRANSFORMER / "config.json"
    try:
        return DiTConfig.from_dict(read_part(path))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def checkpoint_fingerprint(root: Path) -> str:
    """Fingerprint of the network's weights: tells one training from another, not float32 from bf16."""
    check_is_network(root)
    if is_adapted(root):
        return read_own_adapter(root).fingerprint()
    from safetensors import SafetensorError, safe_open

    path = root / TRANSFORMER / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            return fingerprint((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is missing, truncated or not safetensors: {error}") from error


def check_tensors(found: "Mapping[str, torch.Tensor]", expected: "Mapping[str, torch.Tensor]", *, complaint: str) -> None:
    """Raises UserError, after the complaint, that names the tensors that are missing, unexpected or of another shape."""
    problems = []
    for what, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            problems.append(f"{len(names)} {what}: {', '.join(sorted(names)[:3])}{', …' if len(names) > 3 else ''}")
    shared = sorted(expected.keys() & found.keys())
    problems += [
        f"{name}: expected {list(expected[name].shape)}, found {list(found[name].shape)}"
        for name in shared
        if expected[name].shape != found[name].shape
    ]
    if problems:
        raise UserError(f"{complaint}: {'; '.join(problems[:5])}")


def check_fingerprint(kind: str, expected: PartConfig, *, name: str, found: str, advice: str = "") -> None:
    """Raises UserError if a part is not the one that the checkpoint was trained with; `advice`: default, to give another."""
    if expected.fingerprint and expected.fingerprint != found:
        revision = f" at revision {expected.revision}" if expected.revision else ""
        raise UserError(
            f"the checkpoint was trained with the {kind} {expected.name}{revision} (fingerprint {expected.fingerprint}), "
            f"but {name} has the fingerprint {found}: {advice or 'give the right one'}",
            setting="" if advice else kind,
        )


def _read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} is missing: the checkpoint is not complete")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not safetensors ({path.stat().st_size} bytes): {error}") from error
