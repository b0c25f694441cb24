"""Input of a vision-language model: its processor, its chat template, and images padded to squares."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from captioner.engines.model_source import LLAVA_PROMPT, ModelSource
from foundry.errors import UserError, one_line

# Fields of processor_config.json that say how many tokens an image takes. Checkpoints of before 2025 lack them.
_TOKEN_FIELDS = ("patch_size", "vision_feature_select_strategy", "num_image_tokens")
_LIKE = "llava-hf/llava-1.5-7b-hf"


def load_processor(source: ModelSource) -> Any:
    """The model's processor of images and text, which pads on the left.

    Raises UserError if there is none, or where it does not say how many tokens an image takes.
    """
    from transformers import AutoProcessor

    options = {"revision": source.revision} if source.on_hub else {}
    try:
        processor = AutoProcessor.from_pretrained(source.path_or_id, **options)
    except ImportError as error:
        raise UserError(f"the processor of {source.name} needs a package: {one_line(error, limit=300)}") from error
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = one_line(error, limit=200)
        raise UserError(f"the processor of {source.name} cannot be loaded ({reason}): fetch the model again") from error
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
        raise UserError(
            f"{source.name} has a {type(processor).__name__} only, not a processor of images and text: add the "
            f"preprocessor_config.json, tokenizer and processor_config.json of its kind, such as those of {_LIKE}"
        )
    lacking = [name for name in _TOKEN_FIELDS if getattr(processor, name, 0) is None]
    if lacking and (problem := _say_lacking(lacking, source, options)):
        raise UserError(problem)
    processor.tokenizer.padding_side = "left"
    return processor


class PromptFormat:
    """Template of a prompt: the checkpoint's chat template, its processor's or else its tokenizer's, or LLaVA 1.5's.

    A beginning-of-text token of the template is left out where the tokenizer writes one too.
    Raises UserError for a chat template that takes no image.
    """

    def __init__(self, processor: Any, source: ModelSource) -> None:
        self._processor = processor
        template = processor.chat_template or processor.tokenizer.chat_template
        self._template = template.get("default") if isinstance(template, dict) else template
        if template and not self._template:
            raise UserError(f"{source.name} has the chat templates {', '.join(template)}: name the one to use `default`")
        if self._template:
            self._check(f"the chat_template of {source.name} ({source.template_file or 'processor_config.json'})")
        self._plain = source.prompt_format or LLAVA_PROMPT
        self._repeated = _written_start(processor.tokenizer)

    def __call__(self, prompt: str) -> str:
        """The text that asks a prompt of one image."""
        if not self._template:
            return self._plain.format(prompt)
        return self._rendered([{"type": "image"}, {"type": "text", "text": prompt}]).removeprefix(self._repeated)

    def _rendered(self, content: list[dict[str, str]]) -> str:
        text: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self._template,
            add_generation_prompt=True,
            tokenize=False,
        )
        return text

    def _check(self, where: str) -> None:
        from jinja2 import TemplateError

        image, text = {"type": "image"}, {"type": "text", "text": "an owl"}
        try:
            found, without = self._rendered([image, text]), self._rendered([text])
            reason = "its output has no place for an image" if found == without or str(image) in found else ""
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if reason:
            raise UserError(
                f"{where} only takes text ({reason}): put one that takes images into chat_template.jinja in the model's "
                f"folder, such as that of {_LIKE}"
            )


def _written_start(tokenizer: Any) -> str:
    """The beginning-of-text token, where the tokenizer writes it before each text; else ""."""
    ids = tokenizer("a").input_ids
    return str(tokenizer.bos_token) if tokenizer.bos_token and ids[:1] == [tokenizer.bos_token_id] else ""


class ImageFit:
    """Fits images to the model: pads them to squares of the mean colour, or leaves them to the model's own processor."""

    def __init__(self, processor: Any, source: ModelSource, asked: str) -> None:
        """`asked`: pad, processor or auto."""
        self._side_px = source.image_side_px if source.image_fit(asked) == "pad" else None
        self._colour = tuple(int(255 * mean) for mean in processor.image_processor.image_mean) if self._side_px else ()

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """An image, (H, W, 3)."""
        return pixels if self._side_px is None else padded(pixels, side_px=self._side_px, colour=self._colour)


def end_ids(source: ModelSource, tokenizer: Any) -> list[int]:
    """The distinct end-of-text ids of a checkpoint's generation config (else its config) and tokenizer. Raises UserError."""
    from transformers import AutoConfig, GenerationConfig

    options = {"revision": source.revision} if source.on_hub else {}
    try:
        generation: Any = GenerationConfig.from_pretrained(source.path_or_id, **options)
    except OSError:  # it has none: what its config says holds
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(source.path_or_id, **options))
    found: list[int] = []
    for entry in (generation.eos_token_id, tokenizer.eos_token_id):
        found += [one for one in (entry if isinstance(entry, list) else [entry]) if one is not None and one not in found]
    if not found:
        raise UserError("the model names no end-of-text token: its captions would never stop; add eos_token_id to its config")
    return found


def padded(pixels: npt.NDArray[np.uint8], *, side_px: int, colour: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An image, (H, W, 3), in the middle of a square of this colour; one that is a square is left as it is.

    A side longer than twice `side_px`, that of the model's own square, is reduced to that first: it bounds the memory.
    Source: LLaVA 1.5's preprocessing (`image_aspect_ratio: pad`).
    """
    height, width = pixels.shape[:2]
    if height == width:
        return pixels
    image = Image.fromarray(pixels)
    image.thumbnail((2 * side_px, 2 * side_px), Image.Resampling.LANCZOS)
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square)


def _say_lacking(fields: list[str], source: ModelSource, options: dict[str, str]) -> str:
    """The error for a processor that lacks these fields, with what to write; "" if none of them matters."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source.path_or_id, **options)
    patch_px, side_px = config.vision_config.patch_size, config.vision_config.image_size
    is_clip = config.vision_config.model_type == "clip_vision_model"
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    fields = [name for name in fields if name != "vision_feature_select_strategy" or strategy == "default"]
    if not fields:
        return ""
    values: dict[str, Any] = {"patch_size": patch_px, "vision_feature_select_strategy": strategy}
    values["num_image_tokens"] = (side_px // patch_px) ** 2
    told = [f'"{name}": ' + (f'"{values[name]}"' if isinstance(values[name], str) else str(values[name])) for name in fields]
    if is_clip and "patch_size" in fields:
        told.append('"num_additional_image_tokens": 1')
    return (
        f"processor_config.json of {source.name} lacks {' and '.join(fields)}, so that the number of tokens of an image is "
        f"unknown: write {', '.join(told)} into that file, as config.json has it"
    )
