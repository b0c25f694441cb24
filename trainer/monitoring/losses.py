"""Losses of samples, recorded by a thread while training continues: RUN/losses/, the view `losses` of dataset_builder.query.

A file holds the rows of one worker up to the images seen in its name. All rows are on the disk before a checkpoint begins to be
written, and a start removes the files after its checkpoint: so each recorded step is there once, whatever was killed.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dataset_builder.schema import LOSSES
from dataset_builder.sql.losses import LOSSES_FOLDER
from foundry.storage.folder import Folder, new_file, store_errors

_PART_ROWS = 100_000
"""Rows that are kept in memory before they become a file."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Step:
    """A recorded step of this worker."""

    images_seen: int
    resolution: int
    keys: Sequence[str]
    values: Tensor
    """(2, B): timesteps and losses; on the CPU when `ready` says so."""
    ready: Any


class LossRecorder:
    """Records the losses of every n-th step; n = 0 records none."""

    def __init__(self, run: Path, *, rank: int, every_steps: int) -> None:
        self._run = run
        self._rank = rank
        self._every_steps = every_steps
        self._steps: list[_Step] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="losses")
        self._pending: Future[None] | None = None

    def add(
        self, *, step: int, images_seen: int, resolution: int, keys: Sequence[str], timesteps: Tensor, losses: Tensor
    ) -> None:
        """Adds this worker's samples of a step, timesteps and losses (B,) on the device.

        Raises UserError if an earlier file could not be written.
        """
        if not self._every_steps or step % self._every_steps:
            return
        values = torch.stack([timesteps.float(), losses.float()])
        ready = None
        if values.is_cuda:
            values, ready = values.to("cpu", non_blocking=True), torch.cuda.Event()
            ready.record()
        found = _Step(images_seen=images_seen, resolution=resolution, keys=keys, values=values, ready=ready)
        self._steps.append(found)
        if sum(len(one.keys) for one in self._steps) >= _PART_ROWS:
            self._write_later()

    def flush(self) -> None:
        """Returns when all rows are on the disk. Raises UserError if they cannot be written."""
        if self._steps:
            self._write_later()
        self._wait()

    def _write_later(self) -> None:
        self._wait()
        steps, self._steps = self._steps, []
        self._pending = self._thread.submit(self._write, steps)

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, steps: Sequence[_Step]) -> None:
        table = pa.concat_tables(_table(step) for step in steps)
        path = self._run / LOSSES_FOLDER / f"{steps[-1].images_seen:012d}-{self._rank:05d}.parquet"
        with store_errors(Folder(str(self._run))), new_file(path) as partial:
            pq.write_table(table, partial, compression="zstd")


def remove_losses(run: Path, *, after: int) -> None:
    """Removes the files with rows after this many images seen, whose steps will be made again, and those cut off by a kill."""
    folder = run / LOSSES_FOLDER
    for path in folder.iterdir() if folder.is_dir() else ():
        end = path.name.partition("-")[0]
        if not end.isdigit() or int(end) > after:
            path.unlink()


def _table(step: _Step) -> pa.Table:
    if step.ready is not None:
        step.ready.synchronize()
    timesteps, losses = step.values.numpy()
    num = len(step.keys)
    columns = [
        pa.array(step.keys, pa.string()),
        pa.array([step.images_seen] * num, pa.int64()),
        pa.array([step.resolution] * num, pa.int32()),
        pa.array(timesteps),
        pa.array(losses),
    ]
    return pa.table(columns, schema=LOSSES)
