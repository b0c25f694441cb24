"""Prompts of the captioner: what a question may contain, and the question for one image."""

import re
import string
from collections import Counter
from dataclasses import dataclass

from captioner.structured.answers import schema_problem
from foundry.errors import UserError

PROSE = "_prose"
"""What the name of a prompt with a schema ends in for the rendering of its captions to prose."""
PLACEHOLDER = "alt_text"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# What a chat template or a tokenizer would read as control: <image>, </s>, <|im_end|>, [INST].
_CONTROL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>|</?[A-Za-z_]{1,20}>|\[/?INST\]")


def control_token(text: str) -> str:
    """What a chat template or a tokenizer would read as control in a text, such as <image> or </s>; "" where there is none."""
    found = _CONTROL_TOKEN.search(text)
    return found.group() if found else ""


def harmless(text: str) -> str:
    """A text on one line, with spaces in place of control tokens: in a question it cannot speak as the user or add an image."""
    return " ".join(_CONTROL_TOKEN.sub(" ", text).split())


def _fields(text: str) -> list[str]:
    return [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]


def _placeholder_problems(text: str, *, allowed: bool) -> list[str]:
    problems = []
    if control := control_token(text):
        problems.append(f"{control} is not allowed: the engine adds the image and the chat's own tokens")
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError:
        return [*problems, "a brace is open or closed alone: write {{ and }} for braces"]
    for _, field, spec, conversion in parsed:
        if field is None:
            continue
        if field != PLACEHOLDER or spec or conversion:
            problems.append(f"the placeholder {{{field}}} is unknown: write {{alt_text}}, the only one")
        elif not allowed:
            problems.append("the fallback is for images without alt text: it cannot use {alt_text}")
    return problems


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question to the model. Raises UserError for a bad name, an unknown placeholder or a missing fallback."""

    name: str
    """The value of the column `prompt` in the captions."""
    text: str
    """The question; it may contain {alt_text}."""
    fallback: str | None = None
    """The question for images without alt text; required exactly where the text contains {alt_text}."""
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
        if not problems and self.uses_alt_text and not (self.fallback or "").strip():
            problems.append("the text uses {alt_text}, so it needs a fallback for images without alt text")
        if not problems and not self.uses_alt_text and self.fallback is not None:
            problems.append("there is a fallback, but the text does not use {alt_text}: remove it")
        if self.schema is not None:
            problems += [problem] if (problem := schema_problem(self.schema)) else []
            if control := control_token(self.schema):
                problems.append(f"{control} is not allowed in the schema: the engine adds the image and the chat's own tokens")
        if problems:
            raise UserError(f"prompt {self.name}: {'; '.join(problems)}")

    @property
    def uses_alt_text(self) -> bool:
        """Whether the question differs from image to image."""
        return PLACEHOLDER in _fields(self.text)

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
    """At least one; names are distinct."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError(f"prompt set {self.name} has no prompts: give at least one")
        names = [name for prompt in self.prompts for name in prompt.caption_names]
        repeated = [name for name, times in Counter(names).items() if times > 1]
        if repeated:
            raise UserError(f"prompt set {self.name} uses a name twice: {', '.join(repeated)}; give each prompt its own")


def render(prompt: Prompt, alt_text: str | None) -> str:
    """The question for one image. Line breaks and control tokens in the alt text become spaces, so that a web page cannot
    speak as the user or add an image; an alt text of nothing else counts as none."""
    if not prompt.uses_alt_text:
        return prompt.text.format()
    clean = harmless(alt_text or "")
    if not clean:
        assert prompt.fallback is not None
        return prompt.fallback.format()
    return prompt.text.format(alt_text=clean)
