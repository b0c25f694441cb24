"""Images in tars: found from headers alone, whatever the dialect of tar; damage is named and never silent."""

import gzip
import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry.errors import UserError
from foundry.images.tar import index_tar, walk_tar
from foundry.storage.file_kinds import PassedOver
from tests.foundry.images.containers import CountingFileSystem, jpeg, sa1b_json, tar_bytes, write

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def test_sa1b_pairs_are_found_with_prefix_nesting_and_far_apart(tmp_path: Path) -> None:
    images = [(f"./sa_00/sa_{n}.jpg", jpeg(n)) for n in range(5)]
    jsons = [(f"./sa_00/sa_{n}.json", sa1b_json(n, [n])) for n in reversed(range(5))]
    data = tar_bytes([*images, *jsons])
    write(tmp_path / "sub" / "sa.tar", data)
    rows = list(index_tar(str(tmp_path / "sub" / "sa.tar"), str(tmp_path)))
    assert [row.stem for row in rows] == [f"sa_{n}" for n in range(5)]
    assert [row.relative for row in rows] == [f"sub/sa.tar/sa_00/sa_{n}.jpg" for n in range(5)]
    for n, row in enumerate(rows):
        assert row.member == f"sa_00/sa_{n}.jpg"
        assert row.byte_offset is not None
        assert row.byte_length is not None
        assert data[row.byte_offset : row.byte_offset + row.byte_length] == jpeg(n)
        (sidecar,) = row.sidecars
        assert (sidecar.suffix, sidecar.uri) == (".json", None)
        assert sidecar.byte_offset is not None
        assert sidecar.byte_length is not None
        assert data[sidecar.byte_offset : sidecar.byte_offset + sidecar.byte_length] == sa1b_json(n, [n])


def test_webdataset_samples_pair_by_the_name_up_to_the_first_dot(tmp_path: Path) -> None:
    members = [
        ("a/1.left.jpg", b"left"),
        ("a/1.txt", b"caption"),
        ("a/1.cls", b"3"),
        ("b/1.txt", b"other"),
        ("a/2.jpg", b"two"),
    ]
    path = write(tmp_path / "x.tar", tar_bytes(members))
    rows = list(index_tar(str(path), str(tmp_path)))
    assert [row.stem for row in rows] == ["1.left", "2"]
    assert [sidecar.suffix for sidecar in rows[0].sidecars] == [".txt", ".cls"]
    assert [sidecar.byte_length for sidecar in rows[0].sidecars] == [len(b"caption"), 1]
    assert rows[1].sidecars == ()


@pytest.mark.parametrize("between", [b"", b"\0" * 512])
def test_of_tars_joined_by_cat_all_images_are_found(tmp_path: Path, between: bytes) -> None:
    first = [("0.jpg", jpeg(0)), ("0.txt", b"an owl"), ("same.jpg", b"old")]
    second = [("1.jpg", jpeg(1)), ("same.jpg", b"newer")]
    data = tar_bytes(first) + between + tar_bytes(second, tar_format=tarfile.PAX_FORMAT)
    path = write(tmp_path / "x.tar", data)
    passed_over = PassedOver()
    rows = list(index_tar(str(path), str(tmp_path), passed_over=passed_over))
    assert [row.member for row in rows] == ["0.jpg", "same.jpg", "1.jpg"]
    contents = [data[row.byte_offset or 0 :][: row.byte_length] for row in rows]
    assert contents == [jpeg(0), b"newer", jpeg(1)]
    assert list(passed_over.notes.values()) == [(1, f"same.jpg of {path}")]


def test_bytes_after_a_tar_that_are_not_tar_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", tar_bytes([("a.jpg", b"x")]) + gzip.compress(tar_bytes([("b.jpg", b"x")])) + b"z" * 512)
    with pytest.raises(UserError, match="no tar header there"):
        list(index_tar(str(path), str(tmp_path)))


def test_a_tar_that_may_be_cut_off_between_two_files_is_said(tmp_path: Path) -> None:
    whole = tar_bytes([("a.jpg", b"a"), ("b.jpg", b"b")])
    for number, (data, num_notes) in enumerate([(whole, 0), (whole[:2048], 1), (whole[:1024], 1), (whole[:2560], 0)]):
        path = write(tmp_path / f"{number}.tar", data)
        passed_over = PassedOver()
        assert list(index_tar(str(path), str(tmp_path), passed_over=passed_over))
        assert len(passed_over.notes) == num_notes


def _texts_of(tmp_path: Path, *names: str) -> tuple[dict[str, str | None], PassedOver]:
    """By image, the name of its text; each member holds its own name."""
    data = tar_bytes([(name, name.encode()) for name in names])
    path = write(tmp_path / "x.tar", data)
    passed_over = PassedOver()
    found: dict[str, str | None] = {}
    for row in index_tar(str(path), str(tmp_path), passed_over=passed_over):
        texts = [data[one.byte_offset or 0 :][: one.byte_length].decode() for one in row.sidecars if one.suffix == ".txt"]
        found[row.member or ""] = texts[0] if texts else None
    return found, passed_over


def test_a_text_under_another_extension_of_the_sample_is_the_images(tmp_path: Path) -> None:
    found, passed_over = _texts_of(tmp_path, "s0.input.jpg", "s0.outputs.txt", "s1.input.jpg", "s1.outputs.txt", "s2.jpg")
    assert found == {"s0.input.jpg": "s0.outputs.txt", "s1.input.jpg": "s1.outputs.txt", "s2.jpg": None}
    assert not passed_over.notes
    assert _texts_of(tmp_path, "s0.jpg", "s0.json", "s0.text.txt")[0] == {"s0.jpg": "s0.text.txt"}
    assert _texts_of(tmp_path, "s0.a.jpg", "s0.a.json", "s0.txt")[0] == {"s0.a.jpg": "s0.txt"}, "one for each suffix"
    assert _texts_of(tmp_path, "s0.jpg", "s0.left.jpg", "s0.txt")[0] == {"s0.jpg": "s0.txt", "s0.left.jpg": "s0.txt"}


def test_an_images_own_text_is_no_other_images(tmp_path: Path) -> None:
    found, passed_over = _texts_of(tmp_path, "2024.01.jpg", "2024.01.txt", "2024.02.jpg")
    assert found == {"2024.01.jpg": "2024.01.txt", "2024.02.jpg": None}
    assert not passed_over.notes


def test_where_several_texts_or_images_could_be_meant_it_is_said(tmp_path: Path) -> None:
    found, passed_over = _texts_of(tmp_path, "s0.b.txt", "s0.a.txt", "s0.jpg", "s1.x.jpg", "s1.y.jpg", "s1.text.txt")
    assert found == {"s0.jpg": "s0.a.txt", "s1.x.jpg": "s1.text.txt", "s1.y.jpg": "s1.text.txt"}
    path = tmp_path / "x.tar"
    assert passed_over.notes == {
        "images of tars have several .txt files in their sample, of which the first is taken": (1, f"s0: s0.a.txt of {path}"),
        "images of tars take the .txt file of a sample with several images": (2, f"s1.x: s1.text.txt of {path}"),
    }


SEVERAL = "images of tars have several .txt files in their sample, of which the first is taken"
SHARED = "images of tars take the .txt file of a sample with several images"


@pytest.mark.parametrize(
    ("names", "taken", "notes"),
    [
        (("s0.a.jpg", "s0.b.jpg", "s0.txt"), ("s0.txt", "s0.txt"), {SHARED: (2, "s0.a: s0.txt")}),
        (("s0.jpg", "s0.seg.png", "s0.txt"), ("s0.txt", "s0.txt"), {SHARED: (1, "s0.seg: s0.txt")}),
        (("s0.jpg", "s0.txt", "s0.short.txt"), ("s0.txt",), {SEVERAL: (1, "s0: s0.txt")}),
        (("s0.a.jpg", "s0.short.txt", "s0.txt"), ("s0.txt",), {SEVERAL: (1, "s0.a: s0.txt")}),
        (("s0.a.jpg", "s0.a.txt", "s0.txt"), ("s0.a.txt",), {SEVERAL: (1, "s0.a: s0.a.txt")}),
        (("s0.jpg", "s0.txt", "s0.a.jpg", "s0.a.txt"), ("s0.txt", "s0.a.txt"), {}),
        (("s0.jpg", "s0.txt", "s0.short.json"), ("s0.txt",), {}),
    ],
)
def test_a_sample_of_several_texts_or_images_is_said_whatever_their_names(
    tmp_path: Path, names: tuple[str, ...], taken: tuple[str, ...], notes: dict[str, tuple[int, str]]
) -> None:
    found, passed_over = _texts_of(tmp_path, *names)
    assert tuple(found.values()) == taken
    assert passed_over.notes == {
        finding: (count, f"{first} of {tmp_path / 'x.tar'}") for finding, (count, first) in notes.items()
    }


def test_ignored_names_and_folders_yield_nothing_and_are_counted(tmp_path: Path) -> None:
    names = ["_x.jpg", ".x.jpg", "__MACOSX/a.jpg", "a/._b.jpg", "a/.git/c.jpg", "a/_d/e.jpg", "./good_one.jpg", "a/b_.jpg"]
    path = write(tmp_path / "x.tar", tar_bytes([(name, b"1") for name in names]))
    passed_over = PassedOver()
    rows = index_tar(str(path), str(tmp_path), passed_over=passed_over)
    assert [row.member for row in rows] == ["_x.jpg", "good_one.jpg", "a/b_.jpg"]
    assert passed_over.files == 5


def test_of_two_members_with_one_path_the_later_counts_as_in_unpacking(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", tar_bytes([("a.jpg", b"old"), ("b.jpg", b"b"), ("./a.jpg", b"newer")]))
    assert [(row.member, row.byte_length) for row in index_tar(str(path), str(tmp_path))] == [("a.jpg", 5), ("b.jpg", 1)]


_NAME = st.text(alphabet="abcé日/. -", min_size=1, max_size=180).filter(lambda name: bool(name.strip("/. ")))


@settings(max_examples=60, deadline=None)
@given(sized_names=st.lists(st.tuples(_NAME, st.integers(0, 1500)), min_size=1, max_size=6))
@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_walking_agrees_with_the_tarfile_module(
    tar_format: int, sized_names: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    noise = random.Random(0)
    members = [(f"{name}.jpg", noise.randbytes(size)) for name, size in sized_names]
    data = tar_bytes(members, tar_format=tar_format)
    path = write(tmp_path_factory.mktemp("tar") / "x.tar", data)
    with tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
    found = list(walk_tar(str(path)))
    assert [(member.offset, member.length) for member in found] == [(offset, size) for _, offset, size in expected]
    clean = ["/".join(part for part in name.split("/") if part not in ("", ".")) for name, _, _ in expected]
    assert [member.path for member in found] == clean


@pytest.mark.parametrize("tar_format", FORMATS)
def test_long_names_in_each_dialect(tmp_path: Path, tar_format: int) -> None:
    name = "/".join(["folder" * 5] * 7) + "/image.jpg"
    path = write(tmp_path / "x.tar", tar_bytes([(name, b"123"), ("b.jpg", b"4")], tar_format=tar_format))
    assert [(row.member, row.byte_length) for row in index_tar(str(path), str(tmp_path))] == [(name, 3), ("b.jpg", 1)]


def test_pax_headers_hold_for_one_member_only(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}) as tar:
        for name, extra in (("short.jpg", {"path": "naïve/sa_1.jpg", "mtime": "1.5"}), ("b.jpg", {})):
            info = tarfile.TarInfo(name)
            info.size = 3
            info.pax_headers = extra
            tar.addfile(info, io.BytesIO(b"abc"))
    path = write(tmp_path / "x.tar", buffer.getvalue())
    assert [row.member for row in index_tar(str(path), str(tmp_path))] == ["naïve/sa_1.jpg", "b.jpg"]


def _with_type(kind: bytes, **fields: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type = kind
        for name, value in fields.items():
            setattr(info, name, value)
        tar.addfile(info)
    return buffer.getvalue()


def test_a_size_in_the_header_of_a_link_or_folder_is_no_payload(tmp_path: Path) -> None:
    # Old tars write the size of the target into a hard link's header; no bytes follow.
    heads = [
        _with_type(kind, name=name, size=1024)[:512] for kind, name in ((tarfile.LNKTYPE, "notes"), (tarfile.DIRTYPE, "d/"))
    ]
    path = write(tmp_path / "x.tar", b"".join(heads) + tar_bytes([("a.jpg", b"123")]))
    assert [(row.member, row.byte_length) for row in index_tar(str(path), str(tmp_path))] == [("a.jpg", 3)]


BROKEN = {
    "empty": (b"", "is empty"),
    "only zeros": (b"\0" * 10240, "holds no image"),
    "no images": (tar_bytes([("readme.md", b"x"), ("a.json", b"{}")]), "holds no image"),
    "text": (b"<html>not found</html>" * 100, "is not a tar"),
    "short text": (b"<html>", "is not a tar"),
    "gzip inside": (gzip.compress(tar_bytes([("a.jpg", b"x")])), "compressed by gzip.*gunzip"),
    "cut in a payload": (tar_bytes([("a.jpg", b"x" * 5000)])[:3000], r"truncated: a.jpg should end at byte 5,512 of 3,000"),
    "cut in a header": (tar_bytes([("a.jpg", b"x" * 512), ("b.jpg", b"x")])[:1300], "damaged or truncated at byte 1,024"),
    "damaged header": (
        tar_bytes([("a.jpg", b"x")])[:1024] + b"\x01" * 512 + b"\0" * 1024,
        "damaged or truncated at byte 1,024",
    ),
    "symbolic link": (_with_type(tarfile.SYMTYPE, linkname="b.jpg"), "a link .a.jpg.*dereference"),
    "hard link": (_with_type(tarfile.LNKTYPE, linkname="b.jpg"), "a link .a.jpg.*dereference"),
    "sparse": (_with_type(tarfile.GNUTYPE_SPARSE), "sparse"),
    "pax sparse": (_with_type(tarfile.REGTYPE, pax_headers={"GNU.sparse.major": "1"}), "sparse"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_tar_is_one_line_that_names_it_and_the_trouble(tmp_path: Path, case: str) -> None:
    data, message = BROKEN[case]
    path = write(tmp_path / "x.tar", data)
    with pytest.raises(UserError, match=message) as raised:
        list(index_tar(str(path), str(tmp_path)))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_tar_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file|No such file"):
        list(walk_tar(str(tmp_path / "x.tar")))


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 3000), value=st.integers(0, 255), cut=st.integers(0, 5000))
def test_no_damage_ends_in_anything_but_a_user_error(
    position: int, value: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(tar_bytes([("a" * 120 + ".jpg", b"x" * 700), ("b.json", b"{}")], tar_format=tarfile.PAX_FORMAT))
    data[position] = value
    path = write(tmp_path_factory.mktemp("tar") / "x.tar", bytes(data[: len(data) - cut]))
    try:
        rows = list(index_tar(str(path), str(path.parent)))
    except UserError:
        return
    for row in rows:
        assert row.byte_offset is not None
        assert row.byte_length is not None
        assert row.byte_offset + row.byte_length <= path.stat().st_size


def test_payloads_of_a_remote_tar_are_not_fetched() -> None:
    members = [
        (f"./sa_{n}{suffix}", bytes(size)) for n in range(20) for suffix, size in ((".jpg", 400_000), (".json", 100_000))
    ]
    CountingFileSystem.serve({"a.tar": tar_bytes(members)})
    rows = list(index_tar("counting://a.tar", "counting://"))
    assert [row.stem for row in rows] == [f"sa_{n}" for n in range(20)]
    assert CountingFileSystem.fetched_bytes() < 43 * 9_000
    assert len(CountingFileSystem.fetched) <= 42, "a header each, and the zeros at the end"


def test_small_members_of_a_remote_tar_come_many_to_a_request() -> None:
    CountingFileSystem.serve({"a.tar": tar_bytes((f"{n}.jpg", bytes(1500)) for n in range(1000))})
    assert len(list(walk_tar("counting://a.tar"))) == 1000
    assert len(CountingFileSystem.fetched) < 40
    assert CountingFileSystem.fetched_bytes() < 1.2 * len(CountingFileSystem.files["a.tar"])
