"""Command that fetches a data set or a model from the Hugging Face hub: `python -m publisher.pull USER/NAME FOLDER`.

The same command again finishes a download that was stopped. A private repository needs HF_TOKEN.
"""

from dataclasses import dataclass
from typing import Literal

from foundry.command_line import run_command
from foundry.commands import as_typed


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """All settings of `python -m publisher.pull`."""

    repository: str
    """Repository on the hub, USER/NAME or ORGANISATION/NAME."""
    out: str
    """Folder to fetch it into: a new one, or that of an earlier pull."""
    kind: Literal["auto", "dataset", "model"] = "auto"
    """Kind of the repository; auto: whichever exists."""
    revision: str | None = None
    """Branch, tag or commit; default: the newest files."""


def main(config: PullConfig) -> int:
    """Fetches, says what it is and returns 0. Raises UserError, also for a data set whose push is not finished."""
    from pathlib import Path

    from foundry.reporting.lines import say
    from foundry.storage.hub import Repository, find_kind
    from foundry.storage.hub_transfers import pull_folder
    from publisher.pulled import describe

    kind = find_kind(config.repository) if config.kind == "auto" else config.kind
    pull_folder(Repository(name=config.repository, kind=kind), Path(config.out), revision=config.revision)
    say(as_typed(describe(config.out, config.repository)))
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            PullConfig,
            main,
            prog="python -m publisher.pull",
            example="python -m publisher.pull USER/photos datasets/photos",
            positional=("repository", "out"),
        )
    )
