"""Command that prints the status of a captioning run, finished or in progress: `python -m captioner.status RUN`."""

from dataclasses import dataclass

from foundry.command_line import run_command


@dataclass(frozen=True)
class StatusConfig:
    """Settings of `python -m captioner.status`."""

    run: str
    """Folder of a captioning run."""
    json: bool = False
    """Print one line of JSON instead of text."""


def main(config: StatusConfig) -> int:
    """Prints the status; returns 0."""
    import json
    from dataclasses import asdict

    from dataset_builder.runs.status import read_status
    from foundry.storage.folder import Folder

    status = read_status(Folder(config.run))
    if config.json:
        print(json.dumps(asdict(status) | {"eta_s": status.eta_s}))
    else:
        print("\n".join([status.line(), *status.advice(config.run)]))
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            StatusConfig,
            main,
            prog="python -m captioner.status",
            example="python -m captioner.status runs/photos",
            positional=["run"],
        )
    )
