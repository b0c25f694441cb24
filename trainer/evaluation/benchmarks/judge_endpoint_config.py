"""How a judge behind an OpenAI-compatible endpoint is asked. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True)
class JudgeEndpointConfig:
    """Where the judge answers, and how patiently it is asked."""

    url: str | None = None
    """Base address, as http://127.0.0.1:8000/v1; /chat/completions is added. A key does not belong into it."""
    model: str | None = None
    """The judge's name at that address; default: the judge that the benchmark was published with."""
    key_variable: str | None = None
    """Name of the environment variable that holds the key; default: none is sent."""
    body: dict[str, Any] = field(default_factory=dict)
    """Fields of the request beside model and messages, over those of the benchmark; null leaves one out."""
    concurrency: int = 8
    """Questions under way at once."""
    timeout_s: float = 300.0
    """How long one answer may take, in seconds."""
    outage_tries: int = 8
    """Tries of a question while the endpoint is out or busy; the pauses between them double from 1 s to 60 s."""
    answer_tries: int = 3
    """Tries of a question whose answer is no verdict; then the image stays unanswered."""

    def __post_init__(self) -> None:
        address = urlsplit(self.url or "http://none")
        problems = [
            message
            for message, holds in [
                ("judge.url must be http:// or https:// with a host", address.scheme in ("http", "https") and address.hostname),
                (
                    "judge.url must hold no user, password, query or fragment: name the key's variable in judge.key_variable",
                    not (address.username or address.password or address.query or address.fragment),
                ),
                ("judge.body must not hold model or messages", not {"model", "messages"} & self.body.keys()),
                (
                    "judge.concurrency, outage_tries and answer_tries must be 1 or more",
                    min(self.concurrency, self.outage_tries, self.answer_tries) >= 1,
                ),
                ("judge.timeout_s must be above 0", self.timeout_s > 0),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))
