"""Settings of the engine `endpoint`: address, images, patience, and what tokens cost."""

from dataclasses import dataclass, field
from typing import Any, Literal

from foundry.wording import url_problems

_ONE_MILLION = 1e6


@dataclass(frozen=True)
class EndpointSettings:
    """Settings of the engine `endpoint`. The address, and how it is asked, change no caption and may change between starts."""

    url: str | None = None
    """Base URL of the server, such as http://127.0.0.1:8000/v1. It must not contain a key."""
    key_variable: str | None = None
    """Name of the environment variable that holds the API key, on every node; default: send no key."""
    concurrency: int = 64
    """Number of concurrent requests per replica."""
    timeout_s: float = 300.0
    """Timeout of a request, in seconds."""
    tries: int = 8
    """Attempts at a request while the server is down; the pauses between them double from 1 s to 60 s. Rate limits (429) do not
    count."""
    image_side_px: int = 1024
    """Maximum length of the shorter side of the images sent, in pixels; larger ones are scaled down."""
    image_format: Literal["png", "jpeg"] = "png"
    """Format of the images sent: png (lossless), or jpeg of quality 95, at a fifth of the bytes."""
    image_urls: bool = False
    """Send the web address (http, https) of an image that has one, instead of its bytes. The server then downloads the image
    itself: it may see other bytes than those that were hashed and checked here, and at full size."""
    logprobs: bool = True
    """Ask for log-probabilities; if the server sends none, their columns are null."""
    body: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request, such as {"chat_template_kwargs": {"enable_thinking": false}}; null removes a field."""
    input_price: float = 0.0
    """Price of a million input tokens, in any currency."""
    output_price: float = 0.0
    """Price of a million output tokens, in the same currency."""
    max_cost: float | None = None
    """Total price of tokens at which the run stops with exit code 1; units in progress are then not committed, but paid for;
    default: no limit."""

    def __post_init__(self) -> None:
        problems = [] if self.url is None else url_problems(self.url, setting="endpoint.url")
        problems += [
            f"endpoint.{name} must be {bound}, not {getattr(self, name)}"
            for name, bound, holds in [
                ("concurrency", "1 or more", self.concurrency >= 1),
                ("timeout_s", "above 0", self.timeout_s > 0),
                ("tries", "1 or more", self.tries >= 1),
                ("image_side_px", "32 or more", self.image_side_px >= 32),
                ("input_price", "0 or more", self.input_price >= 0),
                ("output_price", "0 or more", self.output_price >= 0),
                ("max_cost", "above 0", self.max_cost is None or self.max_cost > 0),
                ("body", "without model and messages", not {"model", "messages"} & self.body.keys()),
            ]
            if not holds
        ]
        if self.max_cost is not None and not (self.input_price or self.output_price):
            problems.append("endpoint.max_cost needs endpoint.input_price and endpoint.output_price, for a million tokens each")
        if problems:
            raise ValueError("; ".join(problems))

    def cost(self, *, input_tokens: int, output_tokens: int) -> float:
        """Price of these tokens."""
        return (input_tokens * self.input_price + output_tokens * self.output_price) / _ONE_MILLION
