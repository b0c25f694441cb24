"""Settings of the image server, without torch: limits of requests and queue, adapters by name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from model.lora.settings import LoraChoice

_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Limits of requests and of the queue."""

    max_waiting: int = 64
    """Maximum number of images that wait to be drawn; a request that would exceed it gets status 429."""
    max_images: int = 10
    """Maximum number of images of a request (n)."""
    max_pixels: int | None = None
    """Maximum of height times width of an image; default: twice the area of the checkpoint's resolution."""
    max_steps: int = 100
    """Maximum number of steps."""
    max_prompt_chars: int = 4000
    """Maximum number of characters of a prompt, and of a negative prompt."""
    max_request_bytes: int = 1 << 20
    """Maximum size of a request, in bytes."""
    max_image_bytes: int = 20 << 20
    """Maximum size of a request that edits an image, in bytes."""

    def __post_init__(self) -> None:
        values = {name: value for name, value in vars(self).items() if value is not None}
        problems = [f"{name} must be 1 or more, found {value}" for name, value in values.items() if value < 1]
        if self.max_waiting < self.max_images:
            problems.append("max_waiting must be max_images or more, so that the largest request can wait")
        if problems:
            raise ValueError("; ".join(problems))


def parse_named(texts: Sequence[str]) -> dict[str, LoraChoice]:
    """Adapters by the names that requests give, each of NAME=PATH or NAME=PATH:SCALE. Raises ValueError."""
    found: dict[str, LoraChoice] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise ValueError(
                "lora: expected NAME=PATH or NAME=PATH:SCALE, the name of letters, digits, dots, hyphens and underscores, "
                f"found {text!r}"
            )
        if name in found:
            raise ValueError(f"lora: {name} is given twice: give each name once")
        found[name] = LoraChoice.parse(path)
    return found
