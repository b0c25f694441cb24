"""Losses of samples that a training recorded, as the view `losses` next to those of a data set or a captioning run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_builder.schema import LOSSES
from dataset_builder.sql.views import columns_sql
from foundry.errors import UserError
from foundry.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa

    from dataset_builder.sql.views import Stored

LOSSES_FOLDER = "losses"
"""Inside the folder of a training; its files end in .parquet."""


@dataclass(frozen=True)
class WithLosses:
    """A data set or a run, with the losses of its samples in a training."""

    stored: "Stored"
    training: Path

    @property
    def folder(self) -> Folder:
        """Folder of the data set or the run."""
        return self.stored.folder

    @property
    def views(self) -> dict[str, str]:
        """Its views, and `losses`."""
        return {**self.stored.views, "losses": "one row per sample and step of the training whose losses were recorded"}

    @property
    def schemas(self) -> "dict[str, pa.Schema]":
        """Its kinds of file, and that of the losses."""
        return {**self.stored.schemas, "losses": LOSSES}

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the captions."""
        return self.stored.settings

    @property
    def empty_views(self) -> dict[str, str]:
        """Explanation of an empty `losses`, if nothing was recorded."""
        if self.paths("losses"):
            return self.stored.empty_views
        advice = f"losses is empty, {self.training} recorded none yet: train with watch.record_losses_every_steps"
        return {**self.stored.empty_views, "losses": advice}

    def paths(self, kind: str) -> list[str]:
        """The files of a kind; those of the losses as absolute paths."""
        if kind != "losses":
            return self.stored.paths(kind)
        return [str(path.absolute()) for path in sorted((self.training / LOSSES_FOLDER).glob("[!.]*.parquet"))]

    def tables(self) -> "dict[str, pa.Table]":
        """Tables of the data set or the run."""
        return self.stored.tables()

    def statements(self) -> list[str]:
        """Its statements, and the one that creates `losses`."""
        return [*self.stored.statements(), f"CREATE VIEW losses AS SELECT {columns_sql(LOSSES)} FROM stored.losses"]


def with_losses(stored: "Stored", training: str | None) -> "Stored":
    """The same with the losses of a training, the folder RUN_DIR/<stage>. Raises UserError if that is no folder."""
    if training is None:
        return stored
    if not Path(training).is_dir():
        raise UserError(
            f"{training} is not the folder of a training: give RUN_DIR/<stage>, such as runs/alignment", setting="training"
        )
    return WithLosses(stored, Path(training))
