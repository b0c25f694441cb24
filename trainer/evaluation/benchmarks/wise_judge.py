"""Questions to a judge about images of WISE: several at once, each answer kept as it comes, verdicts in the images' order."""

import ast
import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foundry.chat_endpoint import image_url
from foundry.errors import UserError
from trainer.evaluation.benchmark import Prompt, Verdict
from trainer.evaluation.judges.endpoint import JudgeEndpoint, KeptAnswers, question_key

UNANSWERED = "unanswered"
"""Metric: 1 for an image that the judge gave no verdict on, and that has no other values; 0 for the others."""
UNANSWERED_IN_A_ROW = 10
"""So many images without a verdict one after another, and the judge is not asked any more."""
_PLACEHOLDER = re.compile(r"\{(prompt|explanation)\}")
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


class WiseJudge:
    """A judge of images, each by itself."""

    def __init__(
        self,
        endpoint: JudgeEndpoint,
        kept: KeptAnswers,
        *,
        instructions: Instructions,
        body: Mapping[str, Any],
        read_answer: Callable[[str], Mapping[str, float] | None],
    ) -> None:
        """`body` has the fields of a request besides its messages; `read_answer` gives None for no verdict."""
        self.endpoint = endpoint
        self.kept = kept
        self.instructions = instructions
        self.body = dict(body)
        self.read_answer = read_answer
        self._lock = threading.Lock()
        self._unanswered_in_a_row = 0
        self._failure: UserError | None = None

    def __call__(self, images: Sequence[npt.NDArray[np.uint8]], prompts: Sequence[Prompt]) -> Iterator[Verdict]:
        """Verdicts in order. Raises UserError if the endpoint is out, or answers nothing that is a verdict.

        When it ends early, questions under way are waited for, and their answers kept.
        """
        pool = ThreadPoolExecutor(self.endpoint.config.concurrency)
        try:
            for found in [pool.submit(self._verdict, *one) for one in zip(images, prompts, strict=True)]:
                yield found.result()
        except UserError as error:
            raise self._failure or error from None  # the first of several threads knows why
        except BaseException:
            self.endpoint.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _verdict(self, image: npt.NDArray[np.uint8], prompt: Prompt) -> Verdict:
        body = {**self.body, "messages": self.instructions.filled(prompt, image_url(image))}
        key = question_key(body)
        said = self.kept.verdict(key)
        if said is None:
            try:
                said, is_verdict = self._ask(key, body, prompt)
                self._count(said, is_verdict=is_verdict)
            except UserError as error:
                with self._lock:
                    self._failure = self._failure or error
                self.endpoint.stop()
                raise
        values = self.read_answer(said)
        if values is None:
            tries = self.endpoint.config.answer_tries
            return Verdict(values={UNANSWERED: 1.0}, seen=f"no verdict in {tries} answers, the last one: {said or '(empty)'}")
        return Verdict(values={**values, UNANSWERED: 0.0}, seen=said)

    def _ask(self, key: str, body: Mapping[str, Any], prompt: Prompt) -> tuple[str, bool]:
        """The text of the first answer that is a verdict, else of the last one; and whether it is."""
        about = {"prompt_id": prompt.data["prompt_id"], "prompt": prompt.text}
        for _ in range(self.endpoint.config.answer_tries):
            answer = self.endpoint.ask(body)
            is_verdict = self.read_answer(answer.text) is not None
            self.kept.keep(key, about, str(body["model"]), answer, is_verdict=is_verdict)
            if is_verdict:
                break
        return answer.text or f"({answer.finish_reason})", is_verdict

    def _count(self, said: str, *, is_verdict: bool) -> None:
        with self._lock:
            self._unanswered_in_a_row = 0 if is_verdict else self._unanswered_in_a_row + 1
            if self._unanswered_in_a_row >= UNANSWERED_IN_A_ROW:
                raise UserError(
                    f"the judge {self.body['model']} gave no verdict on {UNANSWERED_IN_A_ROW} images in a row, its last words: "
                    f"{said[:200]!r}; see that it is a model that reads images, and that its answers are not cut off "
                    "(judge.body); with another judge.body or judge.model they are asked about again"
                )


def read_instructions(path: str) -> Instructions:
    """Reads a Python source with the messages in it, or a text that is the only message. Raises UserError."""
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
        messages = tuple(_messages(ast.parse(text))) if file.suffix == ".py" else (("user", text.strip()),)
    except OSError as error:
        raise UserError(
            f"the instructions {file} cannot be read ({error.strerror}): give another file", setting="wise.instructions"
        ) from error
    except (SyntaxError, ValueError) as error:
        raise UserError(f"the instructions {file} cannot be read ({error}): give a text file in their place") from error
    names = {name for _, message in messages for name in _PLACEHOLDER.findall(message)}
    if lacking := sorted({"prompt", "explanation"} - names):
        raise UserError(f"the instructions {file} have no place for the {lacking[0]}: write {{{lacking[0]}}} where it belongs")
    if messages[-1][0] != "user":
        raise UserError(f"the instructions {file} end with a message of {messages[-1][0]}: the last must be the user's")
    return Instructions(messages=messages)


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Fills in all placeholders in one pass: the text of a prompt is never taken for a placeholder."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], text)


def _messages(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Role and text of each {"role": …, "content": [{"type": "text", "text": …}, …]} in a source."""
    for node in ast.walk(tree):
        fields = _fields(node)
        if {"role", "content"} <= fields.keys() and isinstance(fields["role"], ast.Constant):
            parts = [_fields(part)["text"] for part in ast.walk(fields["content"]) if "text" in _fields(part)]
            yield str(fields["role"].value), "".join(map(_template, parts or [fields["content"]]))


def _fields(node: ast.AST) -> dict[str, ast.expr]:
    """The values of a dict display by their literal keys."""
    if not isinstance(node, ast.Dict):
        return {}
    return {str(key.value): value for key, value in zip(node.keys, node.values, strict=True) if isinstance(key, ast.Constant)}


def _template(node: ast.expr) -> str:
    """The text of a string or an f-string. Raises ValueError for a value in it that is neither prompt nor explanation."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_template, node.values))
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Subscript):
        name = node.value.slice
        if isinstance(name, ast.Constant) and name.value in _NAMES:
            return _NAMES[str(name.value)]
    raise ValueError(f"line {node.lineno}: what a message says is not written there")
