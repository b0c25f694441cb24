"""A data set out and in again: nothing is lost on the way."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from dataset_builder.convert import ConvertConfig
from dataset_builder.convert import main as convert
from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.sql.dataset_files import read_dataset
from dataset_builder.sql.run_files import open_run
from foundry.errors import UserError
from tests.dataset_builder.small_run import MINI_T5, write_run_with_images
from tests.foundry.images.containers import jpeg, write
from tests.foundry.units.plain_loop import run_plainly

TEXTS = {"owl.v1": "An owl on a tree.", "owl_v1": "Another owl.", "dog": "A dog runs."}


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)
    for number, (name, text) in enumerate(TEXTS.items()):
        write(tmp_path / "photos" / f"{name}.jpg", jpeg(number, size=(40, 30)))
        write(tmp_path / "photos" / f"{name}.txt", text)
    config = ConvertConfig(
        input=str(tmp_path / "photos"), out=str(tmp_path / "run"), source="image-txt", target="run", t5=MINI_T5
    )
    assert convert(config) == 0
    build_dataset(BuildConfig(captions=(config.out,), out=str(tmp_path / "data")))
    return tmp_path / "data"


def _export(dataset: Path, *, images_per_shard: int = 1000, prompt: str = "") -> tuple[int, dict[str, bytes]]:
    """The exit code and the members of all shards."""
    out = dataset.parent / "shards"
    config = ConvertConfig(
        input=str(dataset),
        out=str(out),
        source="dataset",
        target="webdataset",
        num_workers=1,
        images_per_shard=images_per_shard,
        prompt=prompt,
    )
    code = convert(config)
    members: dict[str, bytes] = {}
    for shard in sorted(out.rglob("*.tar")):
        with tarfile.open(fileobj=io.BytesIO(shard.read_bytes())) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                members[f"{shard.parent.name}/{member.name}"] = content.read()
    return code, members


def test_a_data_set_out_and_in_again_is_the_same(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, members = _export(dataset, images_per_shard=2)
    assert code == 0
    facts = {json.loads(data)["key"]: name for name, data in members.items() if name.endswith(".json")}
    assert set(facts) == set(TEXTS)
    for key, name in facts.items():
        assert members[name.removesuffix("json") + "txt"].decode() == TEXTS[key]
        assert members[name.removesuffix("json") + "jpg"] == (dataset.parent / "photos" / f"{key}.jpg").read_bytes()
        assert "." not in name.rsplit("/", 1)[-1].removesuffix(".json")
    config = ConvertConfig(
        input=str(dataset.parent / "shards"), out=str(dataset.parent / "again"), source="webdataset", target="run", t5=MINI_T5
    )
    assert convert(config) == 0
    with open_run(config.out) as run:
        assert sorted(run.fetch("SELECT caption FROM captions")["caption"].to_pylist()) == sorted(TEXTS.values())
    capsys.readouterr()
    assert _export(dataset, images_per_shard=2) == (0, members)
    assert "0 to write" in capsys.readouterr().out


def test_shards_of_something_else_are_left_alone(dataset: Path) -> None:
    assert _export(dataset, images_per_shard=2)[0] == 0
    for images_per_shard, prompt in ((3, ""), (2, "image-txt")):
        with pytest.raises(UserError, match="shards of another data set, prompt or size: give another OUT"):
            _export(dataset, images_per_shard=images_per_shard, prompt=prompt)


def test_a_folder_that_cannot_be_written_is_one_line(dataset: Path) -> None:
    (dataset.parent / "shards").write_text("a file")
    with pytest.raises(UserError, match="cannot work in"):
        _export(dataset)


def test_a_data_set_at_once(dataset: Path) -> None:
    out = str(dataset.parent / "once")
    photos = str(dataset.parent / "photos")
    config = ConvertConfig(input=photos, out=out, source="image-txt", target="dataset", licence="CC0", t5=MINI_T5)
    for _ in range(2):
        assert convert(config) == 0
    assert sum(read_dataset(out).splits.values()) == 3


def test_an_image_that_has_changed_is_left_out_by_name(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset.parent / "photos" / "dog.jpg").write_bytes(jpeg(99))
    code, members = _export(dataset)
    assert code == 1
    assert not any("dog" in name for name in members)
    assert "left out: dog: changed" in capsys.readouterr().err


def test_an_image_without_a_caption_under_the_prompt_is_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(write_run_with_images(tmp_path))
    splits: dict[str, float | str] = {"train": 1.0}
    where = "prompt <> 'dense' OR key <> 'img_0'"
    build_dataset(BuildConfig(captions=(str(run),), out=str(tmp_path / "data"), splits=splits, where=where))
    code, members = _export(tmp_path / "data", prompt="short")
    assert code == 1  # two of the three images are gone
    assert [name for name in members if name.endswith(".txt")] == ["train/img_0.txt"]
    assert members["train/img_0.txt"] == b"An image of an owl."
    capsys.readouterr()
    shutil.rmtree(tmp_path / "shards")
    assert _export(tmp_path / "data", prompt="dense") == (1, {})
    assert "left out: img_0: no caption under dense" in capsys.readouterr().err
    with pytest.raises(UserError, match="has no captions under shrot: give --prompt one of dense, short"):
        _export(tmp_path / "data", prompt="shrot")
