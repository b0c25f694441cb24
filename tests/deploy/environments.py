"""Environments without a package index: one that has some of this environment's libraries, and wheels of others."""

import hashlib
import sys
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def closure(*requirements: str) -> dict[str, Distribution]:
    """The installed distributions that these requirements need, by name, with all that they need in turn."""
    found: dict[str, Distribution] = {}
    waiting = [(line, "") for line in requirements]
    while waiting:
        line, extra = waiting.pop()
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        one = distribution(requirement.name)
        if one.name not in found or requirement.extras:
            found[one.name] = one
            waiting += [(inner, chosen) for inner in one.requires or [] for chosen in requirement.extras or {""}]
    return found


def environment_of(folder: Path, libraries: Iterable[Distribution]) -> Path:
    """A virtual environment that has these libraries alone, by links; returns its interpreter."""
    packages = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    base = Path(sys.base_prefix) / "bin"
    (folder / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    (folder / "bin" / "activate").write_text(f'VIRTUAL_ENV="{folder}"\nPATH="{folder}/bin:$PATH"\nexport VIRTUAL_ENV PATH\n')
    (folder / "bin" / "python").symlink_to(base / f"python3.{sys.version_info.minor}")
    for library in libraries:
        tops = {file.parts[0] for file in library.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(library.locate_file(top))).resolve())
    return folder / "bin" / "python"


def write_wheel(library: Distribution, folder: Path) -> tuple[str, str]:
    """A wheel of an installed library of pure Python; returns its requirement and its sha256."""
    name = library.name.replace("-", "_")
    path = folder / f"{name}-{library.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file in library.files or []:
            if (
                file.parts[0] != ".."
                and file.suffix != ".pyc"
                and file.name not in ("INSTALLER", "REQUESTED", "direct_url.json")
            ):
                wheel.write(str(library.locate_file(file)), str(file))
    return f"{library.name}=={library.version}", hashlib.sha256(path.read_bytes()).hexdigest()
