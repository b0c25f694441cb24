"""Report of a benchmark: a table for people, and one line of JSON as the last line, with date, commit and hardware."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from foundry.hardware import cpu_name


def print_report(title: str, figures: Mapping[str, float | None], *, dtype: str | None = None) -> None:
    """Prints the figures; floats with four significant digits, None as – and null.

    `dtype`: the number format that networks computed in.
    """
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    print(f"{title}, {datetime.now(UTC):%Y-%m-%d}, commit {_commit()}, {_hardware()}{f', {dtype}' if dtype else ''}")
    width = max(len(name) for name in rounded)
    for name, value in rounded.items():
        print(f"  {name:<{width}}  {'–' if value is None else f'{value:g}'}")
    print(json.dumps({**rounded, **({"dtype": dtype} if dtype else {}), "commit": _commit(), "hardware": _hardware()}))


def recorded_dtypes(runs: Iterable[Path]) -> str | None:
    """The number formats that trainings computed in, as their folders record them; None if there is no training."""
    from trainer.monitoring.run_folder import recorded_precision

    return ", ".join(sorted({found for run in runs if (found := recorded_precision(run)) is not None})) or None


def _commit() -> str:
    """The short hash of the checkout, with `+` where it has changes; `unknown` outside one."""
    root = Path(__file__).parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _hardware() -> str:
    """The cores, with the processor's model, and the GPUs by name."""
    import torch

    names = Counter(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    gpus = ", ".join(f"{count} x {name}" for name, count in names.items())
    return f"{os.cpu_count()} cores of {cpu_name()}, {gpus or 'no GPU'}"
