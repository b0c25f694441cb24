"""What is found under a path or URL, in which order, with which columns; and what a user is told when nothing can be found."""

import io
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from foundry.errors import UserError
from foundry.images import index as index_rows
from foundry.images.decoding import DecodeLimits
from foundry.images.loading import read_images
from foundry.images.sources import Source, find_sources, index_source
from foundry.storage.file_kinds import PassedOver
from tests.foundry.images.containers import CountingFileSystem, jpeg, parquet, relatives, rows_of, sa1b_json, tar_bytes, write


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with one of each kind, and names that are passed over: 3 files and 3 folders."""
    write(tmp_path / "_DSC1234.JPG", jpeg(5))
    write(tmp_path / "_DSC1234.txt", "by a camera")
    write(tmp_path / "._DSC1234.JPG", b"macOS")
    write(tmp_path / "_list.csv", "path\nb.jpg\n")
    write(tmp_path / "b.jpg", jpeg(1))
    write(tmp_path / "a.PNG", b"never opened")
    write(tmp_path / "b.txt", "an owl")
    write(tmp_path / "b.json", '{"a": 1}')
    write(tmp_path / "b.cls", "owl")
    write(tmp_path / "sub" / "deep" / "c.webp", b"")
    write(tmp_path / "sub" / "Deeper" / "c.webp", b"")
    write(tmp_path / "sub" / "aside" / "c.webp", b"")
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
        *("_DSC1234.JPG", "a.PNG", "b.jpg", "sub/Deeper/c.webp", "sub/aside/c.webp", "sub/deep/c.webp", "sub/elsewhere/d.jpg"),
        *("sub/x.tar/sa_1.jpg", "z.parquet#0", "z.parquet#1"),
    ]
    passed_over = PassedOver()
    find_sources([str(mixed)], passed_over=passed_over)
    assert passed_over == PassedOver(files=3, folders=3, suffixes=Counter({".md": 1}))
    tar = sources[2]
    assert tar.num_bytes == (mixed / "sub" / "x.tar").stat().st_size
    assert tar.modified is not None
    assert tar.modified.startswith("20")


def test_results_of_our_own_below_a_folder_of_images_are_no_images(tmp_path: Path) -> None:
    write(tmp_path / "run.jpg", jpeg(1))
    write(tmp_path / "run.json", "{}")
    write(tmp_path / "album" / "dataset.json", "{}")
    write(tmp_path / "album" / "dataset.jpg", jpeg(4))
    write(tmp_path / "album" / "a.jpg", jpeg(2))
    for record, beside in (("run.json", "commits"), ("dataset.json", "samples"), ("features.json", "plan")):
        folder = tmp_path / f"our {beside}"
        write(folder / record, "{}")
        write(folder / "README.md", "a card")
        parquet(folder / beside / "0.parquet", {"image": [jpeg(3)]})
    passed_over = PassedOver()
    assert relatives(tmp_path) == ["run.jpg", "album/a.jpg", "album/dataset.jpg"], "the record's name alone is any file's"
    find_sources([str(tmp_path)], passed_over=passed_over)
    assert passed_over.line() == "skipped 3 folders of runs, data sets or features"
    assert relatives(tmp_path / "our samples") == ["samples/0.parquet#0"], "given itself, it is searched"


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
    row = rows_of(mixed)[2]
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
    (tmp_path / "in" / "link" / "back").symlink_to(tmp_path / "in")
    assert relatives(tmp_path / "in") == ["link/a.jpg"]


def test_a_link_that_leads_nowhere_refuses_itself_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.jpg", jpeg(1))
    for link, target in (
        ("itself", "itself"),
        ("itself.jpg", "itself.jpg"),
        ("one", "other"),
        ("other", "one"),
        ("b.jpg", "gone"),
        ("itself.tar", "itself.tar"),
        ("gone.parquet", "gone"),
        ("gone.csv", "gone"),
    ):
        (tmp_path / link).symlink_to(tmp_path / target)
    rows = rows_of(tmp_path)
    for name in ("itself.tar", "gone.parquet", "gone.csv"):
        assert f"{tmp_path / name}: a broken symbolic link" in caplog.text
    with pytest.raises(UserError, match=r"cannot read .*itself.tar"):
        find_sources([str(tmp_path / "itself.tar")])
    assert [row["relative"] for row in rows] == ["a.jpg", "b.jpg", "itself.jpg"]
    read = read_images([{"key": row["relative"], **row} for row in rows], limits=DecodeLimits())
    assert [one.facts["key"] for one in read.images] == ["a.jpg"]
    assert [(row["key"], row["reason"]) for row in read.rejected] == [("b.jpg", "unreadable"), ("itself.jpg", "unreadable")]


def test_thumbnails_of_drives_and_masks_are_no_images_and_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.png", jpeg(1))
    for name in ("a.mask.png", "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/b.jpg", "mask.png", "sub/c.MASK.png"):
        write(tmp_path / name, jpeg(2))
    members = [("c.jpg", jpeg(3)), ("c.mask.png", b"1"), ("@eaDir/c.jpg", b"2")]
    write(tmp_path / "x.tar", tar_bytes(members))
    passed_over = PassedOver()
    sources = find_sources([str(tmp_path)], passed_over=passed_over)
    assert relatives(tmp_path) == ["a.png", "mask.png", "x.tar/c.jpg"]
    assert passed_over.line() == "skipped 2 folders of thumbnails or deleted files on a drive and 2 masks of images"
    in_tar = PassedOver()
    list(index_source(sources[-1], passed_over=in_tar))
    assert in_tar == PassedOver(files=1, masks=1)
    kept = [
        row["relative"] for one in find_sources([str(tmp_path)], ignore=()) for t in index_source(one) for row in t.to_pylist()
    ]
    assert kept == ["a.mask.png", "a.png", "mask.png", "sub/c.MASK.png", "x.tar/c.jpg", "x.tar/c.mask.png"]
    assert relatives(tmp_path / "a.mask.png") == ["a.mask.png"], "given itself, it is an image"


def test_files_of_other_kinds_are_counted_by_their_suffix(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.txt", "a.json", "b.jxl", "c.JXL", "d.dng", "e.tga", "readme", "f.mp4", "g.svg", "h.psd"):
        write(tmp_path / name, jpeg(1))
    members = [("a.jpg", jpeg(1)), ("b.img", jpeg(2)), ("a.json", b"{}")]
    write(tmp_path / "sub" / "x.tar", tar_bytes(members))
    passed_over = PassedOver()
    sources = find_sources([str(tmp_path)], passed_over=passed_over)
    assert passed_over.line() == (
        "skipped 8 files that no reader takes for images (.jxl 2, no suffix 1, .dng 1, .mp4 1, .psd 1, …)"
    )
    in_tar = PassedOver()
    list(index_source(sources[-1], passed_over=in_tar))
    assert in_tar.suffixes == Counter({".img": 1})
    write(tmp_path / "only" / "a.jxl", b"")
    with pytest.raises(UserError, match="no images found in .*skipped 1 file that no reader takes for images .[.]jxl 1"):
        find_sources([str(tmp_path / "only")])


def test_texts_of_no_image_are_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.txt", "s0.input.jpg", "s0.outputs.txt", "b.json", "only/texts.txt", "m.mask.png", "m.mask.json"):
        write(tmp_path / name, jpeg(1))
    write(
        tmp_path / "x.tar", tar_bytes([("s0.input.jpg", jpeg(1)), ("s0.outputs.txt", b""), ("b.txt", b""), ("b.json", b"{}")])
    )
    passed_over = PassedOver()
    sources = find_sources([str(tmp_path)], passed_over=passed_over)
    assert passed_over.line() == "skipped 1 mask of images and 2 text or JSON files with the name of no image"
    in_tar = PassedOver()
    list(index_source(sources[-1], passed_over=in_tar))
    assert in_tar == PassedOver(sidecars=2)


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


# What a user is told ----------------------------------------------------------------------------------------------------


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
        ("x.csv", b"path,n\na.jpg,1\nb.jpg,2,3\n", "line 3 of .* more fields than the header"),
        ("x.csv", b"path,n\n\xff\xfe,1\n", "write it as UTF-8|can't decode"),
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
    [
        ("x.zip", b"PK", "not a source of images; expected"),
        ("x.csv", b"a,b\n1,2\n", "no column of image bytes, nor one of paths"),
    ],
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
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    for name in ("\udcff.psd", "\udcff.jpg", "\udcff/b.jpg", "a.jpg", "a.\udcff", "é.jpg"):
        write(tmp_path / name, jpeg(1))
    passed_over = PassedOver()
    sources = find_sources([str(tmp_path)], passed_over=passed_over)
    assert [row["relative"] for one in sources for table in index_source(one) for row in table.to_pylist()] == [
        "a.jpg",
        "é.jpg",
    ]
    assert passed_over.line() == "skipped 4 names of files or folders that UTF-8 cannot hold (rename them)"
    with pytest.raises(UserError, match=r"the name of '.*\\udcff' is not UTF-8; rename it"):
        find_sources([folder])


def test_a_source_is_plain_data() -> None:
    source = Source(kind="tar", uri="/a/b.tar", root="/a")
    assert hash(source) == hash(Source(kind="tar", uri="/a/b.tar", root="/a"))


def test_each_folder_is_listed_once(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: Counter[str] = Counter()
    scandir = os.scandir

    def counted(path: str) -> Any:
        listed[str(path)] += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    (files,) = [source for source in find_sources([str(mixed)]) if source.kind == "files"]
    assert sum(table.num_rows for table in index_source(files)) > 1
    assert set(listed.values()) == {1} and str(mixed / "sub") in listed
    assert "folders" not in files.record(), "a plan keeps no listing"


def test_a_second_search_sees_what_has_changed(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", b"")
    write(tmp_path / "list.csv", "path\na.jpg\n")
    assert rows_of(tmp_path)[0]["sidecars"] == []
    write(tmp_path / "a.txt", "now")
    write(tmp_path / "b.jpg", b"")
    rows = rows_of(tmp_path)
    assert [row["relative"] for row in rows] == ["b.jpg", "a.jpg"]
    assert [sidecar["suffix"] for sidecar in rows[1]["sidecars"]] == [".txt"]


def test_a_second_search_of_a_remote_folder_does_not_trust_old_listings() -> None:
    CountingFileSystem.serve({"data/a.jpg": b"1"})
    assert relatives("counting://data") == ["a.jpg"]
    CountingFileSystem.files["data/b.jpg"] = b"2"
    assert relatives("counting://data") == ["a.jpg", "b.jpg"]
