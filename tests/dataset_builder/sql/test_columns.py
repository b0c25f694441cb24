"""Every column that SQL can ask for is explained."""

from pathlib import Path

from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.sql.columns import CARRIED, COLUMNS, column_meaning
from dataset_builder.sql.database import Database
from dataset_builder.sql.dataset_files import open_stored
from foundry.storage.folder import Folder
from tests.dataset_builder.dataset.built import built
from tests.dataset_builder.small_run import SmallRun

SOURCE_COLUMNS = {"score", "source_KEY", "a.b/c", "ok"}


def _unexplained(database: Database) -> set[str]:
    return {name for view, names in database.views.items() for name in names if column_meaning(view, name) == CARRIED}


def test_each_column_is_explained_and_nothing_else_is(tmp_path: Path) -> None:
    run = SmallRun().write(Folder(str(tmp_path / "owls"))).url
    config = BuildConfig(captions=(run,), out=str(tmp_path / "dataset"), splits={"train": 1.0})
    with open_stored(run, training=str(tmp_path)) as of_run, built(config) as of_dataset:
        assert _unexplained(of_run) == _unexplained(of_dataset) == SOURCE_COLUMNS
        views = {**of_run.views, **{f"{name} of a data set": names for name, names in of_dataset.views.items()}}
        known = {f"{view.removesuffix(' of a data set')}.{name}" for view, names in views.items() for name in names}
    assert COLUMNS.keys() <= known | {name.partition(".")[2] for name in known}
