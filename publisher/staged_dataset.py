"""A data set as it is pushed: its files, and its card with the licence that the user names."""

import os
from pathlib import Path

from dataset_builder.reports.card import published_card
from dataset_builder.sql.dataset_files import DATASET_RECORD, DatasetFiles, open_stored, read_dataset
from dataset_builder.sql.score_files import SCORES_FOLDER
from foundry.errors import UserError
from foundry.reporting.lines import say
from foundry.storage.hub import Repository
from foundry.storage.locations import is_url
from foundry.wording import counted
from publisher.licences import licence_to_keep

CARD = "README.md"


def stage_dataset(path: str, staging: Path, *, repository: Repository, licence: str, public: bool) -> str:
    """Links the files of a data set into a new folder, with its card; returns the name of its record.

    The licence of the repository's card holds where none is given or recorded.

    Raises UserError for one that is not on a local disk, and for images without a licence where everybody would see them.
    """
    if is_url(path):
        raise UserError(f"{path}: expected a folder on this machine, found a URL: copy the data set first", setting="path")
    dataset = read_dataset(path)
    recorded = [run["licence"] for run in dataset.record["runs"]]
    licence = licence or licence_to_keep(repository, recorded, path=path)
    licences = [licence] if licence else recorded
    if public and not all(licences):
        raise UserError(f"{path} has images whose licence is not stated: name it before everybody sees them", setting="licence")
    root = Path(dataset.folder.root)
    names = [DATASET_RECORD, *(file["path"] for file in dataset.record["files"])]
    names += [str(file.relative_to(root)) for file in sorted((root / SCORES_FOLDER).rglob("*")) if _is_published(file, root)]
    for file in names:
        link(root / file, staging / file)
    if not (root / CARD).is_file():
        raise UserError(f"{root / CARD} is missing: build the data set again, which writes it")
    card = published_card((root / CARD).read_text(encoding="utf-8"), dataset, repository=repository.name, licence=licence)
    (staging / CARD).write_text(card, encoding="utf-8")
    _say_local_paths(dataset, path)
    return DATASET_RECORD


def link(source: Path, target: Path) -> None:
    """Links a file into the folder of what is pushed. Raises UserError where it is missing."""
    if not source.is_file():
        raise UserError(f"{source} is missing: the data set is not complete; build it again")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(source.absolute(), target)


def _is_published(file: Path, root: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)


def _say_local_paths(dataset: DatasetFiles, path: str) -> None:
    """Says which images nobody else can open, and that paths of this machine are published."""
    with open_stored(path) as database:
        (found,) = database.fetch(
            "SELECT count(*) AS n, min(uri) AS uri FROM samples WHERE NOT contains(uri, '://')"
        ).to_pylist()
    count, example = found["n"], found["uri"]
    if not count:
        return
    if dataset.record["recipe"]["embed"]:
        say(f"the column uri of {counted(count, 'image')} has paths on this machine, such as {example}")
    else:
        say(
            f"warning: paths on this machine, such as {example}, refer to {counted(count, 'image')}: whoever pulls needs the "
            "same files there; to publish the images too, build with embed true"
        )
