"""A data set out and in again: nothing is lost on the way."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dataset_builder.convert import ConvertConfig
from dataset_builder.convert import main as convert
from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.sql.dataset_files import read_dataset
from dataset_builder.sql.run_files import open_run
from foundry.errors import StoreError, UserError
from foundry.images.decoding import DecodeLimits, decode_image, is_plain
from foundry.images.reader import content_hash
from tests.dataset_builder.small_run import MINI_T5, write_run_with_images
from tests.foundry.images.containers import encode, jpeg, write
from tests.foundry.images.test_retries import FlakyFileSystem
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


def _export(
    dataset: Path, *, images_per_shard: int = 1000, prompt: str = "", reencode: bool = False
) -> tuple[int, dict[str, bytes]]:
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
        reencode=reencode,
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


def test_names_that_are_not_utf8_cost_themselves_alone(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = dataset.parent / "photos"
    for name in ("\udcff.jpg", "\udcff.txt", "\udcff/owl.jpg", "\udcff/owl.txt"):
        write(photos / name, jpeg(1))
    config = ConvertConfig(input=str(photos), out=str(tmp_path / "again"), source="image-txt", target="run", t5=MINI_T5)
    assert convert(config) == 0
    said = capsys.readouterr().out
    assert "3 images = 3 imported + 0 rejected" in said
    assert "skipped 3 names of files or folders that UTF-8 cannot hold (rename them)" in said
    for source in ("image-txt", "webdataset"):
        with pytest.raises(UserError, match=r"\\udcff' is not UTF-8; rename it"):
            convert(replace(config, input=str(photos / "\udcff"), source=source))


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
    with pytest.raises(UserError, match="has no captions under shrot: give one of dense, short"):
        _export(tmp_path / "data", prompt="shrot")


FORMATS = {
    "phone": ("MPO", "jpg"),
    "plain": ("JPEG", "jpg"),
    "pic": ("AVIF", "avif"),
    "pic2": ("JPEG2000", "jp2"),
    "scan": ("TIFF", "tiff"),
    "noted": ("PNG", "png"),
}


@pytest.mark.parametrize("reencode", [False, True])
def test_what_an_export_writes_an_import_reads_whatever_the_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, reencode: bool
) -> None:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)
    pixels = Image.linear_gradient("L").convert("RGB").resize((64, 48))
    for name, (image_format, _) in FORMATS.items():
        options: dict[str, Any] = {"save_all": True, "append_images": [pixels]} if image_format == "MPO" else {}
        if image_format == "PNG":
            options["pnginfo"] = PngInfo()
            options["pnginfo"].add_text("notes", "x" * (3 << 20), zip=True)  # Pillow reads no more than 1 MiB
        suffix = "jpg" if image_format == "MPO" else image_format.lower().replace("jpeg2000", "jp2").replace("jpeg", "jpg")
        write(tmp_path / "photos" / f"{name}.{suffix}", encode(pixels, image_format, **options))
        write(tmp_path / "photos" / f"{name}.txt", f"A picture of {name}.")
    imported = ConvertConfig(
        input=str(tmp_path / "photos"), out=str(tmp_path / "run"), source="image-txt", target="run", t5=MINI_T5
    )
    assert convert(imported) == 0
    build_dataset(BuildConfig(captions=(imported.out,), out=str(tmp_path / "data")))
    code, members = _export(tmp_path / "data", reencode=reencode)
    assert code == 0
    images = {name for name in members if not name.endswith((".txt", ".json"))}
    common = ("JPEG", "MPO")
    expected = {name: "png" if reencode and kind not in common else suffix for name, (kind, suffix) in FORMATS.items()}
    assert images == {f"train/{name}.{suffix}" for name, suffix in expected.items()}
    for name, suffix in expected.items():
        facts = json.loads(members[f"train/{name}.json"])
        assert facts["content_hash"] == content_hash(members[f"train/{name}.{suffix}"])
        assert is_plain(members[f"train/{name}.{suffix}"]) == (reencode or name != "noted")
        decoded = decode_image(members[f"train/{name}.{suffix}"], limits=DecodeLimits()).pixels
        assert np.abs(decoded.astype(int) - pixels).max() < 12
    again = ConvertConfig(
        input=str(tmp_path / "shards"), out=str(tmp_path / "again"), source="webdataset", target="run", t5=MINI_T5
    )
    capsys.readouterr()
    assert convert(again) == 0
    assert "6 images = 6 imported + 0 rejected" in capsys.readouterr().out
    with open_run(again.out) as run:
        found = run.fetch("SELECT key, caption FROM captions ORDER BY key").to_pylist()
    assert found == [{"key": name, "caption": f"A picture of {name}."} for name in sorted(FORMATS)]


def test_keys_that_a_search_would_pass_over_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)
    names = ("_a/x.jpg", "a/_b/x.jpg", "a/@eaDir/x.jpg", "a/b/x.jpg", "_x.jpg", "a/.b/x.jpg")
    for number, name in enumerate(names):
        write(tmp_path / "in" / name, jpeg(number))
    rows = "\n".join(json.dumps({"path": name, "text": name}) for name in names)
    source = ConvertConfig(
        input=str(write(tmp_path / "in" / "list.jsonl", rows)),
        out=str(tmp_path / "run"),
        source="laion",
        target="run",
        t5=MINI_T5,
    )
    assert convert(source) == 0
    build_dataset(BuildConfig(captions=(source.out,), out=str(tmp_path / "data")))
    assert _export(tmp_path / "data")[0] == 0
    again = replace(source, input=str(tmp_path / "shards"), out=str(tmp_path / "again"), source="webdataset")
    assert convert(again) == 0
    with open_run(again.out) as run:
        assert sorted(run.fetch("SELECT caption FROM captions")["caption"].to_pylist()) == sorted(names)


def test_masks_are_left_out_of_an_import_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)
    for name in ("a.png", "a.mask.png"):
        write(tmp_path / "in" / name, jpeg(1))
    write(tmp_path / "in" / "a.txt", "An owl.")
    config = ConvertConfig(input=str(tmp_path / "in"), out=str(tmp_path / "0"), source="image-txt", target="run", t5=MINI_T5)
    for number, (ignore, keys) in enumerate([(config.ignore, ["a"]), ((), ["a", "a.mask"])]):
        assert convert(replace(config, ignore=ignore, out=str(tmp_path / str(number)))) == 0
        with open_run(str(tmp_path / str(number))) as run:
            assert sorted(run.fetch("SELECT key FROM images")["key"].to_pylist()) == keys


def test_a_store_that_refuses_one_image_costs_that_image_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)
    files = {f"{number}.jpg": jpeg(number) for number in range(4)}
    FlakyFileSystem.serve_after(files, {})
    rows = "\n".join(json.dumps({"path": f"flaky://{name}", "text": "An owl."}) for name in files)
    listed = str(write(tmp_path / "list.jsonl", rows))
    config = ConvertConfig(input=listed, out=str(tmp_path / "run"), source="laion", target="run", t5=MINI_T5)
    assert convert(config) == 0
    build_dataset(BuildConfig(captions=(config.out,), out=str(tmp_path / "data")))
    FlakyFileSystem.errors = {"1.jpg": [PermissionError(13, "Forbidden")] * 2}
    code, members = _export(tmp_path / "data")
    assert (code, sum(name.endswith(".jpg") for name in members)) == (1, 3)
    assert "left out: 1: unreadable: cannot read flaky://1.jpg" in capsys.readouterr().err
    build_dataset(BuildConfig(captions=(config.out,), out=str(tmp_path / "embedded"), embed=True))
    assert read_dataset(str(tmp_path / "embedded")).splits["train"] == 3
    FlakyFileSystem.errors = {name: [PermissionError(13, "Forbidden")] * 9 for name in files}
    with pytest.raises(StoreError, match="check the permissions"):
        build_dataset(BuildConfig(captions=(config.out,), out=str(tmp_path / "none"), embed=True))
