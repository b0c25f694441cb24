"""Removal of locked libraries that no chosen extra needs: `python prune.py all`, in the environment of an image.

requirements.lock holds the libraries of all extras and of the tests. pip can check their hashes only as a whole, so the image
installs all of them, and this uninstalls the rest.
"""

import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

KEPT = {"pip", "setuptools"}
"""pip installs what a runtime environment of Ray adds; torch builds kernels with setuptools."""


def needed(extras: Sequence[str], *, pyproject: Path) -> set[str]:
    """Names of the distributions that the package needs with these extras, directly or through others.

    Raises KeyError for an extra that pyproject.toml does not have.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional: dict[str, list[str]] = project["optional-dependencies"]
    own = canonicalize_name(project["name"])
    open_lines: list[tuple[str, frozenset[str]]] = [(line, frozenset()) for line in project["dependencies"]]
    open_lines += [(f"{own}[{','.join(extras)}]", frozenset())]
    seen: set[tuple[str, frozenset[str]]] = set()
    while open_lines:
        line, for_extras = open_lines.pop()
        requirement = Requirement(line)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in for_extras or {""}):
            continue
        found = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if found in seen:
            continue
        seen.add(found)
        name, chosen = found
        inner = [one for extra in sorted(chosen) for one in optional[extra]] if name == own else _requirements(name)
        open_lines += [(one, chosen | {""}) for one in inner]
    return {name for name, _ in seen} - {own}


def _requirements(name: str) -> list[str]:
    """What an installed distribution requires; nothing where it is not installed, as CUDA's are not in the image without it."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def main(extras: Sequence[str]) -> int:
    """Uninstalls the rest from the environment that this Python runs in."""
    keep = needed(extras, pyproject=Path(__file__).with_name("pyproject.toml")) | KEPT
    installed = {canonicalize_name(one.name) for one in distributions()}
    rest = sorted(installed - keep)
    print(f"{len(installed) - len(rest)} libraries stay, {len(rest)} go: {', '.join(rest)}")
    if not rest:
        return 0
    return subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *rest], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1].split(",")))
