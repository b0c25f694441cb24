"""Runs and data sets as objects: SQL, images, density, and the status of a run or the splits of a data set."""

import os
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dataset_builder.api.answer import Answer
from foundry.api.functions import checks_names

if TYPE_CHECKING:
    from PIL import Image

    from dataset_builder.api.density import Density
    from dataset_builder.runs.status import RunStatus
    from dataset_builder.sql.database import Database
    from dataset_builder.sql.views import Stored


class Source:
    """A run or a data set. It shows what was committed when it was opened, and can be given in place of its folder.

    Not for several threads at once. `with` or close() ends it; so does the end of the program.
    """

    def __init__(self, url: str, stored: "Stored") -> None:
        from dataset_builder.sql.database import open_files

        self.url = url
        """Folder or URL that it was opened by."""
        self._database: Database = open_files(stored)
        self.close = weakref.finalize(self, self._database.close)
        """Ends the connection and deletes what it spilled to the disk."""

    def sql(self, query: str) -> Answer:
        """Answers one read-only SQL query on the views, in DuckDB's dialect; all its rows are in memory then.

        Raises UserError for what is no question, for unknown tables and columns (with the nearest), and for files.

        Example:

            run.sql("SELECT noun, sum(count) AS count FROM noun_counts GROUP BY noun ORDER BY count DESC LIMIT 10").df()
        """
        return Answer(self._database.fetch(query), notes=self._database.hints(query))

    @property
    def views(self) -> dict[str, str]:
        """The views that SQL can ask, and what a row of each is."""
        return dict(self._database.comments)

    def columns(self, view: str) -> Answer:
        """The columns of a view: `name`, `type`, `meaning`. Raises UserError for a view that there is not."""
        import pyarrow as pa

        from dataset_builder.sql.columns import column_meaning

        found = self._database.fetch(f"SELECT column_name AS name, column_type AS type FROM (DESCRIBE {view})")
        meanings = [column_meaning(view, name) for name in found["name"].to_pylist()]
        return Answer(found.append_column("meaning", pa.array(meanings, pa.string())))

    def density(self, column: str | Sequence[str] = "caption", *, sample_size: int | None = None) -> "Density":
        """The concept density of text columns (the paper's Table 1), a row for each column and prompt.

        Captions were counted when they were written; another column, such as alt_text, is tagged now, which needs the extra
        `density`. `sample_size`: captions in the samples that compare rows; default: those of the smallest row. Raises
        UserError for a column that there is not.

        Example:

            print(run.density(["alt_text", "caption"]))
        """
        from dataset_builder.api.density import measure_density

        columns = (column,) if isinstance(column, str) else tuple(column)
        return measure_density(sources=(self.url,), column=columns, sample_size=sample_size)

    def images(self, keys: Sequence[str]) -> "list[Image.Image]":
        """The images with these keys, in their order: upright, RGB, in full size, read from where they are.

        Raises UserError for a key that there is not, an image that cannot be read, and one whose file has changed.

        Example:

            run.images(run.sql("SELECT key FROM captions LIMIT 6").df()["key"])
        """
        from dataset_builder.api.pixels import read_pixels

        keys = [keys] if isinstance(keys, str) else list(keys)
        return read_pixels(self._database, keys, url=self.url)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the captions were written and counted with, such as `t5`: its tokenizer and `max_tokens`."""
        return dict(self._database.settings)

    def __fspath__(self) -> str:
        """Its folder or URL, so that it can be given for one."""
        return self.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


class Run(Source):
    """A captioning run, finished or not.

    Example:

        run = open_run("runs/photos")
        run.sql("SELECT key, caption FROM captions LIMIT 3").df()
    """

    def status(self) -> "RunStatus":
        """Images planned, captioned and rejected, and the speed, as they are now. Raises UserError if the run is damaged.

        Example:

            print(run.status().line())
        """
        from dataset_builder.runs.status import read_status
        from foundry.storage.folder import Folder

        return read_status(Folder(self.url))


class Dataset(Source):
    """A data set.

    Example:

        dataset = open_dataset("data/photos")
        dataset.sql("FROM samples WHERE split = 'validation'").dataset()
    """

    def __init__(self, url: str, stored: "Stored", *, splits: dict[str, int]) -> None:
        super().__init__(url, stored)
        self.splits = splits
        """Number of images of each split."""

    def funnel(self) -> Answer:
        """Images that each step of the recipe left and dropped, and why: `step`, `reason`, `kept`, `dropped`."""
        return self.sql("FROM funnel")


@checks_names
def open_run(run: "str | os.PathLike[str]", *, training: "str | os.PathLike[str] | None" = None) -> Run:
    """Opens the captioning run in a folder or at a URL, as it is now; open it again to see what was committed since.

    `training` is the folder of a training, RUN_DIR/<stage>, whose recorded losses are the view `losses`. Raises UserError if
    there is no run.

    Example:

        from dataset_builder import open_run
        open_run("runs/photos").status().line()
    """
    from dataset_builder.sql.losses import with_losses
    from dataset_builder.sql.run_files import read_run

    url = os.fspath(run)
    return Run(url, with_losses(read_run(url), None if training is None else os.fspath(training)))


@checks_names
def open_dataset(dataset: "str | os.PathLike[str]", *, training: "str | os.PathLike[str] | None" = None) -> Dataset:
    """Opens the data set in a folder or at a URL. `training` is as for open_run. Raises UserError if there is no data set.

    Example:

        from dataset_builder import open_dataset
        open_dataset("data/photos").splits
        # {'train': 9900, 'validation': 100}
    """
    from dataset_builder.sql.dataset_files import read_dataset
    from dataset_builder.sql.losses import with_losses

    url = os.fspath(dataset)
    files = read_dataset(url)
    return Dataset(url, with_losses(files, None if training is None else os.fspath(training)), splits=dict(files.splits))


def open_source(source: "str | os.PathLike[str]") -> Run | Dataset:
    """Opens what is in a folder or at a URL, a run or a data set. Raises UserError if it is neither."""
    from dataset_builder.sql.dataset_files import is_dataset, read_stored

    if is_dataset(os.fspath(source)):
        return open_dataset(source)
    return Run(os.fspath(source), read_stored(os.fspath(source)))
