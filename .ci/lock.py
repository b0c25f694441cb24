"""Writes requirements.lock: what pip chooses for pyproject.toml with all extras, each with its hash. Run by `make lock`.

Versions that are locked already stay, unless `--upgrade` is given. The files are those of the machine that runs it: Linux
x86-64 and Python 3.11. pip-compile is not used, since it downloads the files of every platform where an index has no JSON API.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"


def _resolve(*, upgrade: bool) -> list[dict[str, Any]]:
    """pip's report of what it would install into an empty environment. Raises CalledProcessError if pip finds no solution."""
    extras = ",".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        lines = LOCK.read_text().splitlines() if LOCK.exists() and not upgrade else []
        constraints.write_text("\n".join(line.split()[0] for line in lines if "==" in line))
        command = [
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            "--no-build-isolation",
            "--constraint",
            str(constraints),
        ]
        subprocess.run(
            [sys.executable, "-m", "pip", *command, "--report", str(report), f"{ROOT}[{extras}]"], check=True, stdout=sys.stderr
        )
        return list(json.loads(report.read_text())["install"])


def _write(packages: list[dict[str, Any]]) -> None:
    """One entry for each package, by name, without the project itself and without the address of an index."""
    entries = {}
    for package in packages:
        archive = package["download_info"].get("archive_info")
        if archive is not None:
            name = canonicalize_name(package["metadata"]["name"])
            entries[name] = f"{name}=={package['metadata']['version']} \\\n    --hash=sha256:{archive['hashes']['sha256']}\n"
    LOCK.write_text(
        "# Linux x86-64, Python 3.11. Written by `make lock`.\n" + "".join(entries[name] for name in sorted(entries))
    )


if __name__ == "__main__":
    _write(_resolve(upgrade="--upgrade" in sys.argv[1:]))
