"""Tar index: finds the images of a tar by its headers alone, in WebDataset shards and the archives of SA-1B.

Only the 512-byte headers (and the blocks that hold long names) are read; payloads are skipped by seeking. The tarfile module
would keep an object for each member and, over a network, read ahead through the payloads.

Source: POSIX.1-2001 (ustar, pax); GNU tar manual, "Basic Tar Format" (long names, base-256 numbers).
"""

import posixpath
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

from foundry.errors import UserError
from foundry.images.index import IndexRow, SidecarRow
from foundry.storage.file_kinds import (
    IMAGE_SUFFIXES,
    SIDECAR_SUFFIXES,
    PassedOver,
    is_ignored_path,
    is_image,
    is_mask,
    split_suffix,
)
from foundry.storage.locations import describe, is_url, open_binary, read_errors, relative_to

_BLOCK = 512
_REMOTE_WINDOW = 8 << 10
_REMOTE_WINDOW_MAX = 128 << 10
_LONG_FIELD_MAX = 1 << 20

_FILE_TYPES = frozenset(b"0\x007")
_LINK_TYPES = frozenset(b"12")
_TYPES_WITHOUT_PAYLOAD = frozenset(b"123456")
_EXTENSION_TYPES = frozenset(b"xgXLK")
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarMember(NamedTuple):
    """A regular file in a tar: its path without a leading `./`, and where its payload lies."""

    path: str
    offset: int
    length: int


def index_tar(uri: str, root: str, *, passed_over: PassedOver | None = None, ignore: Sequence[str] = ()) -> Iterator[IndexRow]:
    """The images of a tar in the order of the archive, each with the files that belong to it.

    Those are, for each suffix, the file that shares its path without the suffix, else one of its WebDataset sample: the files
    with the same name up to the first dot, so that `s0.input.jpg` has the text `s0.outputs.txt`. Images and their sidecars need
    not be adjacent, so the headers are read to the end before the first row. Of two members with one path the later counts, as
    in unpacking. What file_kinds.is_ignored_path names is left out, and so are images whose names fit a pattern of `ignore`;
    `passed_over` counts both and members of other kinds by suffix, and notes samples that could be meant otherwise.
    Raises UserError if the tar is empty, compressed, truncated or damaged, holds sparse files or links, or holds no image.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    images: dict[str, TarMember] = {}
    sidecars: dict[str, dict[str, SidecarRow]] = {}
    for member in walk_tar(uri, passed_over=passed_over):
        path = member.path
        stem, suffix = split_suffix(path)
        if is_ignored_path(path):
            passed_over.files += suffix in IMAGE_SUFFIXES
        elif suffix in IMAGE_SUFFIXES and is_mask(path[path.rfind("/") + 1 :], ignore):
            passed_over.masks += 1
        elif suffix in IMAGE_SUFFIXES:
            if path in images:
                passed_over.note(
                    "images in tars have the path of a later one, which counts, as in unpacking", f"{path} of {uri}"
                )
            images[path] = member
        elif suffix in SIDECAR_SUFFIXES:
            sidecars.setdefault(stem, {})[suffix] = SidecarRow(suffix, None, member.offset, member.length)
        else:
            passed_over.suffixes[suffix] += 1
    if not images:
        raise UserError(f"{uri} holds no image; give a tar with image files, as WebDataset and SA-1B write them")
    container = relative_to(uri, root)
    samples = _Samples(images, sidecars, uri=uri, passed_over=passed_over)
    passed_over.sidecars += samples.num_alone()
    for member in images.values():
        stem = split_suffix(member.path)[0]
        yield IndexRow(
            stem[stem.rfind("/") + 1 :],
            f"{container}/{member.path}",
            uri,
            member.path,
            member.offset,
            member.length,
            None,
            samples.sidecars(stem),
        )


class _Samples:
    """The sidecars of a tar's images, by path without suffix and by WebDataset's key."""

    def __init__(
        self,
        images: Iterable[str],
        sidecars: Mapping[str, Mapping[str, SidecarRow]],
        *,
        uri: str,
        passed_over: PassedOver,
    ) -> None:
        self._sidecars = sidecars
        self._uri = uri
        self._passed_over = passed_over
        stems = {split_suffix(path)[0] for path in images}
        dotted = {key for stem in stems if (key := _sample_key(stem)) != stem}
        # By key, what can belong to an image of another stem: no image's own, or named by the key alone. Most tars have none.
        self._loose: dict[str, list[str]] = {}
        for stem in sidecars:
            if stem not in stems or stem in dotted:
                self._loose.setdefault(_sample_key(stem), []).append(stem)
        self._num_images = Counter(key for stem in stems if (key := _sample_key(stem)) in self._loose)
        self._owned = stems & dotted  # those of the loose ones that are also an image's own

    def num_alone(self) -> int:
        """Number of sidecars that belong to no image."""
        alone = [stem for key, stems in self._loose.items() if not self._num_images[key] for stem in stems]
        return sum(len(self._sidecars[stem]) for stem in alone)

    def sidecars(self, stem: str) -> tuple[SidecarRow, ...]:
        """The sidecars of the image with this path without suffix, one for each suffix."""
        own = self._sidecars.get(stem, {})
        key = _sample_key(stem)
        if key not in self._loose:
            return tuple(own[suffix] for suffix in SIDECAR_SUFFIXES if suffix in own)
        # The one named by the key alone comes first.
        loose = sorted(self._loose[key], key=lambda other: (other != key, other))
        return tuple(row for suffix in SIDECAR_SUFFIXES if (row := self._taken(suffix, stem, loose)))

    def _taken(self, suffix: str, stem: str, loose: list[str]) -> SidecarRow | None:
        """The image's own file with this suffix, else the first of its sample.

        Says so where the sample has others that no image has for its own, and where an image takes what others may take too.
        """
        is_own = suffix in self._sidecars.get(stem, {})
        found = [other for other in loose if other != stem and suffix in self._sidecars[other]]
        if is_own:
            found = [stem, *(other for other in found if other not in self._owned)]
        if not found:
            return None
        taken = f"{found[0]}{suffix}"
        if len(found) > 1:
            finding = f"images of tars have several {suffix} files in their sample, of which the first is taken"
            self._passed_over.note(finding, f"{stem}: {taken} of {self._uri}")
        if not is_own and self._num_images[_sample_key(stem)] > 1:
            finding = f"images of tars take the {suffix} file of a sample with several images"
            self._passed_over.note(finding, f"{stem}: {taken} of {self._uri}")
        return self._sidecars[found[0]][suffix]


def walk_tar(uri: str, *, passed_over: PassedOver | None = None) -> Iterator[TarMember]:
    """All regular files of a tar, in order, reading headers only; `passed_over` gets a note where the end mark is missing.

    Raises UserError as `index_tar` says, save for images.
    """
    num_bytes = describe(uri).num_bytes
    if num_bytes == 0:
        raise UserError(f"{uri} is empty (0 bytes), expected a tar; fetch it again or remove it")
    with read_errors(uri, "check its permissions, or fetch it again"), open_binary(uri) as file:
        yield from walk_members(file, uri, num_bytes=num_bytes, is_remote=is_url(uri), passed_over=passed_over)


def walk_members(
    file: BinaryIO,
    uri: str,
    *,
    num_bytes: int | None = None,
    is_remote: bool = False,
    passed_over: PassedOver | None = None,
) -> Iterator[TarMember]:
    """The same of an open tar that can seek, forward at least. Without `num_bytes` it misses that a payload is cut off."""
    yield from _walk(_Window(file, is_remote=is_remote), uri, num_bytes, PassedOver() if passed_over is None else passed_over)


class _Window:
    """Random reads through one buffer.

    Remote headers come one request at a time, so a window is fetched for each; it grows while members are so small that the
    next header lies close behind it (then payloads are cheaper to read through than to skip).
    """

    def __init__(self, file: BinaryIO, *, is_remote: bool) -> None:
        self._file = file
        self._is_remote = is_remote
        self._size = _REMOTE_WINDOW if is_remote else _BLOCK
        self._start = 0
        self._data = b""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from offset on; fewer than length at the end of the file."""
        end = self._start + len(self._data)
        if not self._start <= offset <= offset + length <= end:
            if self._is_remote and self._data:
                is_close = 0 <= offset - end < self._size
                self._size = min(2 * self._size, _REMOTE_WINDOW_MAX) if is_close else _REMOTE_WINDOW
            self._file.seek(offset)
            self._data = self._file.read(max(length, self._size))
            self._start = offset
        return self._data[offset - self._start : offset - self._start + length]


class _Pending:
    """Path and size that extension headers give to the next member."""

    def __init__(self) -> None:
        self.path: str | None = None
        self.size: int | None = None


def _walk(window: _Window, uri: str, num_bytes: int | None, passed_over: PassedOver) -> Iterator[TarMember]:
    offset = 0
    pending = _Pending()
    is_ended = False
    while header := window.read(offset, _BLOCK):
        if not header.strip(b"\0"):
            # The end of an archive; where tars were joined by `cat`, the next one follows.
            offset += _BLOCK
            pending, is_ended = _Pending(), True
            continue
        is_ended = False
        _check_header(header, uri, offset)
        kind = header[156]
        is_extension = kind in _EXTENSION_TYPES
        length = _number(header[124:136]) if pending.size is None or is_extension else pending.size
        payload = offset + _BLOCK
        end = payload if kind in _TYPES_WITHOUT_PAYLOAD else payload + length
        offset = payload + -(-(end - payload) // _BLOCK) * _BLOCK
        path = _clean(_path(header) if pending.path is None else pending.path)
        if num_bytes is not None and end > num_bytes:
            raise UserError(f"{uri} is truncated: {path} should end at byte {end:,} of {num_bytes:,}; fetch it again")
        if is_extension:
            _extend(pending, kind, window.read(payload, length) if length <= _LONG_FIELD_MAX else b"", uri)
            continue
        pending = _Pending()
        _refuse_indirect(kind, path, uri)
        if kind in _FILE_TYPES and not path.endswith("/"):
            yield TarMember(path, payload, length)
    if not is_ended:
        passed_over.note("tars have no end mark, so they may be cut off between two files", uri)


def _refuse_indirect(kind: int, path: str, uri: str) -> None:
    """Raises UserError for an image whose bytes are not in one piece of the tar, and for any sparse file."""
    if kind in b"S" or (kind in _LINK_TYPES and is_image(path)):
        what = "a sparse file" if kind in b"S" else "a link"
        raise UserError(
            f"{uri} holds {what} ({path}), which is stored without its bytes; pack it with `tar --hard-dereference -hcf`"
        )


def _check_header(header: bytes, uri: str, offset: int) -> None:
    """Raises UserError unless the checksum holds: the sum of all bytes, those of the checksum itself taken as spaces."""
    if len(header) == _BLOCK:
        without_own = header[:148] + b" " * 8 + header[156:]
        stored = _checksum(header)
        if stored == sum(without_own) or stored == sum(struct.unpack("512b", without_own)):  # some old tars summed signed bytes
            return
    if offset == 0:
        raise UserError(f"{uri} is not a tar; {_remedy(header)}")
    raise UserError(f"{uri} is damaged or truncated at byte {offset:,}: no tar header there; fetch it again")


def _checksum(header: bytes) -> int:
    """The stored one; -1 if that is not a number."""
    try:
        return _number(header[148:156])
    except ValueError:
        return -1


def _remedy(header: bytes) -> str:
    """Advice about a file that does not begin like a tar."""
    for magic, name in _COMPRESSIONS.items():
        if header.startswith(magic):
            return f"it is compressed by {name}, and byte ranges cannot be read from it: decompress it first (gunzip, unxz, …)"
    return "fetch it again or remove it"


def _number(field: bytes) -> int:
    """An octal number in ASCII, or GNU's base-256 where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _path(header: bytes) -> str:
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        return f"{_text(header[345:500])}/{name}"
    return name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _extend(pending: _Pending, kind: int, payload: bytes, uri: str) -> None:
    """Takes over path and size from a pax header (x, X) or a GNU long name (L); g and K say nothing that matters here."""
    if kind == ord("L"):
        pending.path = _text(payload)
    if kind not in b"xX":
        return
    for name, value in _pax_records(payload):
        if name.startswith(b"GNU.sparse"):
            raise UserError(f"{uri} holds sparse files, which are not stored in one piece; pack it again without --sparse")
        if name == b"path":
            pending.path = value.decode("utf-8", "replace")
        elif name == b"size":
            pending.size = int(value)


def _pax_records(payload: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Records of the form `<length> <name>=<value>\\n`."""
    position = 0
    while (space := payload.find(b" ", position)) > 0 and payload[position:space].isdigit():
        end = position + int(payload[position:space])
        name, _, value = payload[space + 1 : end - 1].partition(b"=")
        yield name, value
        position = max(end, space + 1)


def _clean(path: str) -> str:
    """A path without `.` components and doubled slashes; the trailing slash of a folder stays."""
    path = path.removeprefix("./")
    if "//" not in path and "./" not in path and not path.startswith("/"):
        return path
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join(parts) + ("/" if path.endswith("/") else "")


def _sample_key(path: str) -> str:
    """WebDataset's key: the folder and the name up to its first dot."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, name.split(".", 1)[0])
