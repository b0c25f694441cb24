"""Lists of images: paths, carried columns and their types; an image that a list describes is found once."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits
from foundry.images.index import IMAGES
from foundry.images.lists import read_rows
from foundry.images.loading import read_images
from foundry.images.reader import content_hash
from foundry.images.sources import find_sources, index_sources
from foundry.storage.schema import versioned
from tests.foundry.images.containers import carried_by, jpeg, parquet, relatives, rows_of, tar_bytes, write


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
    assert carried_by(source) == expected


def test_nested_columns_are_left_out_and_mixed_ones_are_text(tmp_path: Path) -> None:
    rows = [
        {"file": "1.jpg", "boxes": [1], "n": 1, "big": 2**70},
        {"file": "2.jpg", "n": "two", "m": 1},
        {"file": "3.jpg", "m": 0.5},
    ]
    path = _write_list(tmp_path / "x.jsonl", rows)
    assert carried_by(find_sources([str(path)])[0]) == {"n": "VARCHAR", "big": "VARCHAR", "m": "DOUBLE"}
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


def test_a_list_given_next_to_its_folder_counts_as_well(tmp_path: Path) -> None:
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
    write(tmp_path / "in" / "empty.csv", "")
    write(tmp_path / "in" / "latin.csv", b"path\n\xff.jpg\n")
    write(tmp_path / "in" / "x.tar.gz", b"")
    parquet(tmp_path / "in" / "none.parquet", {"image": pa.array([], pa.binary())})
    caplog.clear()
    assert relatives(tmp_path) == ["1.jpg"]
    (record,) = caplog.records
    named = dict(part.rsplit("/", 1)[-1].split(": ", 1) for part in record.getMessage().split("read: ", 1)[1].split("; "))
    no_column = "no column of images or of paths to images"
    assert named.pop("latin.csv").startswith("'utf-8' codec can't decode")
    assert named.pop("empty.csv").startswith("no rows")
    assert record.getMessage().startswith("skipped: 7 files that hold no images to read: ")
    assert named == {
        **dict.fromkeys(("log.csv", "n.parquet", "images.parquet"), no_column),
        "x.tar.gz": "a compressed tar, gunzip it first",
        "none.parquet": "no rows",
    }


def test_a_row_without_a_path_is_a_row_of_its_own_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "1.jpg", jpeg(1))
    write(tmp_path / "a.csv", "path,text,n\n,nothing,1\n1.jpg,an owl,2\n")
    write(tmp_path / "b.jsonl", '{"path": null, "n": 3}\n{"path": "2.jpg"}\n')
    rows = rows_of(tmp_path)
    assert [row["relative"] for row in rows] == ["a.csv#1", "1.jpg", "b.jsonl#1", "2.jpg"]
    assert (rows[0]["stem"], rows[0]["alt_text"]) == ("a-1", "nothing")
    read = read_images([{"key": row["relative"], **row} for row in rows], limits=DecodeLimits())
    assert [image.facts["key"] for image in read.images] == ["1.jpg"]
    assert [(row["key"], row["reason"]) for row in read.rejected[:2]] == [
        ("a.csv#1", "unreadable"),
        ("b.jsonl#1", "unreadable"),
    ]
    assert f"row 1 of {tmp_path / 'a.csv'} names no image" in read.rejected[0]["message"]


LONE_QUOTES = [
    ("im0.jpg", "plain"),
    ("im1.jpg", '"quoted start only'),
    ("im2.jpg", "third"),
    ("im3.jpg", '5" pipe'),
    ("im4.jpg", '"closed here, not there"'),
    ("im5.jpg", '"again'),
    ("im6.jpg", 'ends in"'),
    ("im7.jpg", '"abc"def'),
    ("im8.jpg", "last"),
]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_lone_quote_in_a_tsv_swallows_no_row(tmp_path: Path, end: str, *, reverse: bool) -> None:
    lines = [("file_name", "caption"), *LONE_QUOTES]
    text = end.join("\t".join(reversed(line) if reverse else line) for line in lines)
    path = write(tmp_path / "x.tsv", text)
    found = [(row["stem"] + ".jpg", row["alt_text"]) for row in rows_of(path)]
    assert found == [(name, caption.strip('"') if name == "im4.jpg" else caption) for name, caption in LONE_QUOTES]


def test_a_lone_quote_in_a_csv_is_text_or_an_error_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 'path,caption,n\n1.jpg,"alone,1\n2.jpg,"both, here",2\n3.jpg,end",3\n')
    assert [row["alt_text"] for row in rows_of(path)] == ['"alone', "both, here", 'end"']
    path = write(tmp_path / "y.csv", 'path,caption\n1.jpg,an owl\n2.jpg,"alone, and a comma\n3.jpg,a dog\n')
    with pytest.raises(UserError, match=r"line 3 of .*y.csv cannot be read .*expected 2 fields, found 3; write \"\""):
        rows_of(path)


def test_rows_of_several_lines_are_whole_and_said(tmp_path: Path) -> None:
    text = 'caption,path\n"one\ntwo, ""three""\n",1.jpg\n"four\nfive",2.jpg\nsix,3.jpg\n'
    path = write(tmp_path / "x.csv", text)
    (source,) = index_sources(find_sources([str(path)]))
    rows = [row for table in source.tables for row in table.to_pylist()]
    assert [row["alt_text"] for row in rows] == ['one\ntwo, "three"\n', "four\nfive", "six"]
    ((count, where),) = source.passed_over.notes.values()
    assert (count, where) == (2, f"the row that ends in line 4 of {path}")


@settings(max_examples=200, deadline=None)
@given(
    captions=st.lists(st.text(alphabet='ab" ,é', max_size=12), min_size=1, max_size=8),
    is_quoted=st.booleans(),
)
def test_a_tsv_has_as_many_rows_as_lines(
    captions: list[str], is_quoted: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = io.StringIO(newline="")
    if is_quoted:
        csv.writer(out, delimiter="\t").writerows(
            [("path", "n", "caption"), *((f"{n}.jpg", n, c) for n, c in enumerate(captions))]
        )
    else:
        out.write(
            "".join(f"{line}\n" for line in ["path\tn\tcaption", *(f"{n}.jpg\t{n}\t{c}" for n, c in enumerate(captions))])
        )
    path = write(tmp_path_factory.mktemp("tsv") / "x.tsv", out.getvalue())
    rows = list(read_rows(str(path)))
    assert [row["path"] for row in rows] == [f"{n}.jpg" for n in range(len(captions))]
    if is_quoted:
        assert [row["caption"] for row in rows] == captions


def test_names_of_columns_that_are_there_twice_or_empty_lose_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", ",n,n,,path\n0,1,2,3,a.jpg\n")
    (row,) = rows_of(path)
    assert json.loads(row["metadata"]) == {"": "0", "n": "1", "n_2": "2", "_2": "3"}


def test_types_are_those_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundry.images.index.MAX_ROWS", 10)
    rows = [
        {"path": f"{n}.jpg", "id": n if n < 25 else f"x{n}", "late": 0.5} if n > 24 else {"path": f"{n}.jpg", "id": n}
        for n in range(30)
    ]
    path = _write_list(tmp_path / "x.jsonl", rows)
    assert carried_by(find_sources([str(path)])[0]) == {"id": "VARCHAR", "late": "DOUBLE"}


def test_a_lone_surrogate_leaves_out_its_value_alone(tmp_path: Path) -> None:
    lines = [
        '{"path": "a.jpg", "text": "\\ud800", "n": 1}',
        '{"path": "b.jpg", "text": "fine", "\\udfff": 2}',
        '{"path": "\\udc80.jpg", "text": "c"}',
    ]
    path = write(tmp_path / "x.jsonl", "\n".join(lines))
    (source,) = index_sources(find_sources([str(path)]))
    rows = [row for table in source.tables for row in table.to_pylist()]
    assert [(row["stem"], row["alt_text"]) for row in rows] == [("a", None), ("b", "fine"), ("x-3", "c")]
    assert json.loads(rows[0]["metadata"]) == {"n": 1, "left_out": "text holds text that is not valid Unicode"}
    assert json.loads(rows[1]["metadata"]) == {"left_out": "\\udfff holds text that is not valid Unicode"}
    ((count, where),) = source.passed_over.notes.values()
    assert (count, where) == (2, f"row 1 of {path}: text holds text that is not valid Unicode")


def test_images_in_base64_and_data_urls_are_decoded_and_odd_paths_reject_their_row(tmp_path: Path) -> None:
    base64_of = base64.b64encode(jpeg(1)).decode()
    wrapped = "\n".join(base64_of[n : n + 76] for n in range(0, len(base64_of), 76))
    paths = [
        *(
            base64_of,
            f"data:image/jpeg;base64,{wrapped}",
            base64_of.rstrip("="),
            "data:,no%20image",
            "data:image/png;base64,????",
        ),
        *(
            "x" * 5000 + ".jpg",
            "/" + "y/" * 5000 + "a.jpg",
            "nul\0.jpg",
            "a.jpg/b.jpg",
            "nonsense://a.jpg",
            "http://[bad/a.jpg",
        ),
        "good.jpg",
    ]
    write(tmp_path / "good.jpg", jpeg(2))
    write(tmp_path / "a.jpg", jpeg(2))
    write(tmp_path / "x.jsonl", "".join(json.dumps({"image": value, "n": n}) + "\n" for n, value in enumerate(paths)))
    rows = [row for row in rows_of(tmp_path) if row["relative"] != "a.jpg"]
    assert [row["stem"] for row in rows[:3]] == ["x-1", "x-2", "x-3"] and rows[0]["relative"] == "x.jsonl#1"
    read = read_images([{"key": row["relative"], **row} for row in rows], limits=DecodeLimits())
    assert [one.facts["key"] for one in read.images] == ["x.jsonl#1", "x.jsonl#2", "x.jsonl#3", "good.jpg"]
    assert {one.facts["content_hash"] for one in read.images[:3]} == {content_hash(jpeg(1))}
    assert [row["reason"] for row in read.rejected] == ["not_an_image", *["unreadable"] * 7]
    assert max(len(row["message"]) for row in read.rejected) < 600


def test_base64_that_is_longer_than_csv_takes_by_default(tmp_path: Path) -> None:
    content = base64.b64encode(jpeg(1, size=(500, 500)))
    assert len(content) > 131_072
    path = write(tmp_path / "x.csv", b'image,text\n"' + content + b'",an owl\n')
    (row,) = rows_of(path)
    assert row["uri"] == f"data:;base64,{content.decode()}" and row["alt_text"] == "an owl"


def test_why_a_list_is_passed_over_names_the_file_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "1.jpg", b"")
    write(tmp_path / "a.jsonl", b"nonsense; and more\n")
    write(tmp_path / "b.csv", b"path\n1.jpg,2\n")
    write(tmp_path / "c.csv", b"\xff; \xfe\n")
    assert relatives(tmp_path) == ["1.jpg"]
    (record,) = caplog.records
    assert record.getMessage().count(str(tmp_path)) == 3
    for reason in (
        "a.jsonl: line 1 is not a JSON object; ",
        "b.csv: line 2 has more fields than the header; ",
        "c.csv: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    ):
        assert reason in record.getMessage()


@pytest.mark.parametrize("holder", ["00000.tar", "00000"])
def test_what_img2dataset_fetched_is_not_fetched_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, holder: str) -> None:
    columns = {"key": ["0", "1"], "url": ["http://127.0.0.1:9/0.jpg", "http://127.0.0.1:9/1.jpg"], "caption": ["a", "b"]}
    table = parquet(tmp_path / "00000.parquet", columns)
    write(tmp_path / "00000_stats.json", '{"count": 2}')
    if holder == "00000":
        write(tmp_path / holder / "0.jpg", jpeg(1))
    else:
        write(tmp_path / holder, tar_bytes([("0.jpg", jpeg(1)), ("0.txt", b"a")]))
    assert relatives(tmp_path) == [f"{holder}/0.jpg"]
    assert f"{table}: the web addresses of images that are in {tmp_path / holder}" in caplog.text
    with pytest.raises(UserError, match=f"are in {tmp_path / holder} already: give {tmp_path / holder} instead"):
        find_sources([str(table)])
    alone = parquet(tmp_path / "other" / "00000.parquet", columns)
    assert len(rows_of(alone)) == 2, "a list of addresses alone is fetched"


def test_a_list_of_paths_that_also_has_addresses_keeps_its_texts(tmp_path: Path) -> None:
    write(tmp_path / "shots" / "0.jpg", jpeg(1))
    columns = {"file_name": ["shots/0.jpg"], "url": ["http://127.0.0.1:9/0.jpg"], "text": ["an owl"]}
    table = parquet(tmp_path / "shots.parquet", columns)
    for path in (tmp_path, table):
        assert [(row["relative"], row["alt_text"]) for row in rows_of(path)] == [("shots/0.jpg", "an owl")]
