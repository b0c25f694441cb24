"""Tables of images: the index that a plan consists of, images that were read, rejected ones; and the reference to an image."""

from dataclasses import dataclass

import pyarrow as pa

# Where the bytes of an image are. uri is a local path or an fsspec URL. In a tar, member is the path inside it and the two
# byte columns delimit the payload; in a Parquet file, member is the column and row the row; in a plain file all four are null.
REFERENCE = [
    pa.field("uri", pa.string(), nullable=False),
    pa.field("member", pa.string()),
    pa.field("byte_offset", pa.int64()),
    pa.field("byte_length", pa.int64()),
    pa.field("row", pa.int64()),
]

# A file that belongs to an image and stands beside it: a caption or a JSON. A null uri means: in the image's own tar.
_SIDECAR = pa.struct(
    [
        pa.field("suffix", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("byte_offset", pa.int64()),
        pa.field("byte_length", pa.int64()),
    ]
)

# One row per planned image. metadata is a JSON object of the columns that the source carried.
INDEX = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        *REFERENCE,
        pa.field("sidecars", pa.list_(_SIDECAR), nullable=False),
        pa.field("alt_text", pa.string()),
        pa.field("class_label", pa.string()),
        pa.field("metadata", pa.string()),
    ]
)

# One row per image that was read, with what only its bytes tell. Areas of masks are in pixels of the original image.
IMAGES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        *REFERENCE,
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string()),
        pa.field("alt_text", pa.string()),
        pa.field("class_label", pa.string()),
        pa.field("num_masks", pa.int32()),
        pa.field("mask_area_px", pa.int64()),
        pa.field("metadata", pa.string()),
    ]
)

# One row per image that is not used, with a reason of foundry/units/rejection.py.
REJECTED = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        *REFERENCE,
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ImageReference:
    """Where the bytes of one image are; see the comment on REFERENCE for what the fields mean by kind of container."""

    uri: str
    member: str | None = None
    byte_offset: int | None = None
    byte_length: int | None = None
    row: int | None = None
