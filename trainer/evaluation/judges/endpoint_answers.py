"""Answers of a judge as they came, one JSON line each, so that none is paid for twice: DIR/answers/<judge>.jsonl.

Each try has its line: the key of the question, what the prompt was, the answer, whether it is a verdict, and its tokens. Lines
are written as answers come, by several threads; a line that a kill cut off is removed when the file is opened again.
"""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.evaluation.judges.endpoint import Answer

ANSWERS = "answers"


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
        row = {"key": key, **prompt, "model": model, "answer": fields.pop("text"), "is_verdict": is_verdict, **fields}
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if is_verdict:
                self._verdicts[key] = answer.text


def models_that_answered(path: Path) -> list[str]:
    """Those that endpoints named in the verdicts of a file, in order; none where there is no file."""
    return list(dict.fromkeys(row["answered_by"] for row in _verdict_rows(path) if row.get("answered_by")))


def question_key(body: Mapping[str, Any]) -> str:
    """Of the whole request, image included: the same question has the same key, whatever address it is asked at."""
    return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=12).hexdigest()


def _verdict_rows(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in _whole_lines(path)]
    return [row for row in rows if row["is_verdict"]]


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file; one that a kill cut off is removed."""
    if not path.exists():
        return []
    with path.open("r+b") as file:
        whole = file.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        file.truncate(len(whole))
    return whole.splitlines()
