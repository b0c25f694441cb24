"""Command that finds and deletes what killed jobs left behind in a run, a data set or features."""

from dataclasses import dataclass

from foundry.command_line import run_command
from foundry.reporting.lines import say


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """All settings of `python -m dataset_builder.clean`."""

    folder: str
    """Folder or URL of a run, a data set or features; folders in it are searched too."""
    delete: bool = False
    """Delete what was found; without it, the command only lists it."""
    older_than_h: float = 24.0
    """Hours since a file was written, at least: a job that is running may still need a younger one."""

    def __post_init__(self) -> None:
        if self.older_than_h < 0:
            raise ValueError("older_than_h must be 0 or more")


def main(config: CleanConfig) -> int:
    """Prints each file that no commit names and deletes it where that is asked for; returns 0."""
    from dataset_builder.runs.leftovers import delete, find_leftovers
    from foundry.storage.folder import Folder, store_errors
    from foundry.wording import counted

    folder = Folder(config.folder)
    with store_errors(folder):
        found = find_leftovers(folder, older_than_s=3600 * config.older_than_h)
        for path, num_bytes in sorted(found.files.items()):
            print(f"{num_bytes:>12,} {path}")
        if config.delete:
            delete(folder, found)
    done = "deleted" if config.delete else "left over; delete them with --delete"
    say(f"{config.folder}: {counted(len(found.files), 'file')}, {sum(found.files.values()) / 1e6:.1f} MB {done}")
    if found.num_young:
        say(f"{counted(found.num_young, 'file')} younger than {config.older_than_h:g} h kept: a job may be writing them")
    if found.num_uncommitted:
        say(f"{counted(found.num_uncommitted, 'attempt')} at units that are not done yet kept: finish the job first")
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            CleanConfig,
            main,
            prog="python -m dataset_builder.clean",
            example="python -m dataset_builder.clean runs/photos --delete",
            positional=["folder"],
        )
    )
