"""Frozen vision tower: images to one vector for each patch, for training that aligns a network with it.

Any vision transformer of transformers that takes `pixel_values` will do: DINOv2 and v3, CLIP, SigLIP, and the towers of CLIP,
SigLIP and vision-language models such as LLaVA. `mini` is the tower of llava-mini, the small world's captioner.
Shapes: B images, H x W pixels, h x w patches, F channels.
"""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError
from foundry.hardware import AutoDtype, resolve_dtype
from foundry.storage.model_files import hub_folder, load_network
from model.encoders.frozen_parts import fingerprint

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

MINI = Path(__file__).resolve().parents[2] / "captioner" / "pretrained" / "llava-mini"
_HUB_FILES = ["config.json", "preprocessor_config.json", "processor_config.json", "*.safetensors", "*.safetensors.index.json"]
_VARIANTS = ["*.fp16*", "*.bf16*"]
_EXAMPLES = "a vision transformer such as facebook/dinov2-base or openai/clip-vit-large-patch14, or LLaVA"
_TOWERS = ("vision_tower", "vision_model")
"""Names of the tower in a model that reads texts too."""


@dataclass(frozen=True, kw_only=True)
class VisionTowerConfig:
    """Settings of a vision tower."""

    name: str
    """Hub id or folder of a vision transformer or of a model that has one, or `mini`: the small world's toy."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    dtype: AutoDtype = "auto"
    """Number format of the tower; auto: bfloat16 if the hardware supports it, otherwise float32."""


class VisionTower:
    """A vision transformer with the normalisation of its images. Deterministic; never trained."""

    def __init__(self, model: "PreTrainedModel", *, name: str, mean: "torch.Tensor", std: "torch.Tensor") -> None:
        """`mean` and `std` (3,): of pixels in 0..1."""
        self.model = model
        self.name = name
        self._mean, self._std = (values.view(1, 3, 1, 1) for values in (mean, std))
        self._options = _position_options(model)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return _patch_size(self.model.config)

    @property
    def width(self) -> int:
        """Channels F of a patch's vector."""
        return int(self.model.config.hidden_size)

    def features(self, images: "torch.Tensor", grid: tuple[int, int]) -> "torch.Tensor":
        """The last hidden states (B, h w, F), float32, of images (B, 3, H, W) in -1..1, one for each cell of a grid (h, w).

        The images are resized to the size at which the tower's patches are that grid. Raises UserError for a tower that gives
        fewer vectors.
        """
        import torch
        import torch.nn.functional as F  # noqa: N812

        size = [side * self.patch_size for side in grid]
        with torch.no_grad():
            pixels = (images.float() / 2 + 0.5).clamp(0, 1)
            if list(pixels.shape[-2:]) != size:
                pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
            pixels = ((pixels - self._mean) / self._std).to(self.model.dtype)
            states: torch.Tensor = self.model(pixel_values=pixels, **self._options).last_hidden_state  # (B, more, F)
        num = grid[0] * grid[1]
        if states.ndim != 3 or states.shape[1] < num:
            raise UserError(
                f"{self.name} gives {tuple(states.shape[1:])} for an image of {size[0]} x {size[1]} px, expected a vector for "
                f"each of {num} patches: give {_EXAMPLES}"
            )
        return states[:, -num:].float()  # behind the class and register tokens

    def fingerprint(self) -> str:
        """Fingerprint of the weights, the same for every dtype."""
        return fingerprint(self.model.named_parameters())


def load_vision_tower(config: VisionTowerConfig, *, device: str = "cpu") -> VisionTower:
    """Loads a tower. Raises UserError for a name that leads nowhere, files of something else, and weights that answer NaN."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = find_tower(config)
    settings = _read_config(folder)
    mean, std = (values.to(device) for values in _normalisation(folder))
    number_format = getattr(torch, resolve_dtype(config.dtype, device))
    model = _tower(_load(folder, settings.model_type, number_format), folder)
    tower = VisionTower(model.to(device).eval().requires_grad_(False), name=config.name, mean=mean, std=std)
    grey = torch.zeros(1, 3, 2 * tower.patch_size, 2 * tower.patch_size, device=device)
    if not bool(tower.features(grey, (2, 2)).isfinite().all()):
        raise UserError(
            f"the vision tower {config.name} answers NaN or infinity to a grey image: its weights are damaged, or "
            f"{str(number_format).removeprefix('torch.')} overflows; fetch it again, or give float32 as its number format"
        )
    return tower


def empty_vision_tower(config: VisionTowerConfig) -> VisionTower:
    """The tower of a name without weights, on torch's meta device: to count what it takes. Raises as load_vision_tower."""
    import torch
    from transformers import AutoModel

    folder = find_tower(config, files=["config.json", "preprocessor_config.json", "processor_config.json"])
    settings = _tower_config(_read_config(folder))
    with torch.device("meta"):
        model = AutoModel.from_config(settings)
    mean, std = (values.to("meta") for values in _normalisation(folder))
    return VisionTower(model.eval().requires_grad_(False), name=config.name, mean=mean, std=std)


def find_tower(config: VisionTowerConfig, *, files: list[str] = _HUB_FILES) -> Path:
    """Folder of the model. Raises UserError for a name that leads nowhere."""
    folder = MINI if config.name == "mini" else Path(config.name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds no config.json: expected {_EXAMPLES}, as save_pretrained writes it")
        return folder
    if config.name == "mini" or config.name.startswith((".", "/", "~")) or config.name.count("/") != 1:
        raise UserError(f"there is no vision tower in {folder}: give a folder, a hub id, or `mini` for emoji scenes")
    return hub_folder(config.name, patterns=files, ignore=_VARIANTS, revision=config.revision)


def _read_config(folder: Path) -> "PretrainedConfig":
    """The configuration of a model with a tower. Raises UserError for any other."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not belong to a model that transformers can load: give {_EXAMPLES}"
        ) from error
    _patch_size(_tower_config(config))
    return config


def _load(folder: Path, model_type: str, dtype: "torch.dtype") -> "PreTrainedModel":
    """The whole model that the folder holds."""
    from transformers import AutoModel, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    writes = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    kind = AutoModelForImageTextToText if writes else AutoModel
    return load_network(kind.from_pretrained, folder, what="a model with a vision tower", dtype=dtype)


def _tower_config(config: "PretrainedConfig") -> "PretrainedConfig":
    """The tower's part of a model's configuration, or all of it."""
    return getattr(config, "vision_config", None) or config


def _tower(model: Any, folder: Path) -> "PreTrainedModel":
    """The tower in a model, or the model where it is one. Raises UserError if there is none."""
    if not hasattr(model.config, "vision_config"):
        return model
    for holder in (model, getattr(model, "model", None)):
        for name in _TOWERS:
            if holder is not None and hasattr(holder, name):
                return getattr(holder, name)
    raise UserError(f"{folder} holds a {type(model).__name__}, whose vision tower is not of a known kind: give {_EXAMPLES}")


def _patch_size(config: "PretrainedConfig") -> int:
    """Side of a patch in pixels. Raises UserError for a model without patches."""
    found = getattr(config, "patch_size", None)
    sides = set(found) if isinstance(found, list | tuple) else {found}
    side = sides.pop()
    if sides or not isinstance(side, int) or not hasattr(config, "hidden_size"):
        raise UserError(f"a model of the type {config.model_type} has no square patches: give {_EXAMPLES}")
    return side


def _position_options(model: Any) -> dict[str, bool]:
    """Options that make a tower accept any size; DINO's need none."""
    name = "interpolate_pos_encoding"
    return {name: True} if name in inspect.signature(model.forward).parameters else {}


def _normalisation(folder: Path) -> "tuple[torch.Tensor, torch.Tensor]":
    """Mean and standard deviation (3,) of pixels in 0..1, of the image processor. Raises UserError if they are not there."""
    import torch

    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise UserError(f"{folder / name} is not JSON ({error}): fetch it again") from error
        settings = settings.get("image_processor", settings)
        mean, std = (settings.get(key) for key in ("image_mean", "image_std"))
        if mean and std:
            return torch.tensor(mean), torch.tensor(std)
    raise UserError(
        f"{folder} holds no preprocessor_config.json with image_mean and image_std: copy it from the original model"
    )
