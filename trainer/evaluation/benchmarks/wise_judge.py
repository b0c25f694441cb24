"""Asks a judge about images of WISE: several questions at once, each answer kept as it comes, verdicts in the images' order."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from foundry.errors import UserError
from trainer.evaluation.benchmark import Prompt, Verdict
from trainer.evaluation.benchmarks.wise_instructions import Instructions
from trainer.evaluation.judges.endpoint import JudgeEndpoint, image_url
from trainer.evaluation.judges.endpoint_answers import KeptAnswers, question_key

UNANSWERED = "unanswered"
"""Metric: 1 for an image that the judge gave no verdict on, and that has no other values; 0 for the others."""
UNANSWERED_IN_A_ROW = 10
"""So many images without a verdict one after another, and the judge is not asked any more."""


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
        """`body` has the model and what else a request holds beside its messages; `read_answer` gives None for no verdict."""
        self.endpoint = endpoint
        self.kept = kept
        self.instructions = instructions
        self.body = dict(body)
        self.read_answer = read_answer
        self._lock = threading.Lock()
        self._unanswered_in_a_row = 0
        self._failure: UserError | None = None

    def __call__(self, images: Sequence[npt.NDArray[np.uint8]], prompts: Sequence[Prompt]) -> Iterator[Verdict]:
        """Verdicts in order. Raises UserError where the endpoint is out, or answers nothing that is a verdict.

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
