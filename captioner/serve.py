"""Command that serves a vision-language model over HTTP, as OpenAI's chat completions: for `captioner.run --engine endpoint`.

python -m captioner.serve --model llava-hf/llava-1.5-7b-hf
"""

from dataclasses import dataclass, field

from captioner.config import REAL_MODEL
from captioner.engines.generation import GenerationSettings
from foundry.command_line import run_command
from foundry.wording import CHOICE, ModelChoice


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """All settings of `python -m captioner.serve`. Raises ValueError for settings out of range."""

    model: str = field(metadata={CHOICE: ModelChoice(real=REAL_MODEL)})
    """Checkpoint: a hub id, a folder written by save_pretrained, or `mini`: the bundled toy, for emoji scenes only."""
    revision: str | None = None
    """Commit or tag of a hub model; default: the newest commit."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than a loopback address needs --key_variable or --key_file."""
    port: int = 8000
    """Port to listen on; 0: a free port, which is printed."""
    key_variable: str | None = None
    """Name of the environment variable that holds the key which clients must send as a bearer token; default: no key is
    required."""
    key_file: str | None = None
    """File that holds this key, instead of a variable."""
    max_request_bytes: int = 32 << 20
    """Maximum size of a request, in bytes."""
    max_waiting: int = 256
    """Maximum number of requests that wait for the model; further ones get status 429."""
    max_new_tokens: int = 1024
    """Maximum number of tokens of an answer."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    """Number format, batch size, and defaults for what requests leave out."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {bound}, not {getattr(self, name)}"
            for name, bound, holds in [
                ("port", "0 to 65535", 0 <= self.port <= 65535),
                ("max_request_bytes", "1 or more", self.max_request_bytes >= 1),
                ("max_waiting", "1 or more", self.max_waiting >= 1),
                ("max_new_tokens", "1 or more", self.max_new_tokens >= 1),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))


def main(config: ServeConfig) -> int:
    """Serves until it is interrupted; returns 0."""
    from captioner.engines.model_source import resolve_model
    from captioner.engines.server import ServerLimits, serve

    limits = ServerLimits(
        max_request_bytes=config.max_request_bytes, max_waiting=config.max_waiting, max_new_tokens=config.max_new_tokens
    )
    model = resolve_model(config.model, revision=config.revision, image_side_px=config.generation.image_side_px)
    serve(
        model,
        config.generation,
        limits=limits,
        host=config.host,
        port=config.port,
        key_variable=config.key_variable,
        key_file=config.key_file,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            ServeConfig, main, prog="python -m captioner.serve", example="python -m captioner.serve --model mini --port 8000"
        )
    )
