"""From a row of the index to bytes and facts: equal to what was packed, for every container; failures name file and reason."""

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foundry.images import parquet as parquet_rows
from foundry.images import reader as references
from foundry.images.index import ImageReference
from foundry.images.reader import ImageFacts, ImageReader, coalesce, content_hash, reference_of
from foundry.units.rejection import ImageError
from tests.foundry.images.containers import CountingFileSystem, encode, jpeg, rows_of, sa1b_json, tar_bytes, write

IMAGES = [jpeg(n) for n in range(7)]
NO_FACTS = ImageFacts(alt_text=None, class_label=None, num_masks=None, mask_area_px=None, metadata=None)


def read_all(location: str | Path) -> list[bytes]:
    rows = rows_of(location)
    with ImageReader() as reader:
        reader.expect(rows)
        return [reader.read(reference_of(row)) for row in rows]


def facts_of(location: str | Path) -> list[ImageFacts]:
    with ImageReader() as reader:
        return [reader.read_sidecars(row) for row in rows_of(location)]


def parquet_bytes(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def failure(row: dict[str, Any], max_bytes: int | None = None) -> ImageError:
    with ImageReader() as reader, pytest.raises(ImageError) as raised:
        reader.read(reference_of(row), max_bytes=max_bytes)
    assert "\n" not in raised.value.message
    return raised.value


# Round trips --------------------------------------------------------------------------------------------------------------

CONTAINERS = {
    "loose files": {f"{n}.jpg": image for n, image in enumerate(IMAGES)},
    "tar": {"x.tar": tar_bytes((f"./d/{n}.jpg", image) for n, image in enumerate(IMAGES))},
    "parquet": {"x.parquet": parquet_bytes({"jpg": IMAGES}, row_group_size=3)},
    "parquet of structs": {"x.parquet": parquet_bytes({"image": [{"bytes": image, "path": "a.jpg"} for image in IMAGES]})},
    "large binary": {"x.parquet": parquet_bytes({"image": pa.array(IMAGES, pa.large_binary())}, row_group_size=2)},
    "dictionary encoded": {"x.parquet": parquet_bytes({"image": IMAGES}, use_dictionary=True, compression="zstd")},
    "list": {
        "list.jsonl": "\n".join(json.dumps({"path": f"_d/{n}.jpg"}) for n in range(7)).encode(),
        **{f"_d/{n}.jpg": image for n, image in enumerate(IMAGES)},
    },
}


@pytest.mark.parametrize("store", ["local", "counting", "memory"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_what_is_read_equals_what_was_packed(tmp_path: Path, container: str, store: str) -> None:
    files = CONTAINERS[container]
    for name, data in files.items():
        write(tmp_path / name, data)
    CountingFileSystem.serve({f"data/{name}": data for name, data in files.items()})
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/round_trip/{name}": data for name, data in files.items()})
    try:
        places = {"local": str(tmp_path), "counting": "counting://data", "memory": "memory://round_trip"}
        assert read_all(places[store]) == IMAGES
    finally:
        memory.rm("/round_trip", recursive=True)


@pytest.mark.parametrize("is_embedded", [True, False])
def test_parquet_of_the_datasets_library_round_trips(tmp_path: Path, *, is_embedded: bool) -> None:
    for n, image in enumerate(IMAGES):
        write(tmp_path / "raw" / f"{n}.jpg", image)
    paths = [str(tmp_path / "raw" / f"{n}.jpg") for n in range(7)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["owl", "cat"]), "caption": datasets.Value("string")}
    )
    columns: dict[str, list[Any]] = {
        "image": [{"bytes": image, "path": None} if is_embedded else paths[n] for n, image in enumerate(IMAGES)],
        "label": [0, 1, 0, 1, 0, 1, None],
        "caption": [f"caption {n}" for n in range(7)],
    }
    (tmp_path / "out").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "out" / "train.parquet"))
    assert read_all(tmp_path / "out") == IMAGES
    facts = facts_of(tmp_path / "out")
    assert [fact.class_label for fact in facts] == ["owl", "cat", "owl", "cat", "owl", "cat", None]
    assert [fact.alt_text for fact in facts] == columns["caption"]


@settings(max_examples=40, deadline=None)
@given(
    images=st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
    group=st.integers(1, 5),
    batch=st.integers(1, 4),
)
def test_any_order_of_reading_gives_the_same_bytes(
    images: list[bytes], order: random.Random, *, group: int, batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("order")
    write(folder / "a.tar", tar_bytes((f"{n}.jpg", image) for n, image in enumerate(images)))
    write(folder / "b.parquet", parquet_bytes({"image": images}, row_group_size=group))
    rows = list(zip(rows_of(folder), images * 2, strict=True))
    order.shuffle(rows)
    with pytest.MonkeyPatch.context() as patch, ImageReader() as reader:
        patch.setattr(parquet_rows, "_BATCH_ROWS", batch)
        for row, image in rows:
            assert reader.read(reference_of(row)) == image


# How much is read -----------------------------------------------------------------------------------------------------------


def test_neighbours_in_a_remote_tar_come_in_one_request() -> None:
    members = [(f"{n}{suffix}", bytes([n]) * 5000) for n in range(97, 123) for suffix in (".jpg", ".txt")]
    CountingFileSystem.serve({"x.tar": tar_bytes(members)})
    rows = rows_of("counting://x.tar")[3:23]
    CountingFileSystem.fetched = []
    with ImageReader() as reader:
        reader.expect(rows)
        for n, row in enumerate(rows, start=100):
            assert reader.read(reference_of(row)) == bytes([n]) * 5000
            assert reader.read_sidecars(row).alt_text == chr(n) * 5000
    assert len(CountingFileSystem.fetched) == 1
    assert CountingFileSystem.fetched_bytes() < 40 * 6200


def test_images_and_far_jsons_of_a_remote_tar_are_each_fetched_once() -> None:
    images = [(f"{n}.jpg", bytes(10_000)) for n in range(1, 60)]
    CountingFileSystem.serve(
        {"x.tar": tar_bytes([*images, ("far.bin", bytes(1_000_000)), *((f"{n}.json", b"{}") for n in range(1, 60))])}
    )
    rows = rows_of("counting://x.tar")
    CountingFileSystem.fetched = []
    with ImageReader() as reader:
        reader.expect(rows)
        for row in rows:
            reader.read(reference_of(row))
            reader.read_sidecars(row)
    assert len(CountingFileSystem.fetched) == 2


def test_a_span_is_not_fetched_again_for_each_image_when_buffers_are_gone() -> None:
    # Three far places in turn, with two buffers: the worst case must not fetch 3 spans for each image.
    gap = ("gap.bin", bytes(200_000))
    thirds = [[(f"{part}{n}.jpg", bytes(3000)) for n in range(10)] for part in "abc"]
    CountingFileSystem.serve({"x.tar": tar_bytes([*thirds[0], gap, *thirds[1], gap, *thirds[2]])})
    rows = rows_of("counting://x.tar")
    CountingFileSystem.fetched = []
    with ImageReader() as reader:
        reader.expect(rows)
        for n in range(10):
            for part in range(3):
                reader.read(reference_of(rows[part * 10 + n]))
    assert CountingFileSystem.fetched_bytes() < 2 * 30 * 4096


@given(ranges=st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 10**7)), max_size=30))
def test_spans_cover_all_ranges_and_are_sorted(ranges: list[tuple[int, int]]) -> None:
    spans = coalesce(ranges)
    assert spans == sorted(spans)
    for offset, length in ranges:
        assert any(start <= offset and offset + length <= end for start, end in spans)
    assert all(end - start <= 16 << 20 for start, end in spans)


def test_consecutive_parquet_rows_read_each_row_group_once_and_only_needed_columns() -> None:
    images = [random.Random(n).randbytes(20_000) for n in range(60)]
    columns = {
        "image": images,
        "other": [np.random.default_rng(n).random(5000) for n in range(60)],
        "caption": ["x"] * 60,
    }
    CountingFileSystem.serve({"x.parquet": parquet_bytes(columns, row_group_size=20)})
    rows = rows_of("counting://x.parquet")
    CountingFileSystem.fetched = []
    with ImageReader() as reader:
        for row in rows[20:40]:
            assert reader.read(reference_of(row)) == images[row["row"]]
            assert reader.read_sidecars(row).alt_text == "x"
    assert CountingFileSystem.fetched_bytes() < 20 * 20_000 + 150_000


def test_few_files_stay_open(tmp_path: Path) -> None:
    for n in range(60):
        write(tmp_path / f"{n}.tar", tar_bytes([("a.jpg", b"1")]))
        write(tmp_path / f"{n}.parquet", parquet_bytes({"image": [b"1"]}))
    rows = rows_of(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with ImageReader() as reader:
        for row in rows:
            reader.read(reference_of(row))
        assert len(os.listdir("/proc/self/fd")) - before <= 2 * references._MAX_OPEN
    assert len(os.listdir("/proc/self/fd")) == before


# Failures -----------------------------------------------------------------------------------------------------------------


def test_each_failure_has_its_reason_and_names_the_file(tmp_path: Path) -> None:
    tar = write(tmp_path / "x.tar", tar_bytes([("a.jpg", b"12345"), ("zero.jpg", b"")]))
    parquet = write(tmp_path / "x.parquet", parquet_bytes({"image": [b"12345", b"", None]}))
    loose = write(tmp_path / "a.jpg", b"12345")
    write(tmp_path / "zero.jpg", b"")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    in_tar = {"uri": str(tar), "member": "a.jpg", "byte_offset": 512, "byte_length": 5}
    in_parquet = {"uri": str(parquet), "member": "image", "row": 0}
    cases: list[tuple[dict[str, Any], int | None, str]] = [
        ({"uri": str(loose)}, 4, "too_many_bytes"),
        ({"uri": str(tmp_path / "zero.jpg")}, None, "empty"),
        ({"uri": str(tmp_path / "none.jpg")}, None, "unreadable"),
        ({"uri": str(tmp_path / "folder.jpg")}, None, "unreadable"),
        ({"uri": str(tmp_path / "pipe.jpg")}, None, "unreadable"),
        ({"uri": "nonsense://a.jpg"}, None, "unreadable"),
        ({"uri": "memory://none.jpg"}, None, "unreadable"),
        (in_tar, 4, "too_many_bytes"),
        (in_tar | {"byte_offset": 10**9}, None, "unreadable"),
        (in_tar | {"byte_length": 10**6}, None, "unreadable"),
        (in_tar | {"byte_length": 0}, None, "empty"),
        (in_parquet, 4, "too_many_bytes"),
        (in_parquet | {"row": 1}, None, "empty"),
        (in_parquet | {"row": 2}, None, "empty"),
        (in_parquet | {"row": 3}, None, "unreadable"),
        (in_parquet | {"uri": str(loose)}, None, "unreadable"),
    ]
    for row, max_bytes, expected in cases:
        error = failure(row, max_bytes)
        assert error.reason == expected, (row, error)
        assert Path(row["uri"]).name in error.message
    for row in ({"uri": str(loose)}, in_tar, in_parquet):
        with ImageReader() as reader:
            assert reader.read(reference_of(row), max_bytes=5) == b"12345"


def test_a_large_remote_file_is_not_fetched() -> None:
    CountingFileSystem.serve({"a.jpg": bytes(5_000_000)})
    assert failure({"uri": "counting://a.jpg"}, 1_000_000).reason == "too_many_bytes"
    assert CountingFileSystem.fetched_bytes() <= 1_000_001


def test_a_damaged_row_group_spoils_only_its_own_rows(tmp_path: Path) -> None:
    images = [random.Random(n).randbytes(3000) for n in range(30)]
    data = bytearray(parquet_bytes({"image": images}, row_group_size=10, compression="zstd", use_dictionary=False))
    place = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(1).column(0).data_page_offset
    data[place : place + 2000] = bytes(2000)
    rows = rows_of(write(tmp_path / "x.parquet", bytes(data)))
    with ImageReader() as reader:
        for row in rows:
            if 10 <= row["row"] < 20:
                with pytest.raises(ImageError) as raised:
                    reader.read(reference_of(row))
                assert raised.value.reason == "unreadable"
            else:
                assert reader.read(reference_of(row)) == images[row["row"]]


# Sidecars -----------------------------------------------------------------------------------------------------------------


def test_masks_of_sa1b_are_counted_and_never_carried(tmp_path: Path) -> None:
    members = [
        ("./sa_1.jpg", b"1"),
        ("./sa_1.json", sa1b_json(1, [100, 250, 3])),
        ("./sa_2.jpg", b"1"),
        ("./sa_2.json", sa1b_json(2, [])),
    ]
    first, second = facts_of(write(tmp_path / "x.tar", tar_bytes(members)))
    assert (first.num_masks, first.mask_area_px) == (3, 353)
    assert (second.num_masks, second.mask_area_px) == (0, 0)
    assert json.loads(first.metadata or "") == {"image_id": 1, "width": 2250, "height": 1500, "file_name": "sa_1.jpg"}
    assert first.alt_text is None


@pytest.mark.parametrize("is_tar", [True, False])
def test_text_label_and_json_next_to_an_image(tmp_path: Path, *, is_tar: bool) -> None:
    fields = {"caption": "from json", "label": 4, "url": "http://x", "n": 1, "tags": ["a"], "none": None, "nan": float("nan")}
    members = [("a.jpg", b"1"), ("a.json", json.dumps(fields).encode()), ("b.jpg", b"2"), ("b.txt", "\ufeffan öwl\n".encode())]
    members += [("b.json", json.dumps(fields).encode()), ("b.cls", b"7\n"), ("c.jpg", b"3"), ("c.txt", b" ")]
    if is_tar:
        write(tmp_path / "x.tar", tar_bytes(members))
    else:
        for name, data in members:
            write(tmp_path / name, data)
    a, b, c = facts_of(tmp_path)
    assert (a.alt_text, a.class_label, json.loads(a.metadata or "")) == ("from json", "4", {"url": "http://x", "n": 1})
    assert (b.alt_text, b.class_label, json.loads(b.metadata or "")) == ("an öwl", "7", {"url": "http://x", "n": 1})
    assert c == NO_FACTS


def test_columns_of_a_list_come_before_files_next_to_the_image(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", b"1")
    write(tmp_path / "a.json", '{"caption": "json", "label": "cat", "n": 1, "m": 2}')
    write(tmp_path / "metadata.jsonl", '{"file_name": "a.jpg", "text": "list", "n": 5}')
    (facts,) = facts_of(tmp_path)
    assert (facts.alt_text, facts.class_label) == ("list", "cat")
    assert json.loads(facts.metadata or "") == {"n": 5, "m": 2}


def test_scalar_columns_of_parquet_are_carried(tmp_path: Path) -> None:
    columns = {
        "image": [b"1", b"2"],
        "__key__": ["k1", "k2"],
        "TEXT": ["an owl", None],
        "label": [1.0, None],
        "score": [0.5, float("nan")],
        "day": pa.array([0, 1], pa.date32()),
        "embedding": [[1.0], [2.0]],
        "thumb": [b"x", b"y"],
    }
    first, second = facts_of(write(tmp_path / "x.parquet", parquet_bytes(columns)))
    assert (first.alt_text, first.class_label) == ("an owl", "1")
    assert json.loads(first.metadata or "") == {"__key__": "k1", "score": 0.5, "day": "1970-01-01"}
    assert (second.alt_text, second.class_label) == (None, None)
    assert json.loads(second.metadata or "") == {"__key__": "k2", "day": "1970-01-02"}


def test_a_sidecar_that_has_gone_is_a_bad_sidecar(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", b"1")
    write(tmp_path / "a.txt", b"1")
    (row,) = rows_of(tmp_path)
    (tmp_path / "a.txt").unlink()
    with ImageReader() as reader, pytest.raises(ImageError) as raised:
        reader.read_sidecars(row)
    assert raised.value.reason == "bad_sidecar"


def test_the_content_hash_is_sha256_cut_to_32_digits() -> None:
    assert content_hash(b"abc") == "ba7816bf8f01cfea414140de5dae2223"


def test_a_reference_survives_a_table() -> None:
    reference = ImageReference(uri="u", member="m", byte_offset=1, byte_length=2, row=None)
    assert reference_of(vars(reference)) == reference


def test_webp_and_png_bytes_are_not_touched(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    data = [encode(image, "PNG"), encode(image, "WEBP")]
    write(tmp_path / "a.png", data[0])
    write(tmp_path / "b.webp", data[1])
    assert read_all(tmp_path) == data
