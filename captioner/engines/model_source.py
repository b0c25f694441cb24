"""Model source: finds the files of a model by its name, which is `mini`, a folder, or a hub id with its revision.

Everything here happens in the driver, before Ray starts, so that an unavailable model is one line and not a stack of
worker logs. transformers is not imported.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.errors import NotOnHub, UserError, one_line
from foundry.storage.model_files import folder_fingerprint, hub_file, hub_parameters, weight_files

LLAVA_PROMPT = "USER: <image>\n{} ASSISTANT:"
"""Prompt that LLaVA 1.5 was trained with. Checkpoints of 2023 come without a chat template."""
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")
"""Files that may hold the chat template; those of the processor take precedence over the tokenizer's, the last."""
_TRAINED_WITH_PADDING = ("llava", "vipllava")
"""Types of LLaVA 1.5's classes, whose authors pad images to squares, while transformers' image processor crops them."""

MINI = Path(__file__).resolve().parents[1] / "pretrained" / "llava-mini"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that can be loaded. `revision` is the hub's commit, or a fingerprint of a folder's files.

    `image_side_px` is what the shorter side of an image is worth to it; more pixels are not decoded. `num_parameters` says how
    many replicas a node's memory holds; 0: unknown. `template_file` is the file with its chat template, "" where there is none.
    `is_padded`: it was trained on images padded to squares, and its image processor would crop them.
    """

    name: str
    location: str
    revision: str
    on_hub: bool
    image_side_px: int
    num_parameters: int = 0
    template_file: str = _TEMPLATE_FILES[0]
    is_padded: bool = False

    @property
    def prompt_format(self) -> str:
        """What prompts are put into, where that is not the processor's own chat template ("")."""
        if self.template_file == _TEMPLATE_FILES[-1]:
            return f"chat_template of {self.template_file}"
        return "" if self.template_file else LLAVA_PROMPT

    def image_fit(self, asked: str) -> str:
        """`pad` or `processor`, whichever of them `auto` means for this model."""
        if asked != "auto":
            return asked
        return "pad" if self.is_padded else "processor"

    @property
    def is_mini(self) -> bool:
        """Whether this is the shipped toy, by its name or by its folder."""
        return Path(self.path_or_id) in (MINI, MINI.resolve())

    @property
    def is_served(self) -> bool:
        """False: it is loaded by the replicas."""
        return False

    def describe(self) -> dict[str, Any]:
        """Name and revision, image size, and the prompt's format where it is not the processor's own."""
        described = {"name": self.name, "revision": self.revision, "image_side_px": self.image_side_px}
        return described | ({"prompt_format": self.prompt_format} if self.prompt_format else {})

    @property
    def path_or_id(self) -> str:
        """Argument for from_pretrained, on whichever node this is: the bundled model is with the code of that node."""
        return str(MINI) if self.name == "mini" else self.location


def assumed_prompt(name: str, prompt_format: str) -> str:
    """The line that tells where LLaVA 1.5's prompt is assumed for a model of this name; "" where its own is used."""
    if prompt_format != LLAVA_PROMPT:
        return ""
    return (
        f"{name} has no chat template: prompts are put into LLaVA 1.5's, {json.dumps(LLAVA_PROMPT)}; "
        "to use the model's own, write it to chat_template.jinja in its folder"
    )


def resolve_model(name: str, *, revision: str | None = None) -> ModelSource:
    """Finds a model by name. Raises UserError where it is unavailable, or is not a model that reads images."""
    folder = MINI if name == "mini" else Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            if (folder / "adapter_config.json").is_file():
                raise UserError(
                    f"{folder} is a LoRA adapter, not a model: give its model, and the adapter to the engine vllm",
                    setting="vllm.lora",
                )
            raise UserError(f"{folder} is not a model: it has no config.json; give a folder that save_pretrained wrote")
        config = _read_config(folder / "config.json")
        found = folder_fingerprint(folder)
        location = str(folder.resolve())
        num_parameters = _stored_parameters(folder)
        find = _files_in(folder)
    elif name == "mini" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no model folder {folder}: give a folder or a hub id, or `mini` for emoji scenes")
    else:
        config, cached = _from_hub(name, revision)
        location, found = name, cached.name
        num_parameters = _stored_parameters(cached) or hub_parameters(name, revision=found)
        find = _files_on_hub(name, found)
    if not isinstance(config.get("vision_config"), dict):
        raise UserError(
            f"{name} is a {config.get('model_type', 'nameless')} model, which reads no images: give a LLaVA checkpoint"
        )
    try:
        side_px = _image_side(config)
    except (TypeError, ValueError) as error:
        raise UserError(f"the config.json of {name} is not that of a LLaVA checkpoint ({error}): fetch it again") from None
    return ModelSource(
        name=name,
        location=location,
        revision=found,
        on_hub=not folder.is_dir(),
        image_side_px=side_px,
        num_parameters=num_parameters,
        template_file=next((file for file in _TEMPLATE_FILES if _has_template(find(file))), ""),
        is_padded=_is_padded(config, find),
    )


def _from_hub(name: str, revision: str | None) -> tuple[dict[str, Any], Path]:
    """The config of a hub model and its folder in the cache, whose name is the commit of the revision."""
    path = hub_file(name, "config.json", revision=revision)
    return _read_config(path), path.parent


def _files_in(folder: Path) -> Callable[[str], Path | None]:
    return lambda file: folder / file if (folder / file).is_file() else None


def _files_on_hub(name: str, revision: str) -> Callable[[str], Path | None]:
    def find(file: str) -> Path | None:
        try:
            return hub_file(name, file, revision=revision)
        except NotOnHub:
            return None

    return find


def _has_template(path: Path | None) -> bool:
    return path is not None and (path.suffix == ".jinja" or bool(_read_config(path).get("chat_template")))


def _is_padded(config: dict[str, Any], find: Callable[[str], Path | None]) -> bool:
    """As ModelSource says."""
    vision = config["vision_config"].get("model_type", "clip_vision_model")
    if config.get("model_type") not in _TRAINED_WITH_PADDING or vision != "clip_vision_model":
        return False
    whole, alone = find("processor_config.json"), find("preprocessor_config.json")
    processor = (_read_config(whole).get("image_processor") if whole else None) or (_read_config(alone) if alone else {})
    return bool(processor.get("do_center_crop", True)) and not processor.get("do_pad", False)


def _stored_parameters(folder: Path) -> int:
    """The number of parameters in a folder's safetensors, read from their headers; 0 where one cannot be read."""
    from safetensors import SafetensorError, safe_open

    count = 0
    try:
        for file in weight_files(folder):
            with safe_open(file, framework="numpy") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return 0
    return count


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): fetch the model again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no JSON object: fetch the model again")
    return config


def _image_side(config: dict[str, Any]) -> int:
    """Useful length of the shorter side of an image, in pixels: that of the largest grid of crops, else of the vision tower.

    OneVision's `anyres_max_9` reduces what it sees of a larger grid to as many tokens as 9 crops give, so that a grid of
    6 x 6 crops (2304 px) is worth one of 3 x 3. Raises TypeError or ValueError for a config of another form.
    """
    crop_px = int(config["vision_config"].get("image_size", 336))
    grid = config.get("image_grid_pinpoints")
    if not grid:
        return crop_px
    side_px = max(min(int(side) for side in pair) for pair in grid)
    default = "anyres_max_9" if config.get("model_type") == "llava_onevision" else ""
    most = re.fullmatch(r"anyres_max_(\d+)", str(config.get("vision_aspect_ratio") or default))
    return min(side_px, math.ceil(crop_px * math.sqrt(int(most[1])))) if most else side_px
