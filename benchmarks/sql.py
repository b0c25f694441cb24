"""Time and memory of SQL and `build` on a large run: `python -m benchmarks.sql`.

A synthetic run (benchmarks/synthetic_run.py) replaces the captioner's. Every figure is the wall-clock time of its process,
Python's start included; peak_gb is the largest of them, and of those that write the run. slowest_macro_s is over the
macros on the data set that `build` made, with_all as a table; as a condition, which reads all captions' nouns, it is apart.
"""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import print_report
from foundry.command_line import run_command
from foundry.errors import UserError

_MACROS = {
    "density": "FROM density()",
    "valid_nouns": "SELECT count(*) FROM valid_nouns(11)",
    "rarefied": "FROM rarefied(100000)",
    "compare": "SELECT count(*) FROM compare('train', 'validation')",
    "with_all": "SELECT count(*) FROM with_all(['aaf', 'aaz'])",
}
_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
_CONDITION = "SELECT count(*) FROM captions WHERE with_all(nouns, ['aaf', 'aaz'])"


@dataclass(frozen=True)
class SqlConfig:
    """Settings of the benchmark."""

    captions: int = 10_000_000
    """Rows of captions."""
    units: int = 20_000
    """Unit files of each kind."""
    nouns: int = 150_000
    """Words that nouns are drawn from."""
    where: str = "num_distinct_nouns >= 20 AND width >= 512 AND height >= 512"
    """The condition of `build`."""
    folder: str = ""
    """Folder in which run and data set are written and stay; default: a temporary one. A run that is there already is used."""


def main(config: SqlConfig) -> int:
    """Prints the figures; returns 0."""
    if config.folder:
        _measure(config, Path(config.folder))
    else:
        with tempfile.TemporaryDirectory(prefix="t2i-sql-benchmark-") as directory:
            _measure(config, Path(directory))
    return 0


def _measure(config: SqlConfig, folder: Path) -> None:
    run, dataset = folder / "run", folder / "dataset"
    write_s = _write(config, run)
    shutil.rmtree(dataset, ignore_errors=True)
    density_s = _query(run, _MACROS["density"])
    build_s = _timed("dataset_builder.build", "--captions", str(run), "--out", str(dataset), "--where", config.where)
    macros = {name: _query(dataset, sql) for name, sql in _MACROS.items()}
    figures: dict[str, float] = {
        "rows": config.captions,
        "density_s": density_s,
        "slowest_macro_s": max(macros.values()),
        "build_s": build_s,
        "peak_gb": max(resource.getrusage(who).ru_maxrss for who in _PROCESSES) / 1e6,
        **{f"{name}_s": seconds for name, seconds in macros.items() if name != "density"},
        "with_all_condition_s": _query(dataset, _CONDITION),
        "dataset_gb": sum(path.stat().st_size for path in dataset.rglob("*.parquet")) / 1e9,
        "write_run_s": write_s,
    }
    print_report("SQL and build", figures)


def _write(config: SqlConfig, run: Path) -> float:
    """Writes the run, or what is missing of it, and returns the seconds that it took."""
    from benchmarks.synthetic_run import SyntheticRun, write_run

    started = time.perf_counter()
    write_run(run, SyntheticRun(num_captions=config.captions, num_units=config.units, num_nouns=config.nouns))
    return time.perf_counter() - started


def _query(data: Path, sql: str) -> float:
    return _timed("dataset_builder.query", str(data), sql, "--format", "json")


def _timed(module: str, *arguments: str) -> float:
    """The wall clock of a command. Raises UserError if it fails."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"python -m {module} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(
        run_command(SqlConfig, main, prog="python -m benchmarks.sql", example="python -m benchmarks.sql --captions 500000")
    )
