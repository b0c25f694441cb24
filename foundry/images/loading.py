"""Loading of images: rows of an index to pixels, in the one call that captions, scores and features share.

read = read_images(rows, limits=limits, target_side_px=336)
read.images[0].image.pixels, read.images[0].facts["content_hash"], read.rejected
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import pyarrow as pa

from foundry.errors import StoreError
from foundry.images.decoding import DecodedImage, DecodeLimits, decode_image
from foundry.images.index import REJECTED
from foundry.images.reader import ImageReader, content_hash, reference_of
from foundry.images.web.settings import WebSettings
from foundry.units.rejection import Failure, ImageError

ReadT = TypeVar("ReadT")

OUTAGE_AFTER = 32
"""Images in a row that a store refuses, or that no web server gives, before that counts as an outage and not as theirs."""


@dataclass(frozen=True, kw_only=True)
class ReadImage:
    """An image and what its bytes tell, as a dict: key, reference, content_hash, width, height, format.

    For a row of index.INDEX it is a whole row of index.IMAGES, with what its sidecars say; other rows have that already.
    """

    image: DecodedImage
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReadRows(Generic[ReadT]):
    """Result for some rows, each list in their order: what was read, and rows of index.REJECTED as dicts."""

    images: list[ReadT]
    rejected: list[dict[str, Any]]


ReadImages = ReadRows[ReadImage]


class Refusals:
    """Tells what a store refuses for one image from an outage: as many refusals in a row as OUTAGE_AFTER, or all of fewer."""

    def __init__(self, num_images: int) -> None:
        self._most = min(OUTAGE_AFTER, max(2, num_images))
        self._in_a_row = 0

    @contextmanager
    def of_one_image(self) -> Iterator[None]:
        """Turns a refusal while one image is read into ImageError("unreadable"); raises StoreError in an outage."""
        try:
            yield
        except StoreError as error:
            self._in_a_row += 1
            if not error.is_alone or self._in_a_row == self._most:
                raise
            raise ImageError("unreadable", error.finding) from error
        except ImageError:
            self._in_a_row = 0
            raise
        self._in_a_row = 0


def read_images(
    rows: Sequence[Mapping[str, Any]],
    *,
    limits: DecodeLimits,
    target_side_px: int | None = None,
    web: WebSettings | None = None,
) -> ReadImages:
    """Reads and decodes the images of these rows, as read_rows and read_image say."""
    return read_rows(rows, partial(read_image, limits=limits, target_side_px=target_side_px), web=web)


def read_rows(
    rows: Sequence[Mapping[str, Any]],
    read: Callable[[ImageReader, Mapping[str, Any]], ReadT],
    *,
    reader: ImageReader | None = None,
    web: WebSettings | None = None,
) -> ReadRows[ReadT]:
    """Calls `read` for each of these rows (index.INDEX, or any table with a key and the columns of a reference).

    `reader` reads the images, and is closed; none: one by one, those of the web as `web` says.

    An image that cannot be used becomes a rejected row. Raises StoreError if a store fails, so that nothing is rejected
    that may be read another day, and MemoryError; neither is an image's own fault.
    """
    found: ReadRows[ReadT] = ReadRows(images=[], rejected=[])
    refusals = Refusals(len(rows))
    with reader or ImageReader(web=web) as opened:
        opened.expect(rows)
        for row in rows:
            try:
                with refusals.of_one_image():
                    found.images.append(read(opened, row))
            except ImageError as error:
                found.rejected.append(rejected_row(row, Failure(reason=error.reason, message=error.message)))
    return found


def read_image(
    reader: ImageReader, row: Mapping[str, Any], *, limits: DecodeLimits, target_side_px: int | None = None
) -> ReadImage:
    """Reads and decodes one image; its shorter side becomes at most `target_side_px` (see decoding.decode_image).

    Raises ImageError if this image cannot be used, StoreError where its store fails or refuses, and MemoryError.
    """
    reference = reference_of(row)
    data = reader.read(reference, max_bytes=limits.max_image_bytes)
    image = decode_image(data, limits=limits, target_side_px=target_side_px)
    facts = {"key": row["key"], **asdict(reference), "content_hash": content_hash(data)}
    facts |= {"width": image.width, "height": image.height, "format": image.format}
    if "sidecars" in row:
        facts |= asdict(reader.read_sidecars(row))
    return ReadImage(image=image, facts=facts)


def rejected_row(row: Mapping[str, Any], failure: Failure) -> dict[str, Any]:
    """A row of index.REJECTED as a dict."""
    return {"key": row["key"], **asdict(reference_of(row)), **asdict(failure)}


def all_rejected(
    rejected: Sequence[dict[str, Any]],
    rows: Callable[[], Sequence[Mapping[str, Any]]],
    *,
    failed: Mapping[str, Failure],
    excluded: Mapping[int, Failure],
) -> pa.Table:
    """The table `rejected` of a unit (index.REJECTED).

    It has the rows that were rejected when they were read, the images for which the model failed, by their key, and those
    that were excluded, by their position in the unit. `rows` reads the unit's rows again, which only the last two need.
    """
    found = list(rejected)
    if failed or excluded:
        unit = rows()
        found += [rejected_row(row, failed[row["key"]]) for row in unit if row["key"] in failed]
        found += [rejected_row(unit[position], failure) for position, failure in sorted(excluded.items())]
    return pa.Table.from_pylist(found, schema=REJECTED)
