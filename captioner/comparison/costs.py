"""Cost and speed of a run, from its commits, and what its last start ran on: hardware, or a server."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captioner.comparison.candidates import Candidate
from captioner.engines.endpoint_settings import EndpointSettings
from dataset_builder.sql.run_files import RunFiles


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """Cost of a run, over all its images and prompts. None: not recorded, as for imported captions."""

    source: str
    num_images: int
    """Images that were captioned."""
    num_prompts: int
    tokens_per_image: float | None
    """Tokens written, under all prompts."""
    input_tokens_per_image: float | None
    replica_seconds: float | None
    """Time that replicas of the model took in all, without reading images and counting nouns."""
    images_per_s: float | None
    """Images per second of one replica, all prompts of an image included."""
    cost_per_1000: float | None
    """Price of the tokens of 1,000 images, where the run's settings have prices."""
    hardware: str
    """Device and nodes of the run's last start, or the server that was asked; "" if it is not known."""

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second of one replica."""
        if self.tokens_per_image is None or self.images_per_s is None:
            return None
        return self.tokens_per_image * self.images_per_s


def run_costs(candidates: Sequence[Candidate]) -> list[RunCost]:
    """Cost of each run."""
    return [_cost(one.source, one.files) for one in {one.run: one for one in candidates}.values()]


def _cost(source: str, files: RunFiles) -> RunCost:
    commits = files.commits
    images = sum(commit.completed for commit in commits)
    tokens = sum(commit.num_tokens for commit in commits)
    input_tokens = sum(commit.num_input_tokens for commit in commits)
    seconds = sum(commit.seconds.get("process", 0.0) for commit in commits)
    start = _last_start(files)
    config = start.get("config", files.record.origin.get("config", {}))
    prices = config.get("endpoint", {})
    price = EndpointSettings(**{name: prices.get(name, 0.0) for name in ("input_price", "output_price")})
    cost = price.cost(input_tokens=input_tokens, output_tokens=tokens)
    return RunCost(
        source=source,
        num_images=images,
        num_prompts=len(files.record.prompt_names),
        tokens_per_image=_per(tokens, images),
        input_tokens_per_image=_per(input_tokens, images),
        replica_seconds=seconds or None,
        images_per_s=_per(images, seconds),
        cost_per_1000=_per(1000 * cost, images),
        hardware=_hardware(start, config),
    )


def _hardware(start: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Hardware that wrote the captions: the node that asks a server says nothing about that server's hardware."""
    if config.get("engine") == "endpoint":
        return f"server at {config['endpoint']['url']}"
    return " ".join(str(start[name]) for name in ("device", "cluster") if start.get(name))


def _per(amount: float, of: float) -> float | None:
    """The ratio; None if either is zero, that is, was not recorded."""
    return amount / of if amount and of else None


def _last_start(files: RunFiles) -> dict[str, Any]:
    """The newest record in starts/, whose names begin with the time; empty for a run without."""
    names = sorted(name for name in files.folder.names("starts") if name.endswith(".json"))
    record: dict[str, Any] = json.loads(files.folder.read(f"starts/{names[-1]}")) if names else {}
    return record
