"""Command that opens a page in the browser over runs, data sets and trainings: `python -m studio.serve RUN`.

python -m studio.serve RUN OTHER_RUN DATASET runs        captions side by side, trainings overlaid
python -m studio.serve --checkpoints runs/aesthetic mini        drawing and blind comparison alone
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from foundry.command_line import run_command
from foundry.reporting.lines import say
from model.rewriting.config import RewriteConfig

_END_S = 8.0
"""Seconds after the signal at which what still runs is given up."""


@dataclass(frozen=True, kw_only=True)
class StudioConfig:
    """Settings of the studio. Raises ValueError for a port or a limit out of range, and where there is nothing to open."""

    open: tuple[str, ...] = ()
    """Captioning runs, data sets and trainings to open: folders, or URLs of the first two."""
    checkpoints: tuple[str, ...] = ()
    """Checkpoints to draw with, as model.generate names them; those of the trainings that are open are added."""
    lora: tuple[str, ...] = ()
    """LoRA adapters that may be added when drawing: trainings or checkpoints of a LoRA, .safetensors files, folders of peft."""
    rewrite: RewriteConfig = field(default_factory=RewriteConfig)
    """Rewriter of prompts for those who ask for it; default: the one that the checkpoint names."""
    out: str = "studio"
    """Folder for what you make: drawings, verdicts, recipes."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than a loopback address needs --key_variable or --key_file."""
    port: int = 7860
    """Port to listen on; 0: a free port, which is printed."""
    key_variable: str | None = None
    """Name of the environment variable that holds the key which a browser must know; default: none is required."""
    key_file: str | None = None
    """File that holds this key, instead of a variable."""
    cache: str | None = None
    """Folder for indexes of captions, which may be deleted at any time; default: t2i-foundry/studio in XDG_CACHE_HOME or
    ~/.cache."""
    sql_limit_s: float = 60.0
    """Maximum time of an SQL query, in seconds."""
    device: str = "auto"
    """Device that draws: cuda, cpu, …; auto: cuda if available."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0 to 65535, found {self.port}")
        if not 0 < self.sql_limit_s < 1e6:
            raise ValueError(f"sql_limit_s must be above 0 and below 1,000,000, found {self.sql_limit_s:g}")
        if not self.open and not self.checkpoints:
            raise ValueError("expected a run, a data set or a training to open, or checkpoints to draw with; found none")


def main(config: StudioConfig) -> int:
    """Serves until SIGTERM or Ctrl-C; returns 0, at the latest some seconds after it."""
    import gradio  # noqa: F401 - first, so that a missing one is said before anything is opened

    from foundry.http.server import address_of, listen, read_server_key, run_server
    from studio.app import studio_app
    from studio.folders import default_cache
    from studio.workplace import open_workplace

    key = read_server_key(config.key_variable, config.key_file, host=config.host)
    cache = Path(config.cache).expanduser() if config.cache else default_cache()
    with (
        _timer_to_end() as ending,
        listen(config.host, config.port) as listener,
        open_workplace(
            config.open,
            checkpoints=config.checkpoints,
            loras=config.lora,
            rewrite=config.rewrite,
            device=config.device,
            out=Path(config.out),
            cache=cache,
            sql_limit_s=config.sql_limit_s,
        ) as place,
    ):
        app = studio_app(place, key=key)
        say(f"the studio is at {address_of(listener)}{'' if key is None else '/?key=YOUR_KEY'}; Ctrl-C ends it")

        def on_stop() -> None:
            place.close()
            ending.start()

        run_server(app, listener, grace_s=2, on_stop=on_stop)
    return 0


@contextmanager
def _timer_to_end() -> Iterator[threading.Timer]:
    """A timer that ends the process: one step, or the loading of a model, may take minutes and cannot be interrupted."""
    timer = threading.Timer(_END_S, os._exit, [0])
    timer.daemon = True
    try:
        yield timer
    finally:
        timer.cancel()


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            StudioConfig,
            main,
            prog="python -m studio.serve",
            example="python -m studio.serve RUN",
            positional=("open",),
        )
    )
