"""Judge behind an OpenAI-compatible endpoint. Its answers are kept as they come, one JSON line each in
DIR/answers/<judge>.jsonl, so that none is paid for twice."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundry.chat_endpoint import Answer, ChatEndpoint, Endpoint
from foundry.errors import UserError
from foundry.storage.json_lines import open_rows
from trainer.evaluation.config import JudgeEndpointConfig

ANSWERS = "answers"


class JudgeEndpoint(ChatEndpoint):
    """A judge that can be asked. Several threads may ask at once."""

    def __init__(self, config: JudgeEndpointConfig) -> None:
        """Raises UserError if the address or the key is missing."""
        if config.url is None:
            raise UserError(
                "no judge to ask: give the address of an OpenAI-compatible endpoint (docs/evaluation.md)",
                setting="wise.judge.url",
            )
        self.config = config
        super().__init__(
            Endpoint(
                url=config.url,
                key_variable=config.key_variable,
                timeout_s=config.timeout_s,
                tries=config.outage_tries,
                name="the judge",
                section="wise.judge",
            )
        )


class KeptAnswers:
    """The answers that are there. Several threads may use it at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = threading.Lock()
        self._verdicts: dict[str, str] = {row["key"]: row["answer"] for row in _verdict_rows(path)}

    def verdict(self, key: str) -> str | None:
        """The text of the answer to a question, if one is kept that is a verdict."""
        with self._lock:
            return self._verdicts.get(key)

    def keep(self, key: str, prompt: Mapping[str, Any], model: str, answer: Answer, *, is_verdict: bool) -> None:
        """Writes a line."""
        fields = dataclasses.asdict(answer)
        del fields["logprobs"]
        row = {"key": key, **prompt, "model": model, "answer": fields.pop("text"), "is_verdict": is_verdict, **fields}
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if is_verdict:
                self._verdicts[key] = answer.text


def models_that_answered(path: Path) -> list[str]:
    """Models that endpoints named in the verdicts of a file, in order; none without a file."""
    return list(dict.fromkeys(row["answered_by"] for row in _verdict_rows(path) if row.get("answered_by")))


def question_key(body: Mapping[str, Any]) -> str:
    """Key of the whole request, image included: the same question has the same key, whatever address it is asked at."""
    return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=12).hexdigest()


def _verdict_rows(path: Path) -> list[dict[str, Any]]:
    return [row for row in open_rows(path) if row["is_verdict"]]
