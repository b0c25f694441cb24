"""What the judge of WISE is told: words of our own, or the user's copy of the original.

The original stands inside WISE's gpt_eval.py and vllm_eval.py, as the text of the messages that they send. It is read out of
the source; nothing of it is run.
"""

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from trainer.evaluation.benchmark import Prompt

_PLACE = re.compile(r"\{(prompt|explanation)\}")
_NAMES = {"Prompt": "{prompt}", "Explanation": "{explanation}"}

_TASK = """A text-to-image model drew this picture from a prompt that only hints at what ought to be seen.

Prompt: {prompt}
What a right picture shows: {explanation}

"""

GRADES = (
    _TASK
    + """Grade the picture three times with 0, 1 or 2, strictly: where you waver, take the lower grade.
Consistency: 2 if everything that belongs into a right picture is there and nothing speaks against it, 1 if a part of it is
there, 0 if the main thing is missing or wrong.
Realism: 2 if it could pass for a photograph, 1 if one can believe it in spite of flaws, 0 if it is broken or impossible.
Aesthetic Quality: 2 if it is outstanding as a picture, 1 if it is ordinary, 0 if it is ugly.

Answer with three lines and nothing else, each a name and a grade:
Consistency: 0
Realism: 0
Aesthetic Quality: 0"""
)
"""Our own words for WISE legacy."""

RIGHT_OR_WRONG = (
    _TASK
    + """Does the picture show it? Beauty and style do not count. It is right if what is described is there, with its objects,
states and relations, clear enough to be sure of. It is wrong if something that matters is missing, contradicted or doubtful, if
only the words of the prompt were drawn and not what they hint at, or if the picture is too broken to tell.

Answer with one line and nothing else: Score: 1 for right, Score: 0 for wrong."""
)
"""Our own words for WISE_Verified."""


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """The messages to the judge."""

    messages: tuple[tuple[str, str], ...]
    """Role and text of each, with {prompt} and {explanation} in their places; the last takes the image."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all texts."""
        return hashlib.sha256(repr(self.messages).encode()).hexdigest()[:16]

    def filled(self, prompt: Prompt, image_url: str) -> list[dict[str, Any]]:
        """The messages about one image, as chat completions take them."""
        values = {"prompt": prompt.text, "explanation": str(prompt.data["explanation"])}
        contents: list[list[dict[str, Any]]] = [[{"type": "text", "text": _fill(text, values)}] for _, text in self.messages]
        contents[-1].append({"type": "image_url", "image_url": {"url": image_url}})
        return [{"role": role, "content": content} for (role, _), content in zip(self.messages, contents, strict=True)]


def read_instructions(path: str) -> Instructions:
    """Of a Python source with the messages in it, or of a text that is the only message. Raises UserError."""
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
        messages = tuple(_messages(ast.parse(text))) if file.suffix == ".py" else (("user", text.strip()),)
    except OSError as error:
        raise UserError(f"the instructions {file} cannot be read ({error.strerror}): see --wise.instructions") from error
    except (SyntaxError, ValueError) as error:
        raise UserError(f"the instructions {file} cannot be read ({error}): give a text file in their place") from error
    places = {place for _, message in messages for place in _PLACE.findall(message)}
    if lacking := sorted({"prompt", "explanation"} - places):
        raise UserError(f"the instructions {file} have no place for the {lacking[0]}: write {{{lacking[0]}}} where it belongs")
    if messages[-1][0] != "user":
        raise UserError(f"the instructions {file} end with a message of {messages[-1][0]}: the last must be the user's")
    return Instructions(messages=messages)


def _fill(text: str, values: Mapping[str, str]) -> str:
    """In one pass: what a prompt holds is never taken for a place."""
    return _PLACE.sub(lambda place: values[place[1]], text)


def _messages(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Role and text of each {"role": …, "content": [{"type": "text", "text": …}, …]} in a source."""
    for node in ast.walk(tree):
        fields = _fields(node)
        if {"role", "content"} <= fields.keys() and isinstance(fields["role"], ast.Constant):
            parts = [_fields(part)["text"] for part in ast.walk(fields["content"]) if "text" in _fields(part)]
            yield str(fields["role"].value), "".join(map(_template, parts or [fields["content"]]))


def _fields(node: ast.AST) -> dict[str, ast.expr]:
    """Of a dict display: values by their literal keys."""
    if not isinstance(node, ast.Dict):
        return {}
    return {str(key.value): value for key, value in zip(node.keys, node.values, strict=True) if isinstance(key, ast.Constant)}


def _template(node: ast.expr) -> str:
    """Of a string or an f-string. Raises ValueError for what is put into it and is neither prompt nor explanation."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_template, node.values))
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Subscript):
        name = node.value.slice
        if isinstance(name, ast.Constant) and name.value in _NAMES:
            return _NAMES[str(name.value)]
    raise ValueError(f"line {node.lineno}: what a message says is not written there")
