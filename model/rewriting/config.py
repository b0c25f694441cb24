"""Settings of rewriting, shared by the commands that draw. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any

from foundry.wording import url_problems

OF_CHECKPOINT = "checkpoint"
"""The name of the rewriter that pipeline.json of the checkpoint names."""


@dataclass(frozen=True, kw_only=True)
class RewriteConfig:
    """Rewriter of the prompts: a local model, or a model behind an OpenAI-compatible endpoint."""

    model: str | None = None
    """Rewriter: `checkpoint` (the one in pipeline.json), a folder, a hub id, or with a URL the model's name there; default:
    draw prompts as written."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    url: str | None = None
    """Base URL of an endpoint that rewrites, such as http://127.0.0.1:8000/v1. It must not contain a key."""
    key_variable: str | None = None
    """Name of the environment variable that holds the API key; default: send no key."""
    body: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request, such as {"chat_template_kwargs": {"enable_thinking": false}}; null removes one."""
    concurrency: int = 8
    """Number of concurrent requests."""
    timeout_s: float = 300.0
    """Timeout of a request, in seconds."""
    tries: int = 8
    """Attempts at a request while the endpoint is down; the pauses between them double from 1 s to 60 s. Rate limits (429) do
    not count."""
    cache: str | None = None
    """Folder, local or on object storage, that keeps each rewritten prompt; several processes may share it. Default: none
    in model.generate, OUT/rewritten in trainer.evaluate and model.rewrite."""

    def __post_init__(self) -> None:
        problems = [] if self.url is None else url_problems(self.url, setting="rewrite.url")
        problems += [
            message
            for message, holds in [
                ("rewrite.url needs rewrite.model, the model's name there", self.url is None or self.model is not None),
                ("rewrite.body must not hold model or messages", not {"model", "messages"} & self.body.keys()),
                ("rewrite.concurrency and rewrite.tries must be 1 or more", min(self.concurrency, self.tries) >= 1),
                ("rewrite.timeout_s must be above 0", self.timeout_s > 0),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))
