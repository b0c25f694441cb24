"""Writes requirements.lock: what pip chooses for pyproject.toml with all extras, each with its hashes. Run by `make lock`.

One lock for Linux x86-64 and each of PYTHONS, whose interpreters must be there (with pyenv: name them in PYENV_VERSION).
Versions that are locked already stay, unless `--upgrade` is given, and the later Pythons get those of the earlier ones where
they can. pip-compile is not used, since it downloads the files of every platform where an index has no JSON API.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PYTHONS = ("3.11", "3.12", "3.13")


@dataclass(frozen=True)
class Package:
    """A version of a distribution, and the file of it that one Python gets."""

    name: str
    version: str
    sha256: str


def _resolve(python: str, *, constraints: list[str], folder: Path) -> list[Package]:
    """Packages that pip would install into an empty environment of a Python. Raises CalledProcessError if it finds no
    solution."""
    environment = folder / python
    try:
        subprocess.run([f"python{python}", "-m", "venv", environment], check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        advice = "install it; with pyenv: PYENV_VERSION=3.11.x:3.12.x:3.13.x make lock"
        raise SystemExit(f"error: python{python} is needed too: {advice}") from None
    pip, known, report = environment / "bin" / "pip", folder / "constraints.txt", folder / "report.json"
    known.write_text("\n".join(constraints))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    subprocess.run([pip, "install", "--quiet", *project["build-system"]["requires"]], check=True, stdout=sys.stderr)
    extras = ",".join(project["project"]["optional-dependencies"])
    options = ["--quiet", "--dry-run", "--ignore-installed", "--no-build-isolation", "--constraint", known, "--report", report]
    subprocess.run([pip, "install", *options, f"{ROOT}[{extras}]"], check=True, stdout=sys.stderr)
    return [found for one in json.loads(report.read_text())["install"] if (found := _package(one)) is not None]


def _package(item: dict[str, Any]) -> Package | None:
    """A line of pip's report; None for the project itself, which is no archive."""
    archive = item["download_info"].get("archive_info")
    if archive is None:
        return None
    metadata = item["metadata"]
    if not item["download_info"]["url"].endswith(".whl"):
        print(f"warning: {metadata['name']} has no wheel and is built where it is installed", file=sys.stderr)
    return Package(canonicalize_name(metadata["name"]), metadata["version"], archive["hashes"]["sha256"])


def _locked() -> list[str]:
    """The versions in requirements.lock, as pip takes them for constraints."""
    lines = LOCK.read_text().splitlines() if LOCK.exists() else []
    return [line.removesuffix(" \\") for line in lines if "==" in line and not line.startswith((" ", "#"))]


def _entries(chosen: dict[str, list[Package]]) -> str:
    """One entry for each package and version, by name, with the Pythons that it is for where it is not for all of them."""
    pythons: dict[tuple[str, str], list[str]] = {}
    hashes: dict[tuple[str, str], set[str]] = {}
    for python, packages in chosen.items():
        for package in packages:
            key = (package.name, package.version)
            pythons.setdefault(key, []).append(python)
            hashes.setdefault(key, set()).add(package.sha256)
    lines = []
    for key in sorted(pythons):
        only = (
            " or ".join(f'python_version == "{python}"' for python in pythons[key]) if len(pythons[key]) < len(chosen) else ""
        )
        lines.append(
            " \\\n".join(
                [f"{'=='.join(key)}{only and f' ; {only}'}", *(f"    --hash=sha256:{one}" for one in sorted(hashes[key]))]
            )
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Resolves for one Python after the other, and writes the lock when all are."""
    constraints = [] if "--upgrade" in sys.argv[1:] else _locked()
    chosen: dict[str, list[Package]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for python in PYTHONS:
            print(f"Python {python} …", file=sys.stderr)
            chosen[python] = _resolve(python, constraints=constraints, folder=Path(folder))
            named = {line.partition("==")[0] for line in constraints}
            constraints += [f"{one.name}=={one.version}" for one in chosen[python] if one.name not in named]
    LOCK.write_text(f"# Linux x86-64, Python {', '.join(PYTHONS)}. Written by `make lock`.\n{_entries(chosen)}")


if __name__ == "__main__":
    main()
