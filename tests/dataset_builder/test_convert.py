"""Imports of third-party captions, in each of the ways in which they are published."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset_builder.convert import ConvertConfig
from dataset_builder.convert import main as convert
from dataset_builder.runs.text_archive import find_texts, store_texts
from dataset_builder.sql.run_files import open_run
from foundry.errors import UserError
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import MINI_T5
from tests.foundry.images.containers import jpeg, parquet, tar_bytes, write
from tests.foundry.units.plain_loop import run_plainly


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)


def _import(tmp_path: Path, source: Any, given: Path, **options: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the rows of `captions` by key."""
    config = ConvertConfig(input=str(given), out=str(tmp_path / "run"), source=source, target="run", t5=MINI_T5, **options)
    code = convert(config)
    return code, {row["key"]: row for row in _rows(tmp_path, "SELECT * FROM captions")}


def _rows(tmp_path: Path, sql: str) -> list[dict[str, Any]]:
    with open_run(str(tmp_path / "run")) as run:
        rows: list[dict[str, Any]] = run.fetch(sql).to_pylist()
    return rows


def test_images_with_texts_next_to_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    for number, text in enumerate(["An owl\non a tree.", "A house and a house.", None]):
        write(folder / f"{number}.jpg", jpeg(number, size=(96, 80)))
        if text:
            write(folder / f"{number}.txt", text)
    write(folder / "bad.jpg", b"\xff\xd8\xff broken")
    write(folder / "bad.txt", "A dog.")
    code, captions = _import(tmp_path, "image-txt", folder)
    assert code == 0
    assert {key: row["caption"] for key, row in captions.items()} == {
        "0": "An owl on a tree.",
        "1": "A house and a house.",
        "2": "",
    }
    assert {row["status"] for row in captions.values()} == {"ok", "empty"}
    assert captions["1"] | {"prompt": "image-txt", "nouns": ["house", "house"], "num_distinct_nouns": 1} == captions["1"]
    assert _rows(tmp_path, "SELECT key, width, height FROM images WHERE key = '0'") == [{"key": "0", "width": 96, "height": 80}]
    assert [row["key"] for row in _rows(tmp_path, "SELECT key FROM rejected")] == ["bad"]
    assert "4 images = 3 imported + 1 rejected" in capsys.readouterr().out
    assert _import(tmp_path, "image-txt", folder) == (0, captions)
    assert "0 to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a run of other images or settings"):
        _import(tmp_path, "image-txt", folder, prompt="other")


def test_sam_llava_finds_its_images_by_their_number(tmp_path: Path) -> None:
    images = write(tmp_path / "sa_000000.tar", tar_bytes([(f"./sa_{n}.jpg", jpeg(n)) for n in (1, 2, 10)]))
    texts = [("./sa_10.txt", b"A dog runs."), ("./sa_1.txt", b" An owl. \n"), ("sa_7.txt", b"A cat."), ("sa_1.txt", b"Again.")]
    archive = write(tmp_path / "captions.tar.gz", gzip.compress(tar_bytes([*texts, ("readme.md", b"")])))
    code, captions = _import(tmp_path, "sam-llava", archive, images=(str(images),))
    assert code == 0
    assert {key: row["caption"] for key, row in captions.items()} == {"sa_1": "An owl.", "sa_2": "", "sa_10": "A dog runs."}
    assert store_texts(str(archive), Folder(str(tmp_path / "run"))) == 3


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_all_texts_of_joined_archives_are_read_and_damage_is_an_error(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    parts = [tar_bytes([(f"sa_{n}.txt", f"text {n}".encode())]) for n in range(3)]
    texts = {f"sa_{n}": f"text {n}" for n in range(3)}
    for number, data in enumerate([compress(b"".join(parts)), b"".join(map(compress, parts))]):
        archive = write(tmp_path / f"{number}.tar", data)
        run = Folder(str(tmp_path / f"run{number}"))
        assert store_texts(str(archive), run) == 3
        assert find_texts(run, list(texts)) == texts
    whole = compress(b"".join(parts))
    cut = whole[: len(parts[0]) + 515] if compress is bytes else whole[: len(whole) // 2]
    for name, data in (("damaged", compress(parts[0][:1024] + b"\x01" * 512 + parts[1])), ("cut", cut)):
        with pytest.raises(UserError, match="fetch it again"):
            store_texts(str(write(tmp_path / f"{name}.tar", data)), Folder(str(tmp_path / name)))


def test_texts_are_found_in_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset_builder.runs.text_archive._ROW_GROUP", 7)
    monkeypatch.setattr("dataset_builder.runs.text_archive._BATCH", 5)
    monkeypatch.setattr("foundry.storage.parquet_writer.FILE_BYTES", 1)
    texts = {f"sa_{number}": f"text {number}" for number in range(40)}
    archive = write(tmp_path / "a.tar", tar_bytes([(f"{key}.txt", text.encode()) for key, text in texts.items()]))
    run = Folder(str(tmp_path / "run"))
    assert store_texts(str(archive), run) == 40
    assert len(json.loads(run.read("texts.json"))["parts"]) > 1
    assert find_texts(run, [*texts, "sa_99"]) == texts
    assert find_texts(run, ["sa_3", "sa_20"]) == {"sa_3": "text 3", "sa_20": "text 20"}


def test_laion_parquet_and_webdataset(tmp_path: Path) -> None:
    images = [jpeg(1), jpeg(2)]
    table = parquet(tmp_path / "laion" / "a.parquet", {"jpg": images, "TEXT": ["An owl", "A house"], "similarity": [0.3, 0.2]})
    code, captions = _import(tmp_path / "a", "laion", table.parent)
    assert (code, sorted(row["caption"] for row in captions.values())) == (0, ["A house", "An owl"])
    members = [("7.jpg", images[0]), ("7.txt", b"An owl"), ("8.jpg", images[1]), ("8.json", b'{"caption": "A house"}')]
    shard = write(tmp_path / "shard.tar", tar_bytes(members))
    code, captions = _import(tmp_path / "b", "webdataset", shard, prompt="alt_text")
    assert {key: (row["prompt"], row["caption"]) for key, row in captions.items()} == {
        "7": ("alt_text", "An owl"),
        "8": ("alt_text", "A house"),
    }


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "a.jpg", jpeg())
    with pytest.raises(UserError, match="is not laion"):
        _import(tmp_path, "laion", tmp_path / "photos")
    for name, data, message in [("damaged.tar.gz", b"\x1f\x8b no", "damaged"), ("empty.tar", tar_bytes([]), "no .txt")]:
        with pytest.raises(UserError, match=message):
            store_texts(str(write(tmp_path / name, data)), Folder(str(tmp_path / name.split(".", maxsplit=1)[0])))
    for options in ({"source": "dataset", "target": "run"}, {"source": "sam-llava", "target": "run"}):
        with pytest.raises(ValueError, match=r"webdataset|--images"):
            ConvertConfig(input="a", out="b", **options)  # type: ignore[arg-type]
