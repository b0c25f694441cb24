"""What is found under a path or URL, in which order, with which columns; and what a user is told when nothing can be found."""

import csv
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_builder import index_rows, locations
from dataset_builder.command_line import UserError
from dataset_builder.index_rows import SOURCE_INDEX
from dataset_builder.schema import IMAGES, versioned
from dataset_builder.sources import Source, carried_columns, find_sources, index_source
from tests.dataset_builder.containers import CountingFileSystem, jpeg, sa1b_json, tar_bytes, write


def rows_of(*images: str | Path) -> list[dict[str, Any]]:
    """All rows of all sources, each table checked against the schema."""
    rows: list[dict[str, Any]] = []
    for source in find_sources([str(given) for given in images]):
        for table in index_source(source):
            assert table.schema == SOURCE_INDEX
            table.validate(full=True)
            rows += table.to_pylist()
    return rows


def relatives(*images: str | Path) -> list[str]:
    return [row["relative"] for row in rows_of(*images)]


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with one of each kind, and names that are passed over."""
    write(tmp_path / "b.jpg", jpeg(1))
    write(tmp_path / "a.PNG", b"never opened")
    write(tmp_path / "b.txt", "an owl")
    write(tmp_path / "b.json", '{"a": 1}')
    write(tmp_path / "b.cls", "owl")
    write(tmp_path / "sub" / "deep" / "c.webp", b"")
    write(tmp_path / "sub" / "x.tar", tar_bytes([("./sa_1.jpg", jpeg(2)), ("./sa_1.json", sa1b_json(1, [5]))]))
    parquet(tmp_path / "z.parquet", {"image": [jpeg(3), jpeg(4)]})
    write(tmp_path / "sub" / "list.jsonl", '{"path": "elsewhere/d.jpg", "caption": "listed"}\n')
    parquet(tmp_path / "_truth.parquet", {"image": [b""]})
    write(tmp_path / "_truth" / "e.jpg", b"")
    write(tmp_path / ".cache" / "f.jpg", b"")
    write(tmp_path / "__MACOSX" / "._b.jpg", b"")
    write(tmp_path / "readme.md", "")
    return tmp_path


def test_a_folder_is_searched_for_all_kinds_in_a_fixed_order(mixed: Path) -> None:
    sources = find_sources([str(mixed)])
    assert [(source.kind, source.uri.removeprefix(str(mixed))) for source in sources] == [
        ("files", ""),
        ("list", "/sub/list.jsonl"),
        ("tar", "/sub/x.tar"),
        ("parquet", "/z.parquet"),
    ]
    assert relatives(mixed) == [
        *("a.PNG", "b.jpg", "sub/deep/c.webp", "sub/elsewhere/d.jpg"),
        *("sub/x.tar/sa_1.jpg", "z.parquet#0", "z.parquet#1"),
    ]
    tar = sources[2]
    assert tar.num_bytes == (mixed / "sub" / "x.tar").stat().st_size
    assert tar.modified is not None
    assert tar.modified.startswith("20")


def test_order_and_content_do_not_depend_on_the_file_systems_order(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows_of(mixed)
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = list(entries)
            random.Random(path).shuffle(self.entries)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert rows_of(mixed) == before


def test_loose_images_carry_the_places_of_their_sidecars_unread(mixed: Path) -> None:
    row = rows_of(mixed)[1]
    assert (row["stem"], row["uri"], row["alt_text"], row["metadata"]) == ("b", str(mixed / "b.jpg"), None, None)
    assert [(sidecar["suffix"], sidecar["uri"]) for sidecar in row["sidecars"]] == [
        (suffix, str(mixed / f"b{suffix}")) for suffix in (".txt", ".cls", ".json")
    ]
    assert row["byte_offset"] is row["byte_length"] is row["row"] is row["member"] is None


def test_indexing_opens_no_image_and_no_sidecar(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real_open = io.open

    def spy(file: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(str(file))
        return real_open(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", spy)
    rows_of(mixed)
    assert {Path(name).name for name in opened} <= {"x.tar", "z.parquet", "list.jsonl"}


def test_many_rows_come_in_bounded_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(25):
        write(tmp_path / f"{n:02}.jpg", b"")
    monkeypatch.setattr(index_rows, "MAX_ROWS", 10)
    (source,) = find_sources([str(tmp_path)])
    tables = list(index_source(source))
    assert [table.num_rows for table in tables] == [10, 10, 5]
    assert [stem for table in tables for stem in table["stem"].to_pylist()] == [f"{n:02}" for n in range(25)]


@pytest.mark.parametrize("name", ["b.jpg", "sub/x.tar", "z.parquet", "sub/list.jsonl", "_truth.parquet"])
def test_a_single_file_is_a_source(mixed: Path, name: str) -> None:
    (source,) = find_sources([str(mixed / name)])
    assert source.uri == str(mixed / name)
    assert source.root == str((mixed / name).parent)
    assert rows_of(mixed / name)


def test_a_single_image_has_its_sidecars_too(mixed: Path) -> None:
    (row,) = rows_of(mixed / "b.jpg")
    assert row["relative"] == "b.jpg"
    assert [sidecar["suffix"] for sidecar in row["sidecars"]] == [".txt", ".cls", ".json"]


def test_relative_paths_and_home_are_made_absolute(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mixed / "sub")
    monkeypatch.setenv("HOME", str(mixed))
    assert find_sources(["x.tar"])[0].uri == find_sources(["~/sub/./x.tar"])[0].uri == str(mixed / "sub" / "x.tar")
    assert find_sources([f"file://{mixed}/sub/x.tar"])[0].uri == str(mixed / "sub" / "x.tar")


def test_what_is_given_twice_is_found_once(mixed: Path) -> None:
    once = rows_of(mixed)
    assert rows_of(mixed, mixed / "sub", mixed / "b.jpg", mixed / "z.parquet", mixed) == once


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "far" / "a.jpg", b"")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert relatives(tmp_path / "in") == ["link/a.jpg"]


def test_remote_folders_are_found_as_local_ones(mixed: Path) -> None:
    files = {f"bucket/data/{path.relative_to(mixed)}": path.read_bytes() for path in mixed.rglob("*") if path.is_file()}
    CountingFileSystem.serve(files)
    local, remote = rows_of(mixed), rows_of("counting://bucket/data")
    assert [row["relative"] for row in remote] == [row["relative"] for row in local]
    assert [row["uri"].removeprefix("counting://bucket/data") for row in remote] == [
        row["uri"].removeprefix(str(mixed)) for row in local
    ]
    assert not any(name.endswith((".jpg", ".PNG", ".txt", ".cls", ".json")) for name, _, _ in CountingFileSystem.fetched)
    assert find_sources(["counting://bucket/data/z.parquet"])[0].modified == "etag of bucket/data/z.parquet"


def test_memory_urls(mixed: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/found/{path.relative_to(mixed)}": path.read_bytes() for path in mixed.rglob("*") if path.is_file()})
    try:
        assert relatives("memory://found") == relatives(mixed)
        assert {row["uri"].split("/found/")[0] for row in rows_of("memory://found")} == {"memory://"}
    finally:
        memory.rm("/found", recursive=True)


# Parquet ------------------------------------------------------------------------------------------------------------------


def test_parquet_reads_the_footer_and_the_keys_but_no_image() -> None:
    buffer = io.BytesIO()
    images = [random.Random(n).randbytes(50_000) for n in range(40)]
    pq.write_table(
        pa.table({"jpg": images, "__key__": [f"k{n}" for n in range(40)], "n": list(range(40))}), buffer, row_group_size=10
    )
    CountingFileSystem.serve({"a/x.parquet": buffer.getvalue()})
    rows = rows_of("counting://a")
    assert [(row["stem"], row["row"], row["member"]) for row in rows] == [(f"k{n}", n, "jpg") for n in range(40)]
    # The footer is read with 64 KiB around it, twice.
    assert CountingFileSystem.fetched_bytes() < 400_000


@pytest.mark.parametrize(
    ("columns", "member", "stems"),
    [
        ({"jpg": [b"1", b"2"]}, "jpg", ["p-0", "p-1"]),
        ({"hash": [b"1", b"2"], "PNG": [b"1", b"2"]}, "PNG", ["p-0", "p-1"]),
        ({"id": [7, None], "picture": [b"1", b"2"]}, "picture", ["7", "p-1"]),
        ({"path": ["a", "b"], "content": [b"1", b"2"]}, "content", ["p-0", "p-1"]),
        ({"Key": ["x/y", ""], "image": [b"1", b"2"]}, "image", ["x/y", "p-1"]),
        ({"photo": [{"bytes": b"1", "path": "d/one.jpg"}, {"bytes": b"2", "path": None}]}, "photo", ["one", "p-1"]),
        ({"photo": [{"bytes": b"1", "path": "d/one.jpg"}] * 2, "image_id": ["i", "j"]}, "photo", ["i", "j"]),
    ],
)
def test_the_image_column_is_found_by_name_then_by_type(
    tmp_path: Path, columns: dict[str, Any], member: str, stems: list[str]
) -> None:
    rows = rows_of(parquet(tmp_path / "p.parquet", columns))
    assert [row["member"] for row in rows] == [member, member]
    assert [row["stem"] for row in rows] == stems
    assert [row["relative"] for row in rows] == ["p.parquet#0", "p.parquet#1"]


def test_parquet_of_the_datasets_library(tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path / "raw" / f"img_{n}.jpg", jpeg(n))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["owl", "cat"]), "n": datasets.Value("int32")}
    )
    columns = {"image": [str(tmp_path / "raw" / f"img_{n}.jpg") for n in range(3)], "label": [0, 1, 0], "n": [1, 2, 3]}
    (tmp_path / "out").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "out" / "train.parquet"))
    (source,) = find_sources([str(tmp_path / "out")])
    assert source.kind == "parquet"
    assert [row["stem"] for row in rows_of(tmp_path / "out")] == ["img_0", "img_1", "img_2"]
    assert carried_columns(source) == {"n": "BIGINT"}


# Lists --------------------------------------------------------------------------------------------------------------------


def _write_list(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        return parquet(path, {name: [row[name] for row in rows] for name in rows[0]})
    if path.suffix == ".jsonl":
        return write(path, "\n".join(json.dumps(row) for row in rows) + "\n\n")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return write(path, "\ufeff" + text.getvalue())


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_lists_carry_their_columns(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, Any]] = [
        {"URL": "a/1.jpg", "TEXT": 'an "owl",\nup', "label": 3, "n": 1, "score": 0.5, "ok": True, "code": "007", "note": "x"},
        {"URL": "../2.jpg", "TEXT": "日本", "label": 4, "n": 2, "score": 1.0, "ok": False, "code": "010", "note": None},
        {"URL": "s3://b/k/3.jpg?v=1", "TEXT": None, "label": 5, "n": 3, "score": 1.5, "ok": True, "code": "011", "note": "z"},
        {"URL": "/abs//4.jpg", "TEXT": "", "label": 6, "n": 4, "score": 2.5, "ok": True, "code": "012", "note": "z"},
    ]
    path = _write_list(tmp_path / "in" / f"list{suffix}", rows)
    (source,) = find_sources([str(path)])
    assert (source.kind, source.path_column) == ("list", "URL")
    found = rows_of(path)
    assert [row["uri"] for row in found] == [
        str(tmp_path / "in/a/1.jpg"),
        str(tmp_path / "2.jpg"),
        "s3://b/k/3.jpg?v=1",
        "/abs/4.jpg",
    ]
    assert [row["stem"] for row in found] == ["1", "2", "3", "4"]
    assert [row["relative"] for row in found] == ["a/1.jpg", str(tmp_path / "2.jpg"), "s3://b/k/3.jpg?v=1", "/abs/4.jpg"]
    assert [row["alt_text"] for row in found] == ['an "owl",\nup', "日本", None, None]
    assert [row["class_label"] for row in found] == ["3", "4", "5", "6"]
    metadata = [json.loads(row["metadata"]) for row in found]
    assert [int(one["n"]) for one in metadata] == [1, 2, 3, 4]
    assert [float(one["score"]) for one in metadata] == [0.5, 1.0, 1.5, 2.5]
    assert [one["code"] for one in metadata] == ["007", "010", "011", "012"]
    assert "note" not in metadata[1]
    expected = {"n": "BIGINT", "score": "DOUBLE", "ok": "BOOLEAN", "code": "VARCHAR", "note": "VARCHAR"}
    assert carried_columns(source) == expected


def test_nested_columns_are_left_out_and_mixed_ones_are_text(tmp_path: Path) -> None:
    rows = [
        {"file": "1.jpg", "boxes": [1], "n": 1, "big": 2**70},
        {"file": "2.jpg", "n": "two", "m": 1},
        {"file": "3.jpg", "m": 0.5},
    ]
    path = _write_list(tmp_path / "x.jsonl", rows)
    assert carried_columns(find_sources([str(path)])[0]) == {"n": "VARCHAR", "big": "VARCHAR", "m": "DOUBLE"}
    assert [json.loads(row["metadata"]) for row in rows_of(path)] == [{"n": 1, "big": 2**70}, {"n": "two", "m": 1}, {"m": 0.5}]


def test_an_image_that_a_list_describes_is_found_once_with_its_columns(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "a/b/3.jpg", "4.jpg"):
        write(tmp_path / name, b"")
    write(tmp_path / "a" / "1.txt", "from txt")
    write(
        tmp_path / "a" / "metadata.jsonl", '{"file_name": "1.jpg", "text": "one"}\n{"file_name": "b/3.jpg", "text": "three"}\n'
    )
    write(tmp_path / "labels.csv", "filename,label\n./4.jpg,cat\nmissing.jpg,dog\n")
    rows = {row["relative"]: row for row in rows_of(tmp_path)}
    assert sorted(rows) == ["4.jpg", "a/1.jpg", "a/2.jpg", "a/b/3.jpg", "missing.jpg"]
    assert len(rows_of(tmp_path)) == 5
    assert rows["a/1.jpg"]["alt_text"] == "one"
    assert [sidecar["suffix"] for sidecar in rows["a/1.jpg"]["sidecars"]] == [".txt"]
    assert rows["a/b/3.jpg"]["alt_text"] == "three"
    assert rows["4.jpg"]["class_label"] == "cat"


def test_a_list_given_beside_its_folder_counts_as_well(tmp_path: Path) -> None:
    write(tmp_path / "images" / "1.jpg", b"")
    path = write(tmp_path / "list.csv", "path,caption\nimages/1.jpg,an owl\n")
    (row,) = rows_of(tmp_path / "images", path)
    assert row["alt_text"] == "an owl"


def test_lists_and_parquet_without_images_are_passed_over_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "1.jpg", b"")
    write(tmp_path / "log.csv", "step,loss\n1,0.5\n")
    parquet(tmp_path / "n.parquet", {"n": [1]})
    pq.write_table(versioned(IMAGES).empty_table(), tmp_path / "images.parquet")
    assert relatives(tmp_path) == ["1.jpg"]
    names = {Path(record.getMessage().split(" is passed over")[0]).name for record in caplog.records}
    assert names == {"log.csv", "n.parquet", "images.parquet"}


# Carried columns ----------------------------------------------------------------------------------------------------------


def test_carried_columns_of_tars_and_folders_come_from_their_first_jsons(tmp_path: Path) -> None:
    jsons = [b'{"caption": "x", "width": 5, "score": 1, "tags": ["a"]}', b'{"width": 6, "score": 0.5, "safe": true}', b"broken"]
    members = [
        (f"{n}{suffix}", data) for n, json_data in enumerate(jsons) for suffix, data in ((".jpg", b"1"), (".json", json_data))
    ]
    write(tmp_path / "t" / "x.tar", tar_bytes(members))
    for name, data in members:
        write(tmp_path / "f" / name, data)
    for folder in ("t", "f"):
        (source,) = find_sources([str(tmp_path / folder)])
        assert carried_columns(source) == {"width": "BIGINT", "score": "DOUBLE", "safe": "BOOLEAN"}


def test_carried_columns_of_sa1b(tmp_path: Path) -> None:
    path = write(tmp_path / "sa.tar", tar_bytes([("./sa_1.jpg", b"1"), ("./sa_1.json", sa1b_json(1, [2]))]))
    expected = {"image_id": "BIGINT", "width": "BIGINT", "height": "BIGINT", "file_name": "VARCHAR"}
    assert carried_columns(find_sources([str(path)])[0]) == expected


# What a user is told ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.tar.gz", b"", "gunzip it first"),
        ("x.tgz", b"", "gunzip it first"),
        ("x.tar", b"", "is empty"),
        ("x.parquet", b"", "cannot read .* as Parquet again"),
        ("x.parquet", b"PAR1 not really PAR1", "cannot read .* as Parquet again"),
        ("x.jsonl", b"", "no rows"),
        ("x.csv", b"path,n\n", "no rows"),
        ("x.jsonl", b'{"path": "a.jpg"}\nnonsense\n', "line 2 of .* is not a JSON object"),
        ("x.jsonl", b'{"path": "a.jpg"}\n[1]\n', "line 2 of .* is not a JSON object"),
        ("x.jsonl", b'{"path": "a.jpg"}\n{"n": 1}\n', "row 2 of .* names no image: the column path holds None"),
        ("x.jsonl", b'{"path": "a.jpg", "text": "\\ud800"}\n', "row 1 of .* not valid Unicode"),
        ("x.csv", b"path,n\na.jpg,1\nb.jpg,2,3\n", "line 3 of .* more fields than the header"),
        ("x.csv", b"path,n\n\xff\xfe,1\n", "write it as UTF-8"),
    ],
)
@pytest.mark.parametrize("is_folder", [True, False])
def test_a_bad_source_is_one_line_that_names_it(
    tmp_path: Path, name: str, data: bytes, message: str, *, is_folder: bool
) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(UserError, match=message) as raised:
        rows_of(tmp_path if is_folder else path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [("x.zip", b"PK", "no source of images; expected"), ("x.csv", b"a,b\n1,2\n", "no column of image bytes, nor one of paths")],
)
def test_a_single_file_of_another_kind_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_sources([str(write(tmp_path / name, data))])


def test_a_folder_without_images_says_what_was_expected(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "x")
    with pytest.raises(UserError, match=r"no images found in .*; expected image files, \.tar .*\.parquet"):
        find_sources([str(tmp_path)])


def test_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"image": pa.array([], pa.binary())})
    with pytest.raises(UserError, match=r"no rows"):
        rows_of(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("/nowhere/at/all", "cannot read /nowhere/at/all: .*o such file"),
        ("memory://nowhere", "cannot read memory:///nowhere"),
        ("nonsense://x/y", "cannot open nonsense://x/y"),
    ],
)
def test_a_place_that_is_not_there_is_one_line(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_sources([given])


def test_nothing_given_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images given"):
        find_sources([])
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))).write_bytes(b"")
    with pytest.raises(UserError, match="not UTF-8"):
        find_sources([str(tmp_path)])


def test_a_source_is_plain_data() -> None:
    source = Source(kind="tar", uri="/a/b.tar", root="/a")
    assert hash(source) == hash(Source(kind="tar", uri="/a/b.tar", root="/a"))


# Places -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "name", "location"),
    [
        ("/", "a.jpg", "/a.jpg"),
        ("/x", "a.jpg", "/x/a.jpg"),
        ("s3://bucket", "a.jpg", "s3://bucket/a.jpg"),
        ("memory:///", "a.jpg", "memory:///a.jpg"),
        ("counting://", "a.jpg", "counting://a.jpg"),
    ],
)
def test_a_location_is_taken_apart_as_it_is_put_together(folder: str, name: str, location: str) -> None:
    assert locations.join(folder, name) == location
    assert locations.parent(location) == folder
    assert locations.relative_to(location, folder) == name
    assert locations.relative_to(location, f"{folder}other") == location


@pytest.mark.parametrize(
    ("path", "folder", "location"),
    [
        ("a/./b//c.jpg", "/x", "/x/a/b/c.jpg"),
        ("../c.jpg", "/x/y", "/x/c.jpg"),
        ("/c.jpg", "/x", "/c.jpg"),
        ("file:///c.jpg", "/x", "/c.jpg"),
        ("../c.jpg", "s3://b/x", "s3://b/c.jpg"),
        ("https://h/c.jpg?a=b", "s3://b/x", "https://h/c.jpg?a=b"),
        ("c.jpg", "memory:///x", "memory:///x/c.jpg"),
    ],
)
def test_paths_in_a_list_are_relative_to_its_folder(path: str, folder: str, location: str) -> None:
    assert locations.locate(path, folder) == location


def test_a_store_whose_errors_are_its_own_is_still_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        """Like botocore's: no OSError."""

    def fail(*_: object, **__: object) -> None:
        raise NoCredentialsError("Unable to locate\ncredentials")

    CountingFileSystem.serve({"data/x.tar": b"x"})
    for method in ("ls", "_open", "info"):
        monkeypatch.setattr(CountingFileSystem, method, fail)
        with pytest.raises(UserError, match=r"cannot read counting://data.*: Unable to locate credentials; check"):
            rows_of("counting://data/x.tar" if method == "_open" else "counting://data")
        monkeypatch.undo()


def test_a_second_search_sees_what_has_changed(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", b"")
    write(tmp_path / "list.csv", "path\na.jpg\n")
    assert rows_of(tmp_path)[0]["sidecars"] == []
    write(tmp_path / "a.txt", "now")
    write(tmp_path / "b.jpg", b"")
    rows = rows_of(tmp_path)
    assert [row["relative"] for row in rows] == ["b.jpg", "a.jpg"]
    assert [sidecar["suffix"] for sidecar in rows[1]["sidecars"]] == [".txt"]
