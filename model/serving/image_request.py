"""Bodies of POST /v1/images/generations and /v1/images/edits, read: OpenAI's fields, and those of this server's own.

Every field is checked by name, type and limit; one that is unknown, or whose value is not supported, is told.
"""

import difflib
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError
from foundry.http.server import BadRequest
from model.dit_config import FewSteps
from model.generation.request import GenerationRequest
from model.lora.settings import LoraChoice
from model.sampling import SamplingConfig
from model.serving.settings import ServerLimits

if TYPE_CHECKING:
    from PIL import Image

_NUMBER = int | float
_FIELDS: dict[str, Any] = {
    "prompt": str,
    "model": str,
    "n": int,
    "size": str,
    "response_format": str,
    "seed": int,
    "steps": int,
    "guidance": _NUMBER,
    "negative_prompt": str,
    "lora": list,
    "rewrite": bool,
    "sampler": str,
    "eta": _NUMBER,
    "shift": _NUMBER,
    "guidance_by": str,
}
_EDIT_FIELDS: dict[str, Any] = {"strength": _NUMBER, "paste_kept": bool}
_SAMPLING = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
"""Fields with other names than the settings of the sampler have."""
_IGNORED: dict[str, tuple[Any, ...]] = {
    "background": ("auto", "opaque"),
    "moderation": ("auto",),
    "output_compression": (100,),
    "output_format": ("png",),
    "partial_images": (0,),
    "quality": ("auto", "standard"),
    "stream": (False,),
    "style": (),
}
"""Fields of OpenAI's that may be there with a value that changes nothing."""
_MAX_LORA_SCALE = 10
_UNREAD = ("user",)
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_JSON_NAMES = {str: "a string", int: "an integer", bool: "true or false", list: "a list", _NUMBER: "a number"}


@dataclass(frozen=True, kw_only=True)
class ImageOrder:
    """A request that was read."""

    request: GenerationRequest
    adapters: tuple[tuple[str, float], ...]
    """Names and scales."""
    rewrite: bool | None
    """Whether the prompt is rewritten first; None: as the server does by default."""


@dataclass(frozen=True, kw_only=True)
class RequestReader:
    """What requests are read with."""

    name: str
    """Name of the model."""
    adapters: Mapping[str, float]
    """Adapters that there are, with the scale of each where a request gives none."""
    sampling: SamplingConfig
    """Settings of requests that give none; what they leave open is filled in as `model.generate` does."""
    few_steps: Mapping[str, FewSteps] = field(default_factory=dict)
    """Few steps of the adapters that distil the network, by name."""
    own_few_steps: FewSteps | None = None
    """Those that the checkpoint itself was distilled to; none: it was not."""
    limits: ServerLimits
    resolution: int
    """Side of the checkpoint's images, in pixels."""

    @property
    def max_pixels(self) -> int:
        """Maximum of height times width."""
        return self.limits.max_pixels or 2 * self.resolution**2

    def read(
        self,
        body: Mapping[str, Any],
        *,
        image: "Image.Image | None" = None,
        mask: "Image.Image | None" = None,
    ) -> ImageOrder:
        """The request in a body; `image` and `mask` are those of an edit. Raises BadRequest."""
        given = self._checked(body, _FIELDS if image is None else _FIELDS | _EDIT_FIELDS)
        height, width = self._size(given.get("size", "auto"))
        if image is not None:
            self._check_area("image", height=image.height, width=image.width)
        adapters = self._adapters(given)
        sampling = self._sampling(given).resolved(self._few_steps_with(adapters))
        edit = {name: given[name] for name in _EDIT_FIELDS if name in given}
        try:
            request = GenerationRequest(
                prompts=(self._prompt(given),),
                negative_prompt=self._text(given, "negative_prompt"),
                num_images_per_prompt=self._number(given, "n", default=1, most=self.limits.max_images),
                seed=given.get("seed", secrets.randbelow(1 << 32)),
                height=height,
                width=width,
                image=image,
                mask_image=mask,
                sampling=sampling,
                **edit,
            )
        except UserError as error:
            raise BadRequest(str(error)) from None
        return ImageOrder(request=request, adapters=adapters, rewrite=given.get("rewrite"))

    def _checked(self, body: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that are set and read. Raises BadRequest for one that is unknown, or of another type."""
        for name, value in body.items():
            if name in fields:
                kind = fields[name]
                if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
                    raise BadRequest(f"{name}: expected {_JSON_NAMES[kind]}, found {_shown(value)}", param=name)
            elif name in _IGNORED:
                if value is not None and value not in _IGNORED[name]:
                    raise BadRequest(f"{name}: {_shown(value)} is not supported by this server: leave it out", param=name)
            elif name not in _UNREAD:
                near = difflib.get_close_matches(name, fields, n=1)
                advice = f"did you mean {near[0]}?" if near else f"this server knows {', '.join(fields)}"
                raise BadRequest(f"{name} is no known field: {advice}", param=name)
        if (body.get("response_format") or "b64_json") != "b64_json":
            raise BadRequest(
                f"response_format: {_shown(body['response_format'])} is not supported, since this server keeps no images: ask "
                "for b64_json",
                param="response_format",
            )
        return {name: body[name] for name in fields if body.get(name) is not None}

    def _prompt(self, given: Mapping[str, Any]) -> str:
        prompt = self._text(given, "prompt")
        if not prompt.strip():
            raise BadRequest("prompt: expected a description of the image, found none", param="prompt")
        return prompt

    def _text(self, given: Mapping[str, Any], name: str) -> str:
        text, most = str(given.get(name, "")), self.limits.max_prompt_chars
        if len(text) > most:
            raise BadRequest(f"{name}: expected at most {most} characters, found {len(text)}", param=name)
        return text

    def _number(self, given: Mapping[str, Any], name: str, *, default: int, most: int) -> int:
        value = int(given.get(name, default))
        if not 1 <= value <= most:
            raise BadRequest(f"{name}: expected 1 to {most}, found {value}", param=name)
        return value

    def _size(self, size: str) -> tuple[int | None, int | None]:
        """Height and width; None: those of the checkpoint, or of the image to edit."""
        if size == "auto":
            return None, None
        if not (found := _SIZE.fullmatch(size)):
            raise BadRequest(f"size: expected WIDTHxHEIGHT in pixels, as 512x768, found {_shown(size)}", param="size")
        width, height = int(found[1]), int(found[2])
        self._check_area("size", height=height, width=width)
        return height, width

    def _check_area(self, name: str, *, height: int, width: int) -> None:
        most = self.max_pixels
        if not 1 <= height * width <= most:
            raise BadRequest(f"{name}: expected at most {most} pixels, found {width} x {height} = {width * height}", param=name)

    def _sampling(self, given: Mapping[str, Any]) -> SamplingConfig:
        self._number(given, "steps", default=1, most=self.limits.max_steps)
        names = ("steps", "guidance", "sampler", "eta", "shift", "guidance_by")
        values = {name: given[name] for name in names if name in given}
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise BadRequest(f"{name}: expected a finite number, found {value}", param=name)
        try:
            return replace(self.sampling, **{_SAMPLING.get(name, name): value for name, value in values.items()})
        except ValueError as error:
            raise BadRequest(str(error).replace("guidance_scale", "guidance"), param=next(iter(values))) from None

    def _few_steps_with(self, adapters: Sequence[tuple[str, float]]) -> FewSteps | None:
        """Few steps of the network with these adapters. Raises BadRequest for adapters that differ in it."""
        found = {self.few_steps[name]: name for name, _ in adapters if name in self.few_steps}
        if len(found) > 1:
            names = " and ".join(found.values())
            raise BadRequest(f"lora: {names} are distilled to few steps differently: give one of them", param="lora")
        return next(iter(found), self.own_few_steps)

    def _adapters(self, given: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
        """Names and scales: those of `lora`, and the one that is the model's name."""
        scales: dict[str, float] = {}
        if (model := given.get("model", self.name)) != self.name:
            if model not in self.adapters:
                raise BadRequest(
                    f"there is no model {_shown(model)}: this server has {', '.join([self.name, *self.adapters])}",
                    status=404,
                    param="model",
                )
            scales[model] = self.adapters[model]
        for text in given.get("lora", []):
            name, scale = self._adapter(text)
            if name in scales:
                raise BadRequest(f"lora: {name} is given twice: give it once", param="lora")
            scales[name] = scale
        return tuple(scales.items())

    def _adapter(self, text: Any) -> tuple[str, float]:
        try:
            choice = LoraChoice.parse(text) if isinstance(text, str) else None
        except ValueError:
            choice = None
        if choice is None or choice.path not in self.adapters:
            has = f"of {', '.join(self.adapters)}" if self.adapters else "but this server has no adapters"
            raise BadRequest(f'lora: expected a list of "NAME" or "NAME:SCALE", {has}, found {_shown(text)}', param="lora")
        scale = choice.scale if ":" in text else self.adapters[choice.path]
        if not abs(scale) <= _MAX_LORA_SCALE:
            raise BadRequest(
                f"lora: expected a scale from -{_MAX_LORA_SCALE} to {_MAX_LORA_SCALE}, found {scale:g}", param="lora"
            )
        return choice.path, scale


def _shown(value: Any) -> str:
    return repr(value)[:80]
