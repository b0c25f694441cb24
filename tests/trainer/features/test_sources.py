"""Features of a captioning run, as far as it has come, and of Parquet with images and class labels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.units.commits import read_commits
from tests.dataset_builder.small_run import SmallRun
from tests.foundry.images.containers import tar_bytes
from tests.trainer.tiny_sources import make_features, save_picture, tiny_precompute
from trainer.features.job import EncoderFacts, Encoders
from trainer.features.preparation import FeatureTasks, prepare
from trainer.features.sources import LabelledImages, RunSource, class_names, open_source
from trainer.features.store import FeatureStore


def test_a_run_is_a_source_as_far_as_it_has_come(tmp_path: Path) -> None:
    small, folder = SmallRun(num_images=8, unit_size=4, num_committed=1, rejected=("img_3",)), Folder(str(tmp_path / "run"))
    _with_pictures(small.write(folder), tmp_path)
    config = tiny_precompute(tmp_path, tmp_path / "run", min_validation=0, validation_share=0.0)
    assert isinstance(open_source(config.dataset), RunSource)
    make_features(config)
    captions = _captions_by_key(FeatureStore.open(f"{config.out}/alignment/32"))
    assert set(captions) == {"img_0", "img_1", "img_2"}
    assert captions["img_0"] == {**small.captions, "alt_text": "An owl and a tree."}
    assert captions["img_1"] == small.captions  # it has no alt text
    small.commit(folder, 1, range(4, 8))
    _with_pictures(folder, tmp_path)
    make_features(config)
    grown = FeatureStore.open(f"{config.out}/alignment/32")
    assert set(_captions_by_key(grown)) == {"img_0", "img_1", "img_2", "img_4", "img_5", "img_6", "img_7"}
    assert not prepare(config, describe=Encoders.describe).units


@pytest.mark.parametrize("column", ["class_label", "label"])
def test_parquet_with_class_labels(tmp_path: Path, column: str) -> None:
    labels = ["owl", "key", None, "owl"] if column == "class_label" else [1, 0, None, 1]
    write_labelled_parquet(tmp_path / "pictures.parquet", column=column, labels=labels)
    config = tiny_precompute(tmp_path, tmp_path / "pictures.parquet", stage="pixel", min_validation=0, validation_share=0.0)
    assert isinstance(open_source(config.dataset), LabelledImages)
    make_features(config)
    store = FeatureStore.open(f"{config.out}/pixel/32")
    assert store.info.class_names == ("key", "owl")  # numbers by the names that the file has for them
    found = [
        (key, label)
        for commit in read_commits(store.folder)
        if "latents" in commit.files
        for key, label in _columns(store, commit.files["latents"].path, "key", "class_label")
    ]
    by_row = {int("".join(filter(str.isdigit, key))): label for key, label in found}
    assert by_row == {0: 1, 1: 0, 3: 1}
    assert [commit.rejected for commit in read_commits(store.folder) if commit.rejected] == [{"no_class_label": 1}]


def test_a_source_that_is_not_there_is_said_before_an_encoder_is_loaded(tmp_path: Path) -> None:
    def describe(_encoders: Encoders) -> EncoderFacts:
        raise AssertionError("the encoders are loaded")

    for dataset in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=f"{dataset}"):
            prepare(tiny_precompute(tmp_path / "parts", dataset), describe=describe)


def test_parquet_without_class_labels_is_refused(tmp_path: Path) -> None:
    write_labelled_parquet(tmp_path / "pictures.parquet", column="other", labels=[1, 2])
    config = tiny_precompute(tmp_path, tmp_path / "pictures.parquet", stage="pixel")
    with pytest.raises(UserError, match="no class labels: give Parquet with a column class_label or label"):
        make_features(config)


def test_class_labels_next_to_images_are_read_and_a_tars_name_is_no_class(tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "owl.png", size=(32, 40), seed=0).read_bytes()
    folder = tmp_path / "pictures"
    (folder / "birds").mkdir(parents=True)
    (folder / "shard-0.tar").write_bytes(
        tar_bytes({"0.png": picture, "0.cls": b"owl", "1.png": picture, "1.json": b'{"class_label": "key"}'}.items())
    )
    (folder / "shard-1.tar").write_bytes(
        tar_bytes({"0.png": picture, "0.cls": b"owl", "1.png": picture, "trees/2.png": picture}.items())
    )
    for name in ("a.png", "b.png", "c.png"):
        (folder / "birds" / name).write_bytes(picture)
    (folder / "birds" / "a.cls").write_text("7\n")
    (folder / "birds" / "b.json").write_bytes(b'{"author": "x"}')
    (folder / "birds" / "c.cls").write_bytes(b"\xff\xfe\xff")
    (folder / "list.csv").write_text(f"path,n\n,1\nbirds/a.png,2\n{folder}/birds/b.png,3\n")
    source = open_source(str(folder))
    found = {row["key"]: row["class_label"] for table in source.tables() for row in table.to_pylist()}
    assert found == {
        "shard-0.tar/0.png": "owl",
        "shard-0.tar/1.png": "key",
        "shard-1.tar/0.png": "owl",
        "shard-1.tar/1.png": None,
        "shard-1.tar/trees/2.png": "trees",
        "birds/a.png": "7",
        "birds/b.png": "birds",
        "birds/c.png": None,
        "list.csv#1": None,
    }
    assert class_names(source) == ("7", "birds", "key", "owl", "trees")
    (finding,) = source.findings()
    assert finding.startswith(
        f"1 images have no class label, since a file next to them cannot be read (first: {folder}/birds/c.cls"
    )


def test_tars_without_class_labels_are_refused(tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "owl.png", size=(32, 40), seed=0).read_bytes()
    (tmp_path / "tars").mkdir()
    for number in range(2):
        (tmp_path / "tars" / f"shard-{number}.tar").write_bytes(tar_bytes({"0.png": picture, "0.txt": b"an owl"}.items()))
    with pytest.raises(
        UserError, match=r"tars has no class labels: .* a \.cls file \(or a \.json with class_label\) for each image"
    ):
        make_features(tiny_precompute(tmp_path / "parts", tmp_path / "tars", stage="pixel"))


def test_precompute_says_what_it_leaves_out_of_a_folder(tmp_path: Path) -> None:
    for name in ("owls/0.png", "owls/1.png", "keys/2.png", "keys/2.mask.png", "keys/.3.png"):
        save_picture(tmp_path / "pictures" / name, size=(32, 40), seed=0)
    (tmp_path / "pictures" / "keys" / "4.dng").write_bytes(b"II*")
    tasks = _tasks(tmp_path, "parts")
    (line,) = tasks.findings
    assert "skipped 1 file (name starts with .," in line
    assert "1 mask of images" in line
    assert "1 file that no reader takes for images (.dng 1)" in line
    assert tasks.plan.num_samples == 3
    assert _tasks(tmp_path, "others", ignore=()).plan.num_samples == 4


def _tasks(folder: Path, out: str, **settings: Any) -> FeatureTasks:
    config = tiny_precompute(folder / out, folder / "pictures", stage="pixel", **settings)
    return prepare(config, describe=Encoders.describe)


def write_labelled_parquet(path: Path, *, column: str, labels: Sequence[str | int | None]) -> None:
    """As `datasets` writes it: image {bytes, path} and a column; a column `label` holds numbers with their names."""
    pictures = [save_picture(path.parent / f"{row}.png", size=(32, 40), seed=row) for row in range(len(labels))]
    images = [{"bytes": picture.read_bytes(), "path": picture.name} for picture in pictures]
    for picture in pictures:
        picture.unlink()  # the image is in the table alone
    table = pa.table({"image": images, column: labels})
    if column == "label":
        features = {"image": {"_type": "Image"}, "label": {"names": ["key", "owl"], "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def _with_pictures(folder: Folder, pictures: Path) -> Folder:
    """The run again, its committed images leading to pictures that are there."""
    for path in Path(folder.root).glob("images/0*.parquet"):
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row["uri"] = str(save_picture(pictures / "pictures" / f"{row['key']}.png", size=(48, 64), seed=len(row["key"])))
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    return folder


def _captions_by_key(store: FeatureStore) -> dict[str, dict[str, str]]:
    rows = [
        row
        for commit in read_commits(store.folder)
        if "latents" in commit.files
        for row in _columns(store, commit.files["latents"].path, "key", "captions")
    ]
    return {key: {one["name"]: one["text"] for one in captions} for key, captions in rows}


def _columns(store: FeatureStore, path: str, *names: str) -> list[tuple]:  # type: ignore[type-arg]
    """The rows of an Arrow file, some columns of each."""
    table = pa.ipc.open_file(store.folder.path(path)).read_all()
    return [tuple(row[name] for name in names) for row in table.to_pylist()]
