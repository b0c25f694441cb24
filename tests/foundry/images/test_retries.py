"""What a store does never becomes an image's fault: outages are waited for, then end the work; only true findings reject."""

import errno
import pickle
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import fsspec
import pytest

from foundry.errors import StoreError
from foundry.images import decoding, retries
from foundry.images import loading as images
from foundry.images.decoding import DecodeLimits
from foundry.images.loading import ReadImages, read_images
from foundry.units import workers as unit_workers
from tests.foundry.images.containers import CountingFileSystem, jpeg, rows_of, tar_bytes, write


class ThrottledError(Exception):
    """Like those of botocore or aiohttp: of no common base."""


class FlakyFileSystem(CountingFileSystem):
    """`flaky://name` raises the errors that are set for a name, one at each opening, before it serves the bytes."""

    protocol = "flaky"
    errors: ClassVar[dict[str, list[Exception]]] = {}

    @classmethod
    def serve_after(cls, files: Mapping[str, bytes], errors: Mapping[str, list[Exception]]) -> None:
        CountingFileSystem.serve(files)
        fsspec.register_implementation("flaky", cls, clobber=True)
        cls.errors = {name: list(raised) for name, raised in errors.items()}

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if self.errors.get(path):
            raise self.errors[path].pop(0)
        return super()._open(path, mode, **options)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which is waited for."""
    made: list[float] = []
    monkeypatch.setattr("time.sleep", made.append)
    return made


def flaky_row(name: str) -> dict[str, Any]:
    return {"key": name, "uri": f"flaky://{name}"}


def read(rows: list[dict[str, Any]]) -> ReadImages:
    return read_images([{"key": row.get("relative"), **row} for row in rows], limits=DecodeLimits())


PASSING = [
    TimeoutError("slow"),
    ConnectionResetError("gone"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.EBUSY, "SlowDown"),
    ThrottledError("503"),
]


@pytest.mark.parametrize("error", PASSING, ids=[type(error).__name__ + str(error)[:10] for error in PASSING])
def test_a_failure_that_passes_is_waited_for_with_growing_pauses(error: Exception, pauses: list[float]) -> None:
    FlakyFileSystem.serve_after({"a.jpg": jpeg(1)}, {"a.jpg": [error, error]})
    assert len(read([flaky_row("a.jpg")]).images) == 1
    assert pauses == list(retries.RETRY_AFTER_S[:2]) and pauses[0] < pauses[1]


@pytest.mark.parametrize("error", PASSING, ids=[type(error).__name__ + str(error)[:10] for error in PASSING])
def test_a_failure_that_stays_ends_the_work_and_rejects_nothing(error: Exception) -> None:
    FlakyFileSystem.serve_after({"a.jpg": jpeg(1), "b.jpg": jpeg(2)}, {"b.jpg": [error] * 9})
    with pytest.raises(StoreError, match="b.jpg.*the same command resumes once the store answers") as raised:
        read([flaky_row("a.jpg"), flaky_row("b.jpg")])
    assert "\n" not in str(raised.value)
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.is_alone) == (str(raised.value), False)


@pytest.mark.parametrize("bug", [AssertionError("x"), TypeError("x"), KeyError("x"), MemoryError(), AttributeError("x")])
def test_a_bug_or_a_lack_of_memory_is_raised_as_it_is(bug: Exception, pauses: list[float]) -> None:
    FlakyFileSystem.serve_after({"a.jpg": jpeg(1)}, {"a.jpg": [bug] * 9})
    with pytest.raises(type(bug)):
        read([flaky_row("a.jpg")])
    assert pauses == []


def test_too_little_memory_while_decoding_is_not_the_images_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_image: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "_to_rgb", no_memory)
    with pytest.raises(MemoryError):
        read(rows_of(write(tmp_path / "a.jpg", jpeg(1))))


def test_one_refused_image_is_rejected_and_a_store_that_refuses_all_ends_the_work() -> None:
    files = {f"{n:03d}.jpg": jpeg(n % 7) for n in range(80)}
    refused = PermissionError(errno.EACCES, "Forbidden")
    FlakyFileSystem.serve_after(files, {"001.jpg": [refused], "005.jpg": [refused]})
    found = read([flaky_row(name) for name in files])
    assert [row["key"] for row in found.rejected] == ["001.jpg", "005.jpg"] and len(found.images) == 78
    assert {row["reason"] for row in found.rejected} == {"unreadable"}
    assert found.rejected[0]["message"].endswith("PermissionError: [Errno 13] Forbidden"), "no advice to a run"
    FlakyFileSystem.serve_after(files, {name: [refused] for name in list(files)[10:]})
    with pytest.raises(StoreError, match="check the permissions"):
        read([flaky_row(name) for name in files])
    FlakyFileSystem.serve_after(files, {name: [refused] for name in files})
    with pytest.raises(StoreError):
        read([flaky_row(name) for name in list(files)[:5]])


def test_a_container_that_has_gone_ends_the_work_and_a_file_that_has_gone_is_rejected(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", tar_bytes([("a.jpg", jpeg(1))]))
    write(tmp_path / "b.jpg", jpeg(2))
    rows = rows_of(tmp_path)
    (tmp_path / "b.jpg").unlink()
    assert [row["reason"] for row in read(rows).rejected] == ["unreadable"]
    (tmp_path / "x.tar").unlink()
    with pytest.raises(StoreError, match="x.tar existed when its images were planned.*restore it"):
        read(rows)


def test_a_tar_whose_handle_went_stale_is_opened_again() -> None:
    FlakyFileSystem.serve_after({"x.tar": tar_bytes([("a.jpg", jpeg(1)), ("b.jpg", jpeg(2))])}, {})
    rows = rows_of("flaky://x.tar")
    FlakyFileSystem.errors = {"x.tar": [OSError(errno.ESTALE, "Stale file handle")]}
    assert len(read(rows).images) == 2


def test_every_errno_of_this_system_is_on_one_side() -> None:
    named = [name for names in retries.ERRNOS.values() for name in names.split()]
    assert len(named) == len(set(named))
    assert set(errno.errorcode.values()) <= set(named)


# What each side comes to; the names are those of open(2), read(2), stat(2) and the network below them.
SIDES = {
    "image": ("ENAMETOOLONG", "ELOOP", "ENOENT", "ENOTDIR", "EISDIR", "EINVAL", "EILSEQ", "EOVERFLOW", "ENXIO"),
    "refusal": ("EACCES", "EPERM", "ENOKEY"),
    "store": ("EIO", "ESTALE", "ETIMEDOUT", "ECONNRESET", "EHOSTUNREACH", "ENOTCONN", "EMFILE", "ENFILE", "EBUSY", "ENOMEM"),
}


@pytest.mark.parametrize(("side", "name"), [(side, name) for side, names in SIDES.items() for name in names])
def test_each_errno_rejects_its_image_or_ends_the_work(side: str, name: str, pauses: list[float]) -> None:
    error = OSError(getattr(errno, name), name)
    FlakyFileSystem.serve_after({"a.jpg": jpeg(1), "b.jpg": jpeg(2)}, {"a.jpg": [error] * 9})
    if side == "store":
        with pytest.raises(StoreError, match=name):
            read([flaky_row("a.jpg"), flaky_row("b.jpg")])
    else:
        found = read([flaky_row("a.jpg"), flaky_row("b.jpg")])
        assert [(row["key"], row["reason"]) for row in found.rejected] == [("a.jpg", "unreadable")]
        assert len(found.images) == 1
    assert (pauses == []) == (side != "store")


class BotoError(Exception):
    """Like botocore's: the status is in a dict."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


STATUSES = {
    "image": (300, 302, 305, 400, 404, 405, 406, 409, 410, 411, 414, 416, 418, 422, 431, 444),
    "refusal": (401, 402, 403, 451),
    "store": (407, 408, 421, 423, 425, 429, 499, 500, 501, 502, 503, 504, 507, 511, 520, 522, 599),
}


@pytest.mark.parametrize(("side", "status"), [(side, status) for side, found in STATUSES.items() for status in found])
@pytest.mark.parametrize("is_cause", [False, True])
def test_each_status_of_http_is_on_one_side(side: str, status: int, *, is_cause: bool) -> None:
    error: Exception = BotoError(status)
    if is_cause:  # as s3fs raises what it has no class for
        error = OSError(errno.EIO, "InternalError")
        error.__cause__ = BotoError(status)
    FlakyFileSystem.serve_after({"a.jpg": jpeg(1), "b.jpg": jpeg(2)}, {"a.jpg": [error] * 9})
    rows = [flaky_row("a.jpg"), flaky_row("b.jpg")]
    if side == "store":
        with pytest.raises(StoreError):
            read(rows)
    else:
        assert [row["reason"] for row in read(rows).rejected] == ["unreadable"]
    if side == "refusal":
        FlakyFileSystem.serve_after({"a.jpg": b"", "b.jpg": b""}, {name: [error] * 9 for name in ("a.jpg", "b.jpg")})
        with pytest.raises(StoreError, match="check the permissions"):
            read(rows)


class _Web(BaseHTTPRequestHandler):
    """Serves /good…, and answers /503…, /404… and the like with that status."""

    def do_GET(self) -> None:
        status = 200 if self.path.startswith("/good") else int(self.path[1:4])
        body = jpeg(1) if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - a name of the library

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web() -> Any:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_dead_web_addresses_are_rejected_and_a_dead_web_ends_the_work(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "OUTAGE_AFTER", 4)
    monkeypatch.setattr(retries, "WEB_RETRY_AFTER_S", (0.1,))
    names = ["good-1.jpg", "404.jpg", "503.jpg", "403.jpg", "good-2.jpg", "500.jpg"]
    rows = [{"key": name, "uri": f"{web}/{name}"} for name in names]
    rows.append({"key": "nobody.jpg", "uri": "http://127.0.0.1:9/nobody.jpg"})
    found = read(rows)
    assert [one.facts["key"] for one in found.images] == ["good-1.jpg", "good-2.jpg"]
    assert [row["key"] for row in found.rejected] == ["404.jpg", "503.jpg", "403.jpg", "500.jpg", "nobody.jpg"]
    assert not [row["message"] for row in found.rejected if "resumes" in row["message"] or ";" in row["message"]]
    with pytest.raises(StoreError, match="503.*the same command resumes once the store answers"):
        read([{"key": str(n), "uri": f"{web}/503-{n}.jpg"} for n in range(9)])


def test_a_lack_of_memory_is_told_apart_from_what_a_job_raises() -> None:
    with pytest.raises(MemoryError), unit_workers._limited(60):
        raise MemoryError
    with pytest.raises(unit_workers.JobFailed, match="KeyError"), unit_workers._limited(60):
        raise KeyError("x")
