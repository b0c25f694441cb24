"""Size of a stage's data set: the samples of its features and how often a training shows them, else the paper's data sets."""

from pathlib import Path
from typing import TYPE_CHECKING

from foundry.errors import UserError
from trainer.config.data import is_query
from trainer.config.ladder import Rung
from trainer.config.train import TrainConfig
from trainer.data.passes import training_samples
from trainer.planning.config import DatasetSize
from trainer.planning.paper import PAPER_DATASET_IMAGES

if TYPE_CHECKING:
    import pyarrow as pa

    from trainer.data.queries import Purpose


def dataset_size(train: TrainConfig, rung: Rung, *, num_images: int | None) -> DatasetSize:
    """The size that `num_images` gives, else the features of the rung, else the paper.

    Samples that `data.skip` leaves out and weights of `data.weights` count where there are features, as in training.
    Raises UserError if the files of these cannot be read, or their SQL is not answered.
    """
    if num_images is not None:
        return DatasetSize(num_images, "--num_images")
    folder = train.features_folder(rung)
    plain = training_samples(folder)
    if plain is None or not plain.stored:
        return DatasetSize(PAPER_DATASET_IMAGES[train.features_stage], "as in the paper")
    if train.data.skip is None and train.data.weights is None:
        return DatasetSize(plain.stored, folder)
    chosen = training_samples(folder, skip=_skipped(train, folder), weights=_weights(train, folder))
    if chosen is None or not chosen.per_pass:
        raise UserError(f"data.skip and data.weights leave no training sample of {folder}", setting="fit_config")
    return DatasetSize(chosen.stored, folder, chosen.per_pass)


def _skipped(train: TrainConfig, features: str) -> frozenset[str]:
    from trainer.data.skip_list import read_skip_list

    if is_query(train.data.skip):
        return frozenset(_answer(train, "skip", features)["key"].to_pylist())
    return read_skip_list(train.data.skip)


def _weights(train: TrainConfig, features: str) -> "pa.Table | None":
    from trainer.data.weights import read_weights

    return _answer(train, "weights", features) if is_query(train.data.weights) else read_weights(train.data.weights)


def _answer(train: TrainConfig, purpose: "Purpose", features: str) -> "pa.Table":
    from trainer.data.queries import answer, asked_dataset

    sql = train.data.skip if purpose == "skip" else train.data.weights
    assert sql is not None, "is_query(None) is false"
    dataset = train.data.dataset or asked_dataset(features)
    return answer(sql, purpose=purpose, dataset=dataset, training=Path(train.run_folder))
