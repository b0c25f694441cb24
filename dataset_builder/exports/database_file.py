"""Database file of a run or a data set: views, macros and comments over the committed files, for any DuckDB.

The file holds names of Parquet files and no rows but those of `commits` (of a run), `about` and `dictionary`. It shows what was
committed when it was written: a run that grows is exported again. Nothing of this program is needed to ask it.
"""

import os
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from foundry.errors import UserError
from foundry.storage.folder import Folder, new_file, store_errors

if TYPE_CHECKING:
    import pyarrow as pa

    from dataset_builder.sql.views import Stored

PathKind = Literal["absolute", "relative"]


def export_database(source: str, out: str, *, paths: PathKind, training: str | None = None, overwrite: bool = False) -> int:
    """Writes `out` for the run or the data set at `source` and returns the number of files that it reads.

    Complete or not there; an `out` that exists is replaced where `overwrite` says so. Raises UserError if it exists
    otherwise, where it cannot be written, and for relative paths to files that are not on a local disk.
    """
    from dataset_builder.exports.dictionary import dictionary_table
    from dataset_builder.sql.database import write_database
    from dataset_builder.sql.dataset_files import read_stored

    target = Path(out).absolute()
    if target.is_dir() or (target.exists() and not overwrite):
        raise UserError(f"{out} exists: give another name, or say that the file is to be replaced", setting="overwrite")
    with store_errors(Folder(source)):
        stored = read_stored(source, training=training)
        urls = _file_names(stored.folder, paths, folder=target.parent)
        tables = {"about": _about(source, stored, paths), "dictionary": dictionary_table(stored)}
    with store_errors(Folder(str(target.parent))), new_file(target) as partial:
        write_database(partial, stored, urls=urls, folder=str(target.parent), tables=tables)
    return sum(len(stored.paths(kind)) for kind in stored.schemas)


def _file_names(source: Folder, paths: PathKind, *, folder: Path) -> Callable[[list[str]], list[str]]:
    """Names of the source's files in the database: paths or URLs, or paths relative to the folder of the database."""
    from dataset_builder.sql.views import stored_urls

    if paths == "absolute":
        return lambda names: stored_urls(source, names)
    if not source.is_local:
        raise UserError(f"{source.url} is not on a local disk, so no path can be relative to it: use absolute", setting="paths")
    return lambda names: [os.path.relpath(url, folder) for url in stored_urls(source, names)]


def _about(source: str, stored: "Stored", paths: PathKind) -> "pa.Table":
    """Names and values that say where the database comes from."""
    import pyarrow as pa

    facts = {
        "source": stored.folder.location(),
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "paths": paths,
        "refresh": f"python -m dataset_builder.export {shlex.quote(source)} FILE --paths {paths} --overwrite",
    }
    return pa.table({"name": list(facts), "value": list(facts.values())})
