"""Sums of noun counts, block by block, published at the end of each command that writes units with noun counts."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from dataset_builder.sql.run_files import RunFiles, block_id, merged_folder, whole_blocks
from foundry.reporting.lines import say
from foundry.storage.folder import store_errors
from foundry.units.commits import Commit, Unit, commit_unit, read_commits

if TYPE_CHECKING:
    import pyarrow as pa

_SUMS = {
    "noun_counts": "SELECT * EXCLUDE is_meta FROM noun_counts ORDER BY prompt, noun",
    "tallies": "SELECT * FROM stored.tallies ORDER BY prompt",
}


def merge_counts_of(files: RunFiles) -> int:
    """Publishes the sums of each whole block that has none that fit, and returns how many; the same call again does the rest.

    Sums of a block that a retry has changed replace the earlier ones. `files` may lack all but the run's record and its
    commits.

    Memory: the nouns of one block. Raises UserError if a file of the run cannot be read.
    """
    started = time.perf_counter()
    folder = merged_folder(files.folder)
    with store_errors(files.folder):
        whole = whole_blocks(files.commits)
        records = {record.unit: record for record in read_commits(folder)} if whole else {}
        done = {record.unit for record in records.values() if record.run_id == block_id(whole.get(record.unit, []))}
        blocks = {number: members for number, members in whole.items() if number not in done}
        for number, members in blocks.items():
            retry = records[number].retry + 1 if number in records else 0
            num_images = sum(commit.planned for commit in members)
            unit = Unit(number=number, part="", row_group=0, num_images=num_images, retry=retry)
            commit_unit(folder, run_id=block_id(members), unit=unit, tables=_sums(files, members))
    if blocks:
        units = sum(map(len, blocks.values()))
        say(f"the noun counts of {units:,} units were added up in {time.perf_counter() - started:.1f} s")
    return len(blocks)


def _sums(files: RunFiles, members: list[Commit]) -> "dict[str, pa.Table]":
    """The tables of a block, by the views of a run that has no other units."""
    from dataset_builder.schema import NOUN_COUNTS, TALLIES
    from dataset_builder.sql.database import open_files

    schemas = {"noun_counts": NOUN_COUNTS, "tallies": TALLIES}
    with open_files(replace(files, commits=tuple(members), blocks=(), open_parts=(), scores=None)) as block:
        return {kind: block.fetch(sql).cast(schemas[kind]) for kind, sql in _SUMS.items()}
