"""Model source: finds the files of a model by its name, which is `mini`, a folder, or a hub id with its revision.

Everything here happens in the driver, before Ray starts, so that an unavailable model is one line and not a stack of
worker logs. transformers is not imported.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.errors import NotOnHub, UserError, one_line
from foundry.storage.model_files import folder_fingerprint, hub_file, hub_parameters, weight_files

LLAVA_PROMPT = "USER: <image>\n{} ASSISTANT:"
"""Prompt that LLaVA 1.5 was trained with. Checkpoints of 2023 come without a chat template."""
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")
"""Files that may hold the chat template; those of the processor take precedence over the tokenizer's, the last."""
_WITHOUT_TEMPLATE = {"florence2": "{}"} | dict.fromkeys(
    ("llava", "vipllava", "llava_next", "llava_onevision", "llava_next_video", "video_llava"), LLAVA_PROMPT
)
"""Types of models that can be asked without a chat template, and what their prompts are put into."""
_TRAINED_WITH_PADDING = ("llava", "vipllava")
"""Types of LLaVA 1.5's classes, whose authors pad images to squares, while transformers' image processor crops them."""

ANY_SIZE_PX = 1024
"""Shorter side to which images are decoded for a model that takes any size; its tokens grow with the pixels."""
_LONGEST_SIDE_PX = 16_384  # a larger `longest_edge` counts pixels
_TOWER_PX = 336
_SUCH_AS = "a vision-language model, such as LLaVA or Qwen-VL"

MINI = Path(__file__).resolve().parents[1] / "pretrained" / "llava-mini"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that can be loaded. `revision` is the hub's commit, or a fingerprint of a folder's files.

    `image_side_px` is what the shorter side of an image is worth to it; more pixels are not decoded. `num_parameters` says how
    many replicas a node's memory holds; 0: unknown. `template_file` is the file with its chat template, "" if there is none.
    `plain_prompt` is what prompts are put into where there is none. `is_padded`: it was trained on images padded to squares,
    and its image processor would crop them. `context` is the number of tokens of a request and its answer, as config.json has
    it, and `tokenizer_file` a file of the tokenizers library; 0 and "" if they are unknown.
    """

    name: str
    location: str
    revision: str
    on_hub: bool
    image_side_px: int
    num_parameters: int = 0
    template_file: str = _TEMPLATE_FILES[0]
    plain_prompt: str = LLAVA_PROMPT
    is_padded: bool = False
    context: int = 0
    tokenizer_file: str = ""

    @property
    def prompt_format(self) -> str:
        """Template of prompts, if that is not the processor's own chat template ("")."""
        if self.template_file == _TEMPLATE_FILES[-1]:
            return f"chat_template of {self.template_file}"
        return "" if self.template_file else self.plain_prompt

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

    @property
    def listed(self) -> Mapping[str, Any]:
        """Empty: no server lists it."""
        return {}

    @property
    def sends_urls(self) -> bool:
        """False: it is shown pixels."""
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
    """The line that tells where LLaVA 1.5's prompt is assumed for a model of this name; "" if its own is used."""
    if prompt_format != LLAVA_PROMPT:
        return ""
    return (
        f"{name} has no chat template: prompts are put into LLaVA 1.5's, {json.dumps(LLAVA_PROMPT)}; "
        "to use the model's own, write it to chat_template.jinja in its folder"
    )


def resolve_model(name: str, *, revision: str | None = None, image_side_px: int | None = None) -> ModelSource:
    """Finds a model by name. `image_side_px` is its own where it is not given.

    Raises UserError if it is unavailable, is not a model that reads images, or cannot be asked without a chat template.
    """
    folder = MINI if name == "mini" else Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            if (folder / "adapter_config.json").is_file():
                raise UserError(
                    f"{folder} is a LoRA adapter, not a model: give its base model, and the adapter to the engine vllm",
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
    model_type = str(config.get("model_type", "nameless"))
    if not isinstance(config.get("vision_config"), dict):
        raise UserError(f"{name} is a {model_type} model, which cannot read images: give {_SUCH_AS}")
    processor = _image_processor(find)
    try:
        side_px = image_side_px or _image_side(config, processor)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"the config.json of {name} does not say how large its images are ({error}): fetch it again, or give their size",
            setting="generation.image_side_px",
        ) from None
    template_file = next((file for file in _TEMPLATE_FILES if _has_template(find(file))), "")
    if not template_file and model_type not in _WITHOUT_TEMPLATE:
        raise UserError(
            f"{name} is a {model_type} model without a chat template: put one that takes images into chat_template.jinja in "
            "its folder, as its authors trained it"
        )
    return ModelSource(
        name=name,
        location=location,
        revision=found,
        on_hub=not folder.is_dir(),
        image_side_px=side_px,
        num_parameters=num_parameters,
        template_file=template_file,
        plain_prompt=_WITHOUT_TEMPLATE.get(model_type, LLAVA_PROMPT),
        is_padded=_is_padded(config, processor),
        context=_context(config),
        tokenizer_file=str(find("tokenizer.json") or ""),
    )


def _context(config: dict[str, Any]) -> int:
    """See ModelSource. The positions of a model with an encoder (Florence-2) are no limit of a question and its answer."""
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    has_encoder = config.get("model_type") == "florence2" or config.get("is_encoder_decoder") or text.get("is_encoder_decoder")
    most = text.get("max_position_embeddings")
    return most if isinstance(most, int) and not has_encoder else 0


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


def _image_processor(find: Callable[[str], Path | None]) -> dict[str, Any]:
    """The settings of the image processor, in whichever of the two files they are; {} where there are none."""
    whole, alone = find("processor_config.json"), find("preprocessor_config.json")
    settings = (_read_config(whole).get("image_processor") if whole else None) or (_read_config(alone) if alone else {})
    return dict(settings)


def _is_padded(config: dict[str, Any], processor: dict[str, Any]) -> bool:
    """See ModelSource."""
    vision = config["vision_config"].get("model_type", "clip_vision_model")
    if config.get("model_type") not in _TRAINED_WITH_PADDING or vision != "clip_vision_model":
        return False
    return bool(processor.get("do_center_crop", True)) and not processor.get("do_pad", False)


def _stored_parameters(folder: Path) -> int:
    """The number of parameters in a folder's safetensors, read from their headers; 0 if one cannot be read."""
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
        raise UserError(f"{path} does not hold a JSON object: fetch the model again")
    return config


def _image_side(config: dict[str, Any], processor: dict[str, Any]) -> int:
    """Useful length of the shorter side of an image, in pixels. Raises TypeError, ValueError or KeyError for another form.

    It is that of the largest grid of crops (LLaVA-NeXT, OneVision), of as many tiles (InternVL), of the image that is cut into
    tiles (Idefics3, SmolVLM); of a square of the number of pixels where any size will do (Qwen-VL), but at most
    ANY_SIZE_PX; else of the vision tower.
    """
    size = processor.get("size")
    size = size if isinstance(size, dict) else {}
    longest, grid = processor.get("max_pixels") or size.get("longest_edge"), config.get("image_grid_pinpoints")
    tower = config["vision_config"].get("image_size") or size.get("height") or size.get("shortest_edge") or _TOWER_PX
    crop_px = int(min(tower) if isinstance(tower, list) else tower)
    if grid:
        return _grid_side(config, grid, crop_px)
    if config.get("model_type") == "internvl":
        return math.ceil(crop_px * math.sqrt(int(processor.get("max_patches", 12))))
    if longest and int(longest) > _LONGEST_SIDE_PX:  # a number of pixels, not a side
        return min(ANY_SIZE_PX, math.isqrt(int(longest)))
    if longest and processor.get("max_image_size") and processor.get("do_image_splitting", True):
        return int(longest)
    return crop_px


def _grid_side(config: dict[str, Any], grid: Sequence[Sequence[int]], crop_px: int) -> int:
    """The shorter side of the largest grid of crops.

    OneVision's `anyres_max_9` reduces what it sees of a larger grid to as many tokens as 9 crops give, so that a grid of
    6 x 6 crops (2304 px) is worth one of 3 x 3.
    """
    side_px = max(min(int(side) for side in pair) for pair in grid)
    default = "anyres_max_9" if config.get("model_type") == "llava_onevision" else ""
    most = re.fullmatch(r"anyres_max_(\d+)", str(config.get("vision_aspect_ratio") or default))
    return min(side_px, math.ceil(crop_px * math.sqrt(int(most[1])))) if most else side_px
