"""Noun counts of whole blocks of units, added up, so that a question after all nouns opens one file to a block and not one to
a unit.

Block b is the units b * BLOCK_UNITS and following, BLOCK_UNITS of them. Once all are committed, merging.py publishes their
sums in the run's folder `merged`, by the protocol of units and commits with the block as the unit. A record stands for the
files that were summed, by their digests: it is used where it fits the commits, else the units' own files are read.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence

from foundry.storage.folder import Folder
from foundry.units.commits import Commit, committed_units, read_commits

MERGED = "merged"
"""The folder of the blocks, inside a run."""
BLOCK_UNITS = 256
_SUMMED = ("captions", "noun_counts")


def merged_folder(run: Folder) -> Folder:
    """The folder of a run's blocks."""
    return Folder(f"{run.url.rstrip('/')}/{MERGED}")


def whole_blocks(commits: Iterable[Commit]) -> dict[int, list[Commit]]:
    """The commits of each block that has them all, by the block's number."""
    blocks: dict[int, list[Commit]] = {}
    for commit in commits:
        blocks.setdefault(commit.unit // BLOCK_UNITS, []).append(commit)
    return {number: members for number, members in blocks.items() if len(members) == BLOCK_UNITS}


def block_id(members: Sequence[Commit]) -> str:
    """A hash of the run and of all files that a block sums up."""
    state = [[c.run_id, c.unit, [c.files[kind].sha256 for kind in _SUMMED if kind in c.files]] for c in members]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


def units_of(blocks: Iterable[Commit]) -> set[int]:
    """The units that these records sum up."""
    return {unit for block in blocks for unit in range(block.unit * BLOCK_UNITS, (block.unit + 1) * BLOCK_UNITS)}


def fitting_blocks(run: Folder, commits: Sequence[Commit]) -> tuple[Commit, ...]:
    """The records of the blocks that are published and fit these commits of the run."""
    folder = merged_folder(run)
    blocks = whole_blocks(commits) if committed_units(folder) else {}
    records = read_commits(folder) if blocks else []
    return tuple(record for record in records if record.unit in blocks and record.run_id == block_id(blocks[record.unit]))
