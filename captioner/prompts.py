"""Prompts of the captioner: what a question may contain, and the question for one image."""

import json
import re
import string
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from captioner.structured.answers import schema_problem
from foundry.errors import UserError

PROSE = "_prose"
"""Suffix of a prompt's name for the rendering of its structured captions to prose."""
OWN_FIELDS = ("alt_text", "class_label", "num_masks", "mask_area_px", "width", "height")
"""Placeholders for what is known of every image, where its source tells."""
METADATA = "metadata."
"""Beginning of a placeholder for another column or JSON field that the source carried: {metadata.tags}."""
CAPTION, CAPTIONS, CAPTION_OF = "caption", "captions", "caption."
"""Placeholders for captions of another run: of its first prompt, of all its prompts (of a structured one the prose), and of
one prompt: {caption.dense}."""
_KNOWN = ", ".join(f"{{{name}}}" for name in (*OWN_FIELDS, f"{METADATA}NAME", CAPTION, f"{CAPTION_OF}PROMPT", CAPTIONS))
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# What a chat template or a tokenizer would read as control: <image>, </s>, <|im_end|>, [INST].
_CONTROL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>|</?[A-Za-z_]{1,20}>|\[/?INST\]")


def control_token(text: str) -> str:
    """Control token in a text, as a chat template or tokenizer would read it, such as <image> or </s>; "" if there is none."""
    found = _CONTROL_TOKEN.search(text)
    return found.group() if found else ""


def harmless(text: str) -> str:
    """A text on one line, with spaces in place of control tokens: in a question it cannot speak as the user or add an image."""
    return " ".join(_CONTROL_TOKEN.sub(" ", text).split())


def is_of_captions(field: str) -> bool:
    """Whether a placeholder means captions of another run."""
    return field in (CAPTION, CAPTIONS) or field.startswith(CAPTION_OF)


def _is_known(field: str) -> bool:
    return field in OWN_FIELDS or is_of_captions(field) or (field.startswith(METADATA) and field != METADATA)


def _placeholder_problems(text: str, *, allowed: bool) -> list[str]:
    problems = []
    if control := control_token(text):
        problems.append(f"{control} is not allowed: the engine adds the image and the chat's own tokens")
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError:
        return [*problems, "a brace has no counterpart: write {{ and }} for literal braces"]
    for _, field, spec, conversion in parsed:
        if field is None:
            continue
        if not _is_known(field) or spec or conversion:
            problems.append(f"the placeholder {{{field}}} is unknown: write one of {_KNOWN}")
        elif not allowed:
            problems.append(f"the fallback is for images that lack a value: it cannot use {{{field}}}")
    return problems


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question to the model. Raises UserError for a bad name, an unknown placeholder or a missing fallback."""

    name: str
    """The value of the column `prompt` in the captions."""
    text: str
    """The question; it may contain placeholders: {alt_text}, {metadata.tags}, {caption}, …"""
    fallback: str | None = None
    """The question for images that lack the value of a placeholder. Required where the text has one; a text whose
    placeholders are all captions of another run may leave it out, and then an image without them is rejected."""
    schema: str | None = None
    """JSON schema that the answer is to follow, as JSON text; default: an answer in prose."""

    def __post_init__(self) -> None:
        problems = []
        if not _NAME.fullmatch(self.name):
            problems.append(f"the name {self.name!r} must be 1 to 64 letters, digits, - or _")
        if not self.text.strip():
            problems.append("the text is empty")
        problems += _placeholder_problems(self.text, allowed=True)
        problems += _placeholder_problems(self.fallback or "", allowed=False)
        problems = problems or self._fallback_problems()
        problems += self._schema_problems()
        if problems:
            raise UserError(f"prompt {self.name}: {'; '.join(problems)}")

    def _fallback_problems(self) -> list[str]:
        if self.fields and self.fallback is not None and not self.fallback.strip():
            return ["the fallback is empty"]
        if not self.fields and self.fallback is not None:
            return ["there is a fallback, but the text has no placeholder: remove it"]
        of_images = [field for field in self.fields if not is_of_captions(field)]
        if of_images and self.fallback is None:
            return [f"the text uses {{{of_images[0]}}}, so it needs a fallback for images that lack it"]
        return []

    def _schema_problems(self) -> list[str]:
        if self.schema is None:
            return []
        problems = [problem] if (problem := schema_problem(self.schema)) else []
        if control := control_token(self.schema):
            problems.append(f"{control} is not allowed in the schema: the engine adds the image and the chat's own tokens")
        return problems

    @property
    def fields(self) -> tuple[str, ...]:
        """The placeholders of the text; with any, the question differs from image to image."""
        return tuple(field for _, field, _, _ in string.Formatter().parse(self.text) if field is not None)

    @property
    def caption_names(self) -> tuple[str, ...]:
        """The values of the column `prompt` in its captions: its name, and that of the prose where there is a schema."""
        return (self.name,) if self.schema is None else (self.name, self.name + PROSE)


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The prompts that every image is asked, in order. Raises UserError for none or for a name given twice."""

    name: str
    """Name of the set, as `--prompts` takes it."""
    version: str
    """Changes whenever a text does: it is part of what a run is."""
    prompts: tuple[Prompt, ...]
    """Prompts, at least one; names are distinct."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError(f"prompt set {self.name} has no prompts: give at least one")
        names = [name for prompt in self.prompts for name in prompt.caption_names]
        repeated = [name for name, times in Counter(names).items() if times > 1]
        if repeated:
            raise UserError(f"prompt set {self.name} uses a name twice: {', '.join(repeated)}; give each prompt its own")

    def describe(self) -> dict[str, Any]:
        """The set as run.json holds it; runs that were started before schemas existed hold none."""
        return {"name": self.name, "version": self.version, "prompts": [_described(prompt) for prompt in self.prompts]}

    @property
    def caption_fields(self) -> set[str]:
        """The placeholders of all prompts that mean captions of another run."""
        return {field for prompt in self.prompts for field in prompt.fields if is_of_captions(field)}

    @property
    def metadata_names(self) -> set[str]:
        """The names of the source's columns that the prompts use."""
        fields = {field for prompt in self.prompts for field in prompt.fields}
        return {field.removeprefix(METADATA) for field in fields if field.startswith(METADATA)}


def render(prompt: Prompt, values: Mapping[str, str]) -> str | None:
    """The question for one image with these values of placeholders; None if it lacks one and there is no fallback.

    Line breaks and control tokens in a value become spaces, so that a web page cannot speak as the user or add an image; a
    value of nothing else counts as none. So do control tokens that a value and what surrounds it make together.
    """
    clean = {field: harmless(values.get(field, "")) for field in prompt.fields}
    if not all(clean.values()):
        return None if prompt.fallback is None else prompt.fallback.format()
    parsed = string.Formatter().parse(prompt.text)
    question = "".join(literal + (clean[field] if field is not None else "") for literal, field, _, _ in parsed)
    return _CONTROL_TOKEN.sub(" ", question)


def image_values(image: Mapping[str, Any]) -> dict[str, str]:
    """The values of placeholders that a row of index.IMAGES tells."""
    own = {name: image.get(name) for name in OWN_FIELDS}
    carried = json.loads(image.get("metadata") or "{}")
    found = own | {f"{METADATA}{name}": value for name, value in carried.items()}
    return {name: _text(value) for name, value in found.items() if value is not None}


def caption_values(
    captions: Mapping[str, str], *, prompts: tuple[str, ...], structured: tuple[str, ...] = ()
) -> dict[str, str]:
    """The values of placeholders that an image's captions of another run tell; `prompts` are that run's, in order.

    Those of the prompts `structured` are JSON, and the prose of each is a prompt too: only its name means the JSON.
    """
    said = {name: " ".join(captions.get(name, "").split()) for name in prompts}
    found = {f"{CAPTION_OF}{name}": text for name, text in said.items()}
    prose = [text for name, text in said.items() if name not in structured]
    together = " ".join(f'"{text}"' for text in prose if text)
    return found | {CAPTION: prose[0] if prose else "", CAPTIONS: together}


def _described(prompt: Prompt) -> dict[str, Any]:
    found: dict[str, Any] = {"name": prompt.name, "text": prompt.text, "fallback": prompt.fallback}
    return found if prompt.schema is None else found | {"schema": prompt.schema, "prose": prompt.caption_names[1]}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
