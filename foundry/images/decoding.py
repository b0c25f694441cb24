"""Decoder of image files: bytes to RGB within limits, with one reason for each way of failing.

Pillow decodes. Orientation, colour modes and depths are brought to upright 8-bit RGB; transparency is laid on white, as a page
would show it. Colour profiles (ICC) are not applied.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, TiffImagePlugin, UnidentifiedImageError

from foundry.errors import one_line
from foundry.units.rejection import ImageError

# Pillow knows more; what is not here is no photograph or starts other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "AVIF", "JPEG2000", "ICO")

_MAGICS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": (b"BM",),
    "JPEG 2000": (b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51"),
}

# Formats of Pillow by the suffix that every reader of such a file knows.
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tiff", "JPEG2000": "jp2"}

MAX_ASPECT_RATIO = 50
"""Longer side by shorter one at most: a processor that makes the shorter side 336 px makes 1 x 4000 into 336 x 1,344,000."""
_ONE_LIMIT = Lock()
MAX_JPEG_SCANS = 100
"""Scans of a JPEG at most. Encoders write 20 and fewer; each takes time for all pixels, however few its bytes."""
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_JPEG_SCAN = 0xDA
_JPEG_STOP = 0xD9
_PNG_NOTES = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_JPEG_END = b"\xff\xd9"
_JPEG_FILLER = bytes(range(1, 255)) * 16
_ORIENTATION_TAG = 0x0112
_SAMPLE_FORMAT_TAG = 339
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """Limits that reject an image before any pixel is decoded. MAX_ASPECT_RATIO is one more, which is fixed."""

    max_image_bytes: int = 64 << 20
    """Maximum size of the encoded image, in bytes."""
    max_image_pixels: int = 178_956_970
    """Maximum of width times height, in pixels; the default is the limit of Pillow (half a gigabyte of RGB)."""
    min_side_px: int = 1
    """Minimum length of the shorter side, in pixels."""

    def __post_init__(self) -> None:
        wrong = [name for name in ("max_image_bytes", "max_image_pixels", "min_side_px") if getattr(self, name) < 1]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An upright RGB image. width and height are those of the original, after its EXIF orientation, before any resize."""

    pixels: npt.NDArray[np.uint8]  # (H, W, 3)
    width: int
    height: int
    format: str


def decode_image(data: bytes, *, limits: DecodeLimits, target_side_px: int | None = None) -> DecodedImage:
    """Decodes the first frame of an image to upright RGB, (H, W, 3) uint8.

    With `target_side_px` the shorter side becomes at most that (Lanczos; the aspect is kept, nothing is enlarged), and a
    JPEG is decoded at the least of 1/1, 1/2, 1/4 and 1/8 that is not below it: an image of SA-1B (shorter side 1500 px,
    typically 1500 x 2250) is decoded at 1/4 for a target of 336. Deterministic. 16-bit samples are scaled to 8 bits, not
    clipped; floats outside 0..1 and 32-bit integers are stretched from their least to their greatest value. A PNG with texts or
    a colour profile that Pillow refuses is decoded without them, a JPEG that lacks nothing but its end marker as it is.
    Raises ImageError: "empty", "too_many_bytes", "not_an_image", "broken", "too_many_pixels", "too_small", "too_narrow"; and
    MemoryError.
    Source: SA-1B, arXiv 2304.02643, section 5 (images are downsampled to a shorter side of 1500 pixels).
    """
    if not data:
        raise ImageError("empty", "zero bytes")
    if len(data) > limits.max_image_bytes:
        raise ImageError("too_many_bytes", f"{len(data):,} bytes, the limit is {limits.max_image_bytes:,}")
    try:
        return _decode(data, limits=limits, target_side_px=target_side_px)
    except ImageError as error:
        if error.reason != "broken" or (whole := _decode_whole(data, limits=limits, target_side_px=target_side_px)) is None:
            raise
        return whole


def image_suffix(data: bytes) -> str:
    """The suffix, without its dot, that the format of an encoded image has. Raises ImageError if it is no image.

    As in decode_image, texts and a colour profile that Pillow refuses make no PNG a broken one.
    """
    bare = _without_notes(data) if data.startswith(_MAGICS["PNG"]) else data
    with _failures_named(data), _open(bare, max_pixels=None) as image:
        return suffix_of_format(image.format)


def is_plain(data: bytes) -> bool:
    """Whether Pillow decodes an image as it is: no PNG with long texts, no JPEG without its end, which decode_image takes."""
    try:
        with _failures_named(data), _open(data, max_pixels=None) as image:
            image.load()
    except ImageError:
        return False
    return True


def suffix_of_format(image_format: str | None) -> str:
    """The suffix, without its dot, of a format as DecodedImage and index.IMAGES name it; "bin" for None."""
    return _SUFFIXES.get(image_format or "bin", (image_format or "bin").lower())


def _decode(data: bytes, *, limits: DecodeLimits, target_side_px: int | None) -> DecodedImage:
    if data.startswith(_MAGICS["JPEG"]):
        _check_scans(data)
    with _failures_named(data), _open(data, max_pixels=limits.max_image_pixels) as image:
        size = image.size
        _check_size(size, limits)
        if target_side_px is not None:
            image.draft(None, _bounded(size, target_side_px, round_up=True))
        image.load()
        # Read after loading: TIFF is turned by Pillow itself as it loads.
        orientation = _orientation(image)
        rgb = _to_rgb(image)
        if target_side_px is not None and rgb.size != (bounded := _bounded(size, target_side_px)):
            rgb = rgb.resize(bounded, Image.Resampling.LANCZOS)
        if orientation in _TRANSPOSES:
            rgb = rgb.transpose(_TRANSPOSES[orientation])
        width, height = reversed(size) if orientation in _SIDEWAYS else size
        return DecodedImage(pixels=np.array(rgb), width=width, height=height, format=image.format or "")


def _decode_whole(data: bytes, *, limits: DecodeLimits, target_side_px: int | None) -> DecodedImage | None:
    """An image that Pillow refuses and every viewer shows whole; None if it is none.

    Of a JPEG without its end marker the pixels are all there if bytes put in the marker's place change none of them.
    """
    decode = partial(_decode, limits=limits, target_side_px=target_side_px)
    try:
        if data.startswith(_MAGICS["PNG"]) and len(bare := _without_notes(data)) < len(data):
            return decode(bare)
        if data.startswith(_MAGICS["JPEG"]):
            begun = data.rstrip(b"\xff")
            whole = decode(begun + _JPEG_END)
            if np.array_equal(whole.pixels, decode(begun + _JPEG_FILLER + _JPEG_END).pixels):
                return whole
    except ImageError:
        pass
    return None


def _without_notes(png: bytes) -> bytes:
    """A PNG without its colour profile and texts, which change no pixel here; XMP stays, since it may hold the orientation."""
    kept, position = [png[:8]], 8
    while position < len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        chunk = png[position:end]
        if chunk[4:8] not in _PNG_NOTES or chunk[8:27] == b"XML:com.adobe.xmp\0\0":
            kept.append(chunk)
        position = end
    return b"".join(kept)


def _open(data: bytes, *, max_pixels: int | None) -> Image.Image:
    """Opens an image, in which another may lie: that of an ICO is decoded here, so Pillow has to know the limit too.

    Pillow warns above its limit and refuses twice of it; _check_size has the exact one. The limit is one for all of Pillow's
    users in the process: it is off but while an image is opened.
    """
    Image.init()  # Registers all formats, the first time; open() alone knows but the commonest and fails on the other names.
    with _ONE_LIMIT:
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:  # which says the number of pixels alone
            found = re.search(r"\d+", str(error))
            num_pixels = f"{int(found[0]):,} pixels" if found else one_line(error)
            raise ImageError("too_many_pixels", f"{num_pixels}, the limit is {max_pixels:,}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = None


@contextmanager
def _failures_named(data: bytes) -> Iterator[None]:
    """Turns what a decoder raises into an ImageError and keeps Pillow's warnings from leaking."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (ImageError, MemoryError):  # too little memory says nothing about the image
            raise
        except UnidentifiedImageError as error:
            raise _unidentified(data) from error
        except Exception as error:  # Decoders of hostile bytes raise anything: struct.error, IndexError, SyntaxError, …
            raise ImageError("broken", f"{type(error).__name__}: {one_line(error)}") from error


def _unidentified(data: bytes) -> ImageError:
    """Pillow says "cannot identify" both of foreign formats and of images cut off in their header."""
    name = next((name for name, magics in _MAGICS.items() if data.startswith(magics)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        name = "WebP"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        name = "AVIF"
    if name is not None:
        return ImageError(
            "broken", f"begins as {name} ({len(data):,} bytes), but its header is damaged or of a kind unknown here"
        )
    if data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return ImageError("not_an_image", "HEIC, for which there is no decoder here: convert it to JPEG")
    return ImageError("not_an_image", f"no decoder knows it; it begins with {data[:12]!r}")


def _check_scans(jpeg: bytes) -> None:
    """Raises ImageError for a JPEG with more than MAX_JPEG_SCANS scans before its end; what follows the end is no image."""
    position, num_scans = 2, 0
    while (found := _JPEG_MARKER.search(jpeg, position)) and found[1][0] != _JPEG_STOP:
        position = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
        num_scans += found[1][0] == _JPEG_SCAN
        if num_scans > MAX_JPEG_SCANS:
            raise ImageError("broken", f"a JPEG of more than {MAX_JPEG_SCANS} scans: encoders write 20 and fewer")


def _check_size(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if width * height > limits.max_image_pixels:
        found = f"{width} x {height} is {width * height:,} pixels"
        raise ImageError("too_many_pixels", f"{found}, the limit is {limits.max_image_pixels:,}")
    if min(size) < limits.min_side_px:
        raise ImageError("too_small", f"{width} x {height}, a side must have {limits.min_side_px} pixels")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise ImageError(
            "too_narrow", f"{width} x {height}, the longer side may have {MAX_ASPECT_RATIO} times the shorter one's"
        )


def _bounded(size: tuple[int, int], target_side_px: int, *, round_up: bool = False) -> tuple[int, int]:
    """The size with its shorter side at most the target, aspect kept; the longer side is rounded, or rounded up."""
    short = min(size)
    if short <= target_side_px:
        return size
    width, height = (max(1, (2 * side * target_side_px + short) // (2 * short)) for side in size)
    if round_up:
        width, height = (-(-side * target_side_px // short) for side in size)
    return width, height


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 if there is none or the EXIF block is damaged, which harms no pixel."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - a damaged block raises anything, as above
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as 8-bit RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "LAB":
        to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        converted = ImageCms.applyTransform(image, to_srgb)
        assert converted is not None
        return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    """One channel of 16 bits, 32 bits or floats as 8 bits, (H, W)."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return (values.clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
    if (
        image.mode == "I"
        and isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.tag_v2.get(_SAMPLE_FORMAT_TAG, (1,)) == (1,)
    ):
        values = values.view(np.uint32)  # Pillow has no unsigned 32-bit mode and wraps
    return _stretch(values.astype(np.float32), keep_unit_range=image.mode == "F")


def _stretch(values: npt.NDArray[np.float32], *, keep_unit_range: bool) -> npt.NDArray[np.uint8]:
    """The least to the greatest value becomes 0 to 255; 0..1 does if all lie in it and keep_unit_range. NaN counts as 0."""
    numbers = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(numbers.min()), float(numbers.max())
    if keep_unit_range and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scale = 255 / (high - low) if high > low else 0.0
    scaled: npt.NDArray[np.uint8] = np.rint((numbers - low) * scale).astype(np.uint8)
    return scaled
