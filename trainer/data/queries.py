"""SQL over a data set or a captioning run that chooses or weighs samples; its answer is a file in the training's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from foundry.errors import UserError
from foundry.storage.folder import Folder, new_file, store_errors
from trainer.data.skip_list import check_keys
from trainer.data.weights import check_weights
from trainer.features.info import read_info

Purpose = Literal["skip", "weights"]
PURPOSES: tuple[Purpose, ...] = ("skip", "weights")
_EXPECTED = {
    "skip": "expected SELECT key FROM … WHERE …",
    "weights": "expected SELECT key, … AS weight FROM …, each key once",
}


def answer_file(training: Path, purpose: Purpose) -> Path:
    """The file of an answer in the folder of a training."""
    return training / f"{purpose}.parquet"


def asked_dataset(features: str) -> str:
    """The data set or run that features were made of. Raises UserError if they do not tell it."""
    dataset = read_info(Folder(features)).source
    if not dataset:
        raise UserError(f"{features} does not record the data set that it was made from: name it", setting="data.dataset")
    return dataset


def write_answer(sql: str, *, purpose: Purpose, dataset: str, training: Path) -> None:
    """Asks the data set, with the view `losses` of the training, and writes what it answers. Raises UserError.

    An answer to the same SQL stays as it is, so that a training resumes with the samples that it began with.
    """
    path, asked = answer_file(training, purpose), _asked(sql, dataset)
    if _is_answer(path, asked):
        return
    found = _ask(sql, purpose=purpose, dataset=dataset, training=training)
    with store_errors(Folder(str(training))), new_file(path) as partial:
        pq.write_table(found.replace_schema_metadata(asked), partial)


def answer(sql: str, *, purpose: Purpose, dataset: str, training: Path) -> pa.Table:
    """The answer that a start of the training would read: the one in its folder, else that of the data set. Writes nothing.

    Raises UserError if the data set does not answer.
    """
    path = answer_file(training, purpose)
    if _is_answer(path, _asked(sql, dataset)):
        return pq.read_table(path)
    return _ask(sql, purpose=purpose, dataset=dataset, training=training if training.is_dir() else None)


def _asked(sql: str, dataset: str) -> dict[bytes, bytes]:
    return {b"sql": sql.encode(), b"dataset": dataset.encode()}


def _is_answer(path: Path, asked: Mapping[bytes, bytes]) -> bool:
    return path.exists() and asked.items() <= _metadata(path).items()


def _metadata(path: Path) -> dict[bytes, bytes]:
    """Query of a stored answer; empty if it cannot be read."""
    try:
        return pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return {}


def _ask(sql: str, *, purpose: Purpose, dataset: str, training: Path | None) -> pa.Table:
    from dataset_builder.sql.dataset_files import open_stored

    try:
        database = open_stored(dataset, training=None if training is None else str(training))
    except UserError as error:
        raise UserError(f"{error}, for the SQL of data.{purpose}", setting="data.dataset") from None
    setting, where = f"data.{purpose}", "the answer of the SQL"
    with database:
        try:
            found = database.fetch(sql)
        except UserError as error:
            raise UserError(str(error), setting=setting) from None
    try:
        if purpose == "skip":
            return pa.table({"key": check_keys(found, where=where, expected=_EXPECTED[purpose])})
        return check_weights(found, where=where, expected=_EXPECTED[purpose])
    except UserError as error:
        raise UserError(str(error), setting=setting) from None
