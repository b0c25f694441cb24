"""Decoding: each colour mode gives the right pixels, each kind of damage its own reason, and the limits hold."""

import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from foundry.images.decoding import (
    FORMATS,
    MAX_ASPECT_RATIO,
    DecodedImage,
    DecodeLimits,
    decode_image,
    image_suffix,
    is_plain,
    suffix_of_format,
)
from foundry.storage.file_kinds import is_image
from foundry.units.rejection import ImageError
from tests.foundry.images.containers import encode, jpeg

LIMITS = DecodeLimits()
COLOUR = (200, 100, 50)


def decode(data: bytes, target_side_px: int | None = None, limits: DecodeLimits = LIMITS) -> DecodedImage:
    return decode_image(data, limits=limits, target_side_px=target_side_px)


def reason(data: bytes, limits: DecodeLimits = LIMITS) -> str:
    with pytest.raises(ImageError) as raised:
        decode(data, limits=limits)
    assert raised.value.message
    assert "\n" not in raised.value.message
    return raised.value.reason


def plain(mode: str = "RGB", *, size: tuple[int, int] = (40, 20)) -> Image.Image:
    return Image.new("RGB", size, COLOUR).convert(mode)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "MPO"])
def test_each_format(image_format: str) -> None:
    decoded = decode(encode(plain(), image_format))
    assert (decoded.width, decoded.height, decoded.pixels.shape) == (40, 20, (20, 40, 3))
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.pixels.flags.writeable
    assert np.abs(decoded.pixels.astype(int) - COLOUR).max() <= 4
    assert decoded.format == ("JPEG" if image_format == "MPO" else image_format)


def _palette(**options: object) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([*COLOUR, 0, 0, 255])
    image.putdata([0, 1])
    return encode(image, "PNG", **options)


RAMP = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
# 65535 is white and 257 is 1: clipping would turn all but the first into white.
RAMP_8 = [0, 1, 128, 255]
WHITE = (255, 255, 255)
MODES: dict[str, tuple[bytes, list[int] | list[tuple[int, int, int]]]] = {
    "L": (encode(Image.new("L", (1, 1), 77), "PNG"), [77]),
    "1": (encode(Image.fromarray(np.array([[False, True]])), "PNG"), [0, 255]),
    "LA on white": (encode(Image.new("LA", (1, 1), (0, 64)), "PNG"), [191]),
    "RGBA on white": (encode(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), "PNG"), [(255, 127, 127)]),
    "RGBA clear": (encode(Image.new("RGBA", (1, 1), (0, 0, 0, 0)), "WEBP", lossless=True), [WHITE]),
    "RGB with a clear colour": (encode(plain(size=(1, 1)), "PNG", transparency=COLOUR), [WHITE]),
    "P": (_palette(), [COLOUR, (0, 0, 255)]),
    "P with a clear index": (_palette(transparency=0), [WHITE, (0, 0, 255)]),
    "P with alpha": (_palette(transparency=bytes([255, 0])), [COLOUR, WHITE]),
    "I;16 PNG": (encode(Image.fromarray(RAMP), "PNG"), RAMP_8),
    "I;16 TIFF": (tiff(RAMP), RAMP_8),
    "I;16B TIFF": (tiff(RAMP, byteorder=">"), RAMP_8),
    "16-bit PGM": (b"P5 4 1 65535\n" + RAMP.astype(">u2").tobytes(), RAMP_8),
    "16-bit RGB TIFF": (tiff(np.stack([RAMP] * 3, -1), photometric="rgb"), RAMP_8),
    "float TIFF in 0..1": (tiff(np.array([[0, 0.2, 0.5, 0.9]], np.float32)), [0, 51, 128, 230]),
    "float TIFF stretched": (tiff(np.array([[-100, 0, 100, 300]], np.float32)), [0, 64, 128, 255]),
    "float TIFF with NaN": (tiff(np.array([[np.nan, 0.2, 1, 0]], np.float32)), [0, 51, 255, 0]),
    "int32 TIFF": (tiff(np.array([[-5, 0, 5]], np.int32)), [0, 128, 255]),
    "uint32 TIFF": (tiff(np.array([[0, 2**31, 2**32 - 1]], np.uint32)), [0, 128, 255]),
    "LAB": (encode(Image.new("LAB", (1, 1), (255, 128, 128)), "TIFF"), [WHITE]),
}


@pytest.mark.parametrize("mode", MODES)
def test_each_colour_mode_has_the_expected_pixels(mode: str) -> None:
    data, expected = MODES[mode]
    wanted = [value if isinstance(value, tuple) else (value,) * 3 for value in expected]
    found = [tuple(int(part) for part in pixel) for pixel in decode(data).pixels[0]]
    assert found == wanted or np.abs(np.array(found) - wanted).max() <= (1 if mode == "LAB" else 0), found


def _png(width: int, height: int, *, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG that Pillow does not write: any depth, any claimed size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_png_of_16_bits_a_channel_is_scaled_and_composited() -> None:
    rgb = _png(2, 1, depth=16, colour_type=2, rows=b"\0" + struct.pack(">6H", 0, 257, 65535, 32768, 51400, 12850))
    assert decode(rgb).pixels.tolist() == [[[0, 1, 255], [128, 200, 50]]]
    rgba = _png(1, 1, depth=16, colour_type=6, rows=b"\0" + struct.pack(">4H", 65535, 0, 0, 0))
    assert decode(rgba).pixels.tolist() == [[[255, 255, 255]]]
    grey_alpha = _png(1, 1, depth=16, colour_type=4, rows=b"\0" + struct.pack(">2H", 0, 65535))
    assert decode(grey_alpha).pixels.tolist() == [[[0, 0, 0]]]


def test_cmyk_jpeg_with_adobe_inversion_is_not_a_negative() -> None:
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in data
    assert np.abs(decode(data).pixels.astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation: int, image_format: str) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255
    upright[:8, 16:] = (255, 0, 0)
    # How a camera stores an upright picture under each orientation: the inverse of what a viewer has to do.
    store: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if image_format in ("PNG", "TIFF") else {"quality": 100}
    data = encode(Image.fromarray(np.ascontiguousarray(store[orientation](upright))), image_format, exif=exif, **options)
    decoded = decode(data)
    assert (decoded.width, decoded.height, decoded.pixels.shape) == (32, 16, (16, 32, 3))
    assert np.abs(decoded.pixels[2:6, 2:14].astype(int) - 255).max() < 40
    assert np.abs(decoded.pixels[2:6, 18:30].astype(int) - (255, 0, 0)).max() < 60
    assert decoded.pixels[10:].max() < 60
    assert decode(data, target_side_px=8).pixels.shape == (8, 16, 3)


def test_a_damaged_exif_block_costs_nothing_but_the_orientation() -> None:
    data = encode(plain(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff garbage")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert decode(data).pixels.shape == (20, 40, 3)
        assert not heard
        Image.open(io.BytesIO(data)).getexif()
        assert heard, "Pillow no longer warns of this; choose another image"


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_many_frames_the_first(image_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (COLOUR, (0, 0, 0), (9, 9, 9))]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert (decode(data).pixels == COLOUR).all()


def test_a_large_jpeg_is_decoded_small_but_never_below_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(plain(size=(2250, 1500)), "JPEG")
    loaded: list[tuple[int, int]] = []
    load = ImageFile.ImageFile.load

    def spy(self: ImageFile.ImageFile) -> object:
        access = load(self)
        loaded.append(self.size)
        return access

    monkeypatch.setattr(ImageFile.ImageFile, "load", spy)
    decoded = decode(data, 336)
    assert loaded[0] == (563, 375)
    assert (decoded.width, decoded.height, decoded.pixels.shape) == (2250, 1500, (336, 504, 3))


@settings(max_examples=80, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), target=st.integers(1, 150), kind=st.sampled_from(["JPEG", "PNG"]))
def test_the_short_side_is_bounded_and_nothing_enlarged(width: int, height: int, target: int, kind: str) -> None:
    assume(max(width, height) <= MAX_ASPECT_RATIO * min(width, height))
    decoded = decode(encode(Image.new("L", (width, height), 128), kind), target)
    found_height, found_width, _ = decoded.pixels.shape
    assert (decoded.width, decoded.height) == (width, height)
    assert min(found_width, found_height) == min(target, width, height)
    scale = min(found_width, found_height) / min(width, height)
    assert abs(found_width - width * scale) <= 0.5 + 1e-9
    assert abs(found_height - height * scale) <= 0.5 + 1e-9
    assert (np.abs(decoded.pixels.astype(int) - 128) <= 1).all()


def test_scaled_decoding_keeps_the_picture() -> None:
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp, (1200, 1600)).copy())
    small = decode(encode(image, "JPEG", quality=95), 60).pixels[30, :, 0].astype(int)
    assert len(small) == 80
    assert np.abs(small - (np.arange(80) + 0.5) * 255 / 80).max() <= 3


def _cut(data: bytes, keep: float = 0.6) -> bytes:
    return data[: int(len(data) * keep)]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
PNG = encode(NOISE, "PNG")
BROKEN = {
    "zero bytes": (b"", "empty"),
    "html": (b"<!doctype html><title>404</title>", "not_an_image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not_an_image"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "not_an_image"),
    "zeros": (bytes(5000), "not_an_image"),
    "one byte": (b"\xff", "not_an_image"),
    "cut JPEG": (_cut(jpeg(size=(64, 64))), "broken"),
    "JPEG header only": (jpeg()[:20], "broken"),
    "cut PNG": (_cut(PNG), "broken"),
    "PNG header only": (PNG[:20], "broken"),
    "PNG with a wrong checksum": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "broken"),
    "cut WebP": (_cut(encode(NOISE, "WEBP")), "broken"),
    "WebP header only": (encode(NOISE, "WEBP")[:16], "broken"),
    "cut GIF": (_cut(encode(NOISE, "GIF")), "broken"),
    "cut TIFF": (_cut(encode(NOISE, "TIFF")), "broken"),
    "cut BMP": (_cut(encode(NOISE, "BMP")), "broken"),
    "cut AVIF": (_cut(encode(NOISE, "AVIF")), "broken"),
    "bomb": (_png(60_000, 60_000, depth=8, colour_type=2, rows=b""), "too_many_pixels"),
    "no width": (_png(0, 5, depth=8, colour_type=2, rows=b""), "broken"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_kind_of_broken_image_has_its_reason(case: str) -> None:
    data, expected = BROKEN[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason(data) == expected


def test_limits_are_inclusive_and_say_what_was_found() -> None:
    data = encode(plain(), "PNG")
    decode(data, limits=DecodeLimits(max_image_bytes=len(data), max_image_pixels=800, min_side_px=20))
    assert reason(data, DecodeLimits(max_image_bytes=len(data) - 1)) == "too_many_bytes"
    assert reason(data, DecodeLimits(max_image_pixels=799)) == "too_many_pixels"
    assert reason(data, DecodeLimits(min_side_px=21)) == "too_small"


def test_limits_hold_before_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise AssertionError("decoded pixels of an image that is over the limit")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    for kind in ("JPEG", "PNG", "GIF", "TIFF"):
        assert reason(encode(plain(), kind), DecodeLimits(max_image_pixels=799)) == "too_many_pixels"


def test_a_limit_above_pillows_own_holds() -> None:
    data = _png(20_000, 10_000, depth=1, colour_type=0, rows=(b"\0" + b"\xff" * 2500) * 10_000)
    assert reason(data) == "too_many_pixels"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(data, 10, DecodeLimits(max_image_pixels=200_000_000))
    assert (decoded.width, decoded.height) == (20_000, 10_000)
    assert decoded.pixels.shape == (10, 20, 3)


def test_limits_below_one_are_refused_all_at_once() -> None:
    with pytest.raises(ValueError, match="max_image_bytes, min_side_px"):
        DecodeLimits(max_image_bytes=0, min_side_px=-1)


def test_an_extreme_shape_is_rejected_before_a_processor_enlarges_it() -> None:
    for size in ((1, 4000), (4000, 1), (10, 501)):
        assert reason(encode(Image.new("L", size), "PNG")) == "too_narrow"
    assert decode(encode(Image.new("L", (10, 500)), "PNG"), 336).pixels.shape == (500, 10, 3)


def _with_chunk(kind: bytes, content: bytes, *, at_end: bool = False) -> bytes:
    """A PNG with one more chunk, before its pixels or after them."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    position = len(PNG) - 12 if at_end else 33
    return PNG[:position] + chunk + PNG[position:]


BIG = bytes(3 << 20)
NOTES = {
    "compressed text": _with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(BIG)),
    "international text": _with_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(BIG)),
    "colour profile": _with_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(BIG)),
    "text after the pixels": _with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(BIG), at_end=True),
    "much plain text": _with_chunk(b"tEXt", b"Comment\0" + b"x" * (65 << 20)),
}


@pytest.mark.parametrize("case", NOTES)
def test_a_png_with_long_texts_or_profiles_is_no_broken_image(case: str) -> None:
    limits = DecodeLimits(max_image_bytes=80 << 20)
    assert np.array_equal(decode(NOTES[case], limits=limits).pixels, decode(PNG).pixels)
    assert image_suffix(NOTES[case]) == "png"
    assert (is_plain(PNG), is_plain(NOTES[case])) == (True, False)


def test_a_bomb_in_a_text_takes_no_memory() -> None:
    bomb = _with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(300 << 20), 9))
    tracemalloc.start()
    decode(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_a_png_without_its_texts_keeps_the_orientation_of_its_xmp() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = _with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    upright = decode(data).pixels
    assert not np.array_equal(upright, decode(PNG).pixels)
    noted = data[:33] + NOTES["compressed text"][33 : len(NOTES["compressed text"]) - len(PNG) + 33] + data[33:]
    assert np.array_equal(decode(noted).pixels, upright)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 5}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("target", [None, 8])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_whole_and_one_that_lacks_more_is_broken(
    options: dict[str, Any], target: int | None
) -> None:
    data = encode(NOISE.resize((200, 200)), "JPEG", **options)
    for missing in (1, 2):
        assert np.array_equal(decode(data[:-missing], target).pixels, decode(data, target).pixels)
    for keep in (0.3, 0.6, 0.9):
        assert reason(_cut(data, keep)) == "broken"
    grey = encode(Image.new("L", (640, 480), 128), "JPEG", **options)
    assert np.array_equal(decode(grey[:-2]).pixels, decode(grey).pixels)


@pytest.mark.parametrize(
    ("image_format", "suffix"),
    [("JPEG", "jpg"), ("MPO", "jpg"), ("PNG", "png"), ("AVIF", "avif"), ("JPEG2000", "jp2"), ("TIFF", "tiff"), ("BMP", "bmp")],
)
def test_each_format_has_a_suffix_that_a_search_takes(image_format: str, suffix: str) -> None:
    options = {"save_all": True, "append_images": [plain()]} if image_format == "MPO" else {}
    data = encode(plain(), image_format, **options)
    assert image_suffix(data) == suffix_of_format(decode(data).format) == suffix
    assert set(FORMATS) - {name for name in FORMATS if is_image(f"a.{suffix_of_format(name)}")} == set()


SEEDS = [
    encode(NOISE.resize((24, 16)), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "ICO")
]


@settings(max_examples=400, deadline=None)
@given(
    data=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    keep=st.floats(0.05, 1),
)
def test_no_damage_ends_in_anything_but_an_image_or_an_image_error(
    data: bytes, changes: list[tuple[float, int]], keep: float
) -> None:
    damaged = bytearray(_cut(data, keep))
    for place, value in changes:
        damaged[int(place * (len(damaged) - 1))] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            decoded = decode(bytes(damaged), 8, DecodeLimits(max_image_pixels=1_000_000))
        except ImageError:
            return
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.ndim == 3


def test_decoding_is_deterministic() -> None:
    data = jpeg(3, size=(301, 207))
    assert np.array_equal(decode(data, 50).pixels, decode(data, 50).pixels)


def test_pillow_is_left_strict() -> None:
    decode(jpeg())
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
