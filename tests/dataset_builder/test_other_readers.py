"""A data set with its images in it opens in `datasets`, pandas and a plain DuckDB as it is."""

import io
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dataset_builder.convert import ConvertConfig
from dataset_builder.convert import main as convert
from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from tests.dataset_builder.small_run import MINI_T5
from tests.foundry.images.containers import jpeg, write
from tests.foundry.units.plain_loop import run_plainly

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images to train on and two to validate with, all in the files."""
    folder = tmp_path_factory.mktemp("readers")
    for number in range(NUM_IMAGES):
        write(folder / "photos" / f"{number}.jpg", jpeg(number, size=(40 + number, 30)))
        write(folder / "photos" / f"{number}.txt", f"An owl and {number} trees.")
    config = ConvertConfig(input=str(folder / "photos"), out=str(folder / "run"), source="image-txt", target="run", t5=MINI_T5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foundry.units.run.run_job", run_plainly)
        assert convert(config) == 0
    splits: dict[str, float | str] = {"validation": "key >= '4'", "train": 1.0}
    build_dataset(BuildConfig(captions=(config.out,), out=str(folder / "data"), splits=splits, embed=True))
    return folder / "data"


def original(number: int) -> bytes:
    return jpeg(number, size=(40 + number, 30))


def test_datasets_reads_a_split_and_decodes_its_images(dataset: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset("parquet", data_dir=f"{dataset}/samples/train", cache_dir=str(tmp_path))["train"]
    assert loaded["key"][:] == ["0", "1", "2", "3"]
    for number, row in enumerate(loaded):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(Image.open(io.BytesIO(original(number)))))
        assert row["captions"][0]["caption"] == f"An owl and {number} trees."


def test_datasets_finds_the_splits_by_the_card(dataset: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(dataset), cache_dir=str(tmp_path))
    assert {name: split.num_rows for name, split in loaded.items()} == {"validation": 2, "train": 4}
    assert loaded["validation"][1]["image"].size == (45, 30)


def test_pandas_reads_bytes_and_captions(dataset: Path) -> None:
    table = pd.read_parquet(dataset / "samples" / "train")
    assert [image["bytes"] for image in table["image"]] == [original(number) for number in range(4)]
    assert list(table["width"]) == [40, 41, 42, 43]
    assert [captions[0]["num_nouns"] for captions in table["captions"]] == [2] * 4
    assert [list(nouns[0]) for nouns in table["nouns"]] == [["owl", "tree"]] * 4


def test_a_plain_duckdb_reads_all_splits(dataset: Path) -> None:
    samples = f"'{dataset}/samples/*/*.parquet'"
    with duckdb.connect() as shell:
        sql = f"SELECT key, split, captions[1].caption, image.bytes, image.path FROM {samples} ORDER BY key"
        assert shell.sql(sql).fetchall() == [
            (str(number), "train" if number < 4 else "validation", f"An owl and {number} trees.", original(number), name)
            for number, name in enumerate(f"{number}.jpg" for number in range(NUM_IMAGES))
        ]
        nouns = f"SELECT noun, sum(count)::INT FROM '{dataset}/noun_counts.parquet' GROUP BY noun ORDER BY noun"
        assert shell.sql(nouns).fetchall() == [("owl", NUM_IMAGES), ("tree", NUM_IMAGES)]
        assert shell.sql(f"SELECT kept FROM '{dataset}/funnel.parquet' LIMIT 1").fetchall() == [(NUM_IMAGES,)]
