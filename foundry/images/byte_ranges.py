"""Ranges of one file, neighbours fetched together when the file is remote."""

from collections.abc import Iterable

from foundry.storage.locations import is_url, open_binary

_MAX_GAP_BYTES = 64 << 10
_MAX_SPAN_BYTES = 16 << 20
_MAX_BUFFERS = 2
"""Two, since a tar may hold all images first and their JSONs after."""


class RangeFile:
    """An open file, read by ranges. Of a remote one, expected ranges with small gaps between them are fetched as one span."""

    def __init__(self, uri: str) -> None:
        """Opens the file; raises what the store raises."""
        self._file = open_binary(uri)
        self._is_remote = is_url(uri)
        self._spans: list[tuple[int, int]] = []
        self._buffers: list[tuple[int, bytes]] = []

    def close(self) -> None:
        """Closes the file and drops what was fetched."""
        self._buffers.clear()
        self._file.close()

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Plans spans over (offset, length) pairs that will be read; at most 16 MiB each."""
        self._spans = coalesce(ranges) if self._is_remote else []

    def read(self, offset: int, length: int) -> bytes:
        """Exactly the range. Raises EOFError if it ends behind the end of the file."""
        data = self._buffered(offset, length) if self._is_remote else self._fetch(offset, length)
        if len(data) != length:
            raise EOFError(f"bytes {offset:,} to {offset + length:,} end behind the end of the file")
        return data

    def _buffered(self, offset: int, length: int) -> bytes:
        for start, data in self._buffers:
            if start <= offset and offset + length <= start + len(data):
                return data[offset - start : offset - start + length]
        span = next(((start, end) for start, end in self._spans if start <= offset and offset + length <= end), None)
        if span is None:
            return self._fetch(offset, length)
        # A span is fetched once: whoever returns to it after its buffer is gone gets the bare range.
        self._spans.remove(span)
        data = self._fetch(span[0], span[1] - span[0])
        self._buffers = [*self._buffers[1 - _MAX_BUFFERS :], (span[0], data)]
        return data[offset - span[0] : offset - span[0] + length]

    def _fetch(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)


def coalesce(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted spans (start, end) that cover all (offset, length) pairs. Gaps up to 64 KiB are bridged, spans end at 16 MiB."""
    spans: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        start, end = spans[-1] if spans else (0, -_MAX_GAP_BYTES - 1)
        if offset - end <= _MAX_GAP_BYTES and max(end, offset + length) - start <= _MAX_SPAN_BYTES:
            spans[-1] = (start, max(end, offset + length))
        else:
            spans.append((offset, offset + length))
    return spans
