"""Prompt sets of the captioner: named and versioned, the paper's first.

A set is chosen by name (`--prompts ladder`) or read from a YAML file (`--prompts mine.yaml`):

    name: mine
    version: "1"
    prompts:
      - name: dense
        text: Describe this image in full sentences.
      - name: with_alt_text
        text: 'Its alt text is "{alt_text}". Describe this image.'
        fallback: Describe this image.
"""

import difflib
import re
import string
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.errors import UserError

PLACEHOLDER = "alt_text"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# What a chat template or a tokenizer would read as control: <image>, </s>, <|im_end|>, [INST].
_CONTROL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>|</?[A-Za-z_]{1,20}>|\[/?INST\]")


def control_token(text: str) -> str:
    """What a chat template or a tokenizer would read as control in a text, such as <image> or </s>; "" where there is none."""
    found = _CONTROL_TOKEN.search(text)
    return found.group() if found else ""


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
        if problems:
            raise UserError(f"prompt {self.name}: {'; '.join(problems)}")

    @property
    def uses_alt_text(self) -> bool:
        """Whether the question differs from image to image."""
        return PLACEHOLDER in _fields(self.text)


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
        repeated = [name for name, times in Counter(prompt.name for prompt in self.prompts).items() if times > 1]
        if repeated:
            raise UserError(f"prompt set {self.name} uses a name twice: {', '.join(repeated)}; give each prompt its own")


# Source: PixArt-alpha (arXiv 2310.00426), section 2.4: the prompt given to LLaVA.
_DENSE = Prompt(name="dense", text="Describe this image and its style in a very detailed manner")

PROMPT_SETS = {
    "paper": PromptSet(name="paper", version="1", prompts=(_DENSE,)),
    "ladder": PromptSet(
        name="ladder",
        version="1",
        prompts=(
            _DENSE,
            Prompt(name="medium", text="Describe this image in one or two sentences"),
            Prompt(name="short", text="Name what this image shows in a few words"),
        ),
    ),
    "alt_text": PromptSet(
        name="alt_text",
        version="1",
        prompts=(
            Prompt(
                name="dense_alt_text",
                text='The page that shows this image calls it "{alt_text}". That may be wrong or incomplete. '
                "Using the names in it that fit, describe this image and its style in a very detailed manner",
                fallback=_DENSE.text,
            ),
        ),
    ),
}


def load_prompts(name_or_path: str) -> PromptSet:
    """The set of that name, or the one in a YAML file.

    Raises UserError for an unknown name (with the nearest), an unreadable file and a set that is not valid.
    """
    if name_or_path in PROMPT_SETS:
        return PROMPT_SETS[name_or_path]
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return _read_yaml(path)
    near = difflib.get_close_matches(name_or_path, PROMPT_SETS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(PROMPT_SETS)} or a YAML file"
    raise UserError(f"there is no prompt set {name_or_path}: {hint}")


def render(prompt: Prompt, alt_text: str | None) -> str:
    """The question for one image. Line breaks and control tokens in the alt text become spaces, so that a web page cannot
    speak as the user or add an image; an alt text of nothing else counts as none."""
    if not prompt.uses_alt_text:
        return prompt.text.format()
    clean = " ".join(_CONTROL_TOKEN.sub(" ", alt_text or "").split())
    if not clean:
        assert prompt.fallback is not None
        return prompt.fallback.format()
    return prompt.text.format(alt_text=clean)


def _read_yaml(path: Path) -> PromptSet:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the prompts {path} cannot be read ({error.strerror}): check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the prompts {path} are not valid YAML ({' '.join(str(error).split())}): correct the file") from None
    _check_keys(content, where=str(path), required={"name", "version", "prompts"}, optional=set())
    if not isinstance(content["prompts"], list):
        raise UserError(f"{path}: prompts must be a list, see the example in captioner/prompts.py")
    prompts = []
    for number, entry in enumerate(content["prompts"], start=1):
        _check_keys(entry, where=f"{path}, prompt {number}", required={"name", "text"}, optional={"fallback"})
        prompts.append(Prompt(**{key: str(value) for key, value in entry.items()}))
    return PromptSet(name=str(content["name"]), version=str(content["version"]), prompts=tuple(prompts))


def _check_keys(entry: Any, *, where: str, required: set[str], optional: set[str]) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected a mapping with {', '.join(sorted(required))}, found {type(entry).__name__}")
    missing = sorted(required - set(entry))
    unknown = sorted(set(map(str, entry)) - required - optional)
    if missing or unknown:
        problems = ([f"lacks {', '.join(missing)}"] if missing else []) + (
            [f"has unknown {', '.join(unknown)}"] if unknown else []
        )
        raise UserError(f"{where} {' and '.join(problems)}: it takes {', '.join(sorted(required | optional))}")
