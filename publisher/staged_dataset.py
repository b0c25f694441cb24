"""A data set as it is pushed: its files, and its card with the licence that the user names."""

import os
from pathlib import Path

import yaml

from dataset_builder.reports.card import licence_fields
from dataset_builder.sql.dataset_files import DATASET_RECORD, DatasetFiles, open_stored, read_dataset
from foundry.errors import UserError
from foundry.reporting.lines import say
from foundry.storage.locations import is_url
from foundry.wording import counted

CARD = "README.md"
_RULE = "---\n"


def stage_dataset(path: str, staging: Path, *, licence: str, public: bool) -> str:
    """Links the files of a data set into a new folder, with its card; returns the name of its record.

    Raises UserError for one that is not on a local disk, and for images without a licence where everybody would see them.
    """
    if is_url(path):
        raise UserError(f"{path}: expected a folder on this machine, found a URL: copy the data set first", setting="path")
    dataset = read_dataset(path)
    licences = [licence] if licence else [run["licence"] for run in dataset.record["runs"]]
    if public and not all(licences):
        raise UserError(f"{path} has images whose licence is not stated: name it before everybody sees them", setting="licence")
    root = Path(dataset.folder.root)
    names = [DATASET_RECORD, *(file["path"] for file in dataset.record["files"])]
    names += [str(file.relative_to(root)) for file in sorted((root / "scores").rglob("*")) if _is_published(file, root)]
    for name in names:
        link(root / name, staging / name)
    (staging / CARD).write_text(_card(root, licence), encoding="utf-8")
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


def _card(root: Path, licence: str) -> str:
    """The card that the build wrote; with a licence, that one in its front matter and its terms."""
    path = root / CARD
    if not path.is_file():
        raise UserError(f"{path} is missing: build the data set again, which writes it")
    text = path.read_text(encoding="utf-8")
    if not licence:
        return text
    _, front, body = text.split(_RULE, 2)
    head = {name: value for name, value in yaml.safe_load(front).items() if not name.startswith("license")}
    terms = "## Sources and terms\n\n"
    stated = f"{terms}Licence of this data set: {licence}.\n\n"
    return f"{_RULE}{yaml.safe_dump(head | licence_fields([licence]), sort_keys=False)}{_RULE}{body.replace(terms, stated)}"


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
