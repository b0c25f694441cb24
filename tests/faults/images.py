"""Images to begin with, in each format that is decoded, and images that are crafted to do harm."""

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

_EXIF_RUBBISH = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff" * 40


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def originals() -> list[bytes]:
    """Small images in each format and its varieties."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    rgb, frames = rgba.convert("RGB"), [rgba.convert("RGB").rotate(angle) for angle in (90, 180)]
    animated: dict[str, Any] = {"save_all": True, "append_images": frames}
    return [
        encoded(rgb, "JPEG", exif=Image.Exif().tobytes(), icc_profile=b"\0" * 200),
        encoded(rgb, "JPEG", progressive=True),
        encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(rgba, "PNG"),
        encoded(rgb.convert("P"), "PNG"),
        encoded(Image.fromarray(noise[..., 0].astype(np.uint16) << 4), "PNG"),
        encoded(rgb, "PNG", **animated),
        encoded(rgb, "WEBP"),
        encoded(rgba, "WEBP", lossless=True),
        encoded(rgb, "WEBP", **animated),
        encoded(rgb.convert("P"), "GIF", **animated),
        encoded(rgb, "TIFF"),
        encoded(rgb, "TIFF", compression="tiff_lzw"),
        encoded(rgb, "TIFF", compression="jpeg"),
        encoded(rgb.convert("1"), "TIFF", compression="group4"),
        encoded(rgb.convert("F"), "TIFF", compression="tiff_adobe_deflate"),
        encoded(rgb.convert("LAB"), "TIFF"),
        encoded(rgb, "BMP"),
        encoded(rgb.convert("P"), "BMP"),
        encoded(rgb, "AVIF"),
        encoded(rgba, "AVIF"),
        encoded(rgb, "JPEG2000"),
        encoded(rgba, "ICO", sizes=[(16, 16), (32, 32)]),
        encoded(rgb, "PPM"),
    ]


def png(width: int, height: int, *, rows: bytes = b"", colour_type: int = 0, more: bytes = b"") -> bytes:
    """A PNG of one bit a pixel whose header says this size and whose data are compressed `rows`."""
    header = struct.pack(">IIBBBBB", width, height, 1 if colour_type == 0 else 8, colour_type, 0, 0, 0)
    data = zlib.compress(rows, 9)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + more + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def ico(inner: bytes) -> bytes:
    """An ICO that says 16 x 16, around a PNG or a DIB that may say anything."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there this many times, in a few bytes each."""
    data = encoded(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + b"\xff\xd9"


def _with_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.new("RGB", (32, 24), "red"), "JPEG", exif=exif.tobytes())


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    return buffer.getvalue()


def _jp2_lie(side: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (64, 64)), "JPEG2000"))
    size = data.index(b"\xff\x51") + 6
    data[size : size + 8] = struct.pack(">II", side, side)
    return bytes(data)


def _gif_lie() -> bytes:
    data = bytearray(encoded(Image.new("P", (16, 16)), "GIF"))
    frame = data.index(b"\x2c")
    data[frame + 5 : frame + 9] = struct.pack("<HH", 65535, 65535)
    return bytes(data)


def _tiff(side: int, *, compression: int) -> bytes:
    """A TIFF of one strip that says this many rows and pixels, in almost no bytes."""
    entries = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, compression), (262, 3, 1), (273, 4, 200), (278, 4, side)]
    entries += [(279, 4, 2**31)]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0\0\0\0" + bytes(200)


def _looping_tiff() -> bytes:
    data = bytearray(encoded(Image.new("L", (16, 16)), "TIFF"))
    first = struct.unpack("<I", data[4:8])[0]
    following = first + 2 + 12 * struct.unpack("<H", data[first : first + 2])[0]
    data[following : following + 4] = struct.pack("<I", first)
    return bytes(data)


_RGB = Image.new("RGB", (64, 48), "navy")
CRAFTED: dict[str, Callable[[], bytes]] = {
    "PNG bomb": lambda: png(60_000, 60_000, rows=bytes(7501 * 1000)),
    "PNG bomb within an ICO": lambda: ico(png(40_000, 40_000, rows=bytes(5001 * 40_000))),
    "DIB bomb within an ICO": lambda: ico(
        struct.pack("<IiiHHIIiiII", 40, 40_000, 80_000, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024) + b"\xff\1" * 10**6 + b"\0\1"
    ),
    "PNG of the largest size": lambda: png(2**31 - 1, 2**31 - 1),
    "PNG whose rows go on": lambda: png(8, 8, rows=bytes(50 << 20)),
    "PNG with a text bomb": lambda: png(
        8, 8, rows=bytes(2 * 8), more=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20), 9))
    ),
    "PNG with a profile bomb": lambda: png(
        8, 8, rows=bytes(2 * 8), more=png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100 << 20), 9))
    ),
    "PNG with 100,000 chunks": lambda: png(8, 8, rows=bytes(2 * 8), more=png_chunk(b"tEXt", b"a\0b") * 100_000),
    "GIF with a frame beyond its canvas": _gif_lie,
    "GIF of the largest size": lambda: b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff" + b"\x2c" + bytes(4) + b"\xff" * 4,
    "GIF of 3,000 frames": lambda: encoded(
        Image.new("L", (8, 8)), "GIF", save_all=True, append_images=[Image.new("L", (8, 8), n % 250) for n in range(1, 3000)]
    ),
    "WebP of the largest size": lambda: encoded(Image.new("L", (16_383, 327)), "WEBP", quality=1),
    "JPEG of the largest size": lambda: encoded(_RGB, "JPEG").replace(
        struct.pack(">HH", 48, 64), struct.pack(">HH", 65_500, 65_500), 1
    ),
    "JPEG of 20,000 scans": lambda: many_scans(20_000),
    "JPEG 2000 that says 100,000 x 100,000": lambda: _jp2_lie(100_000),
    "JPEG 2000 that says 4,000 x 4,000": lambda: _jp2_lie(4_000),
    "TIFF of the largest size": lambda: _tiff(2**31 - 1, compression=1),
    "TIFF of 4,000 x 4,000, deflated nothing": lambda: _tiff(4_000, compression=8),
    "TIFF of 4,000 x 4,000, PackBits": lambda: _tiff(4_000, compression=32773),
    "TIFF whose directories loop": _looping_tiff,
    "BMP of the largest size": lambda: (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 2**31 - 1, -(2**31), 1, 8, 1, 0, 0, 0, 0, 0)
    ),
    "BMP by RLE": lambda: (
        b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 99, 0, 1078, 40, 10_000, 10_000, 1, 8, 1, 0, 0, 0, 256, 0)
        + bytes(1024)
        + b"\0\1"
    ),
    "PPM of the largest size": lambda: b"P6 2147483647 2147483647 255\n" + bytes(99),
    "PPM with a long comment": lambda: b"P6\n#" + b"x" * (2 << 20) + b"\n8 8 255\n" + bytes(192),
    "needle": lambda: png(100_000, 1, rows=bytes(12_501)),
    "JPEG that is a tar": lambda: encoded(_RGB, "JPEG") + _tar(),
    "JPEG that is a page": lambda: (
        encoded(_RGB, "JPEG", comment=b"--><script>alert(1)</script>") + b"<script>alert(1)</script>"
    ),
    "GIF that is a script": lambda: b"GIF89a/*" + bytes(8) + b"*/=1;alert(1)//",
    "PNG that is a PDF": lambda: encoded(_RGB, "PNG") + b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
    "PNG within a JPEG": lambda: encoded(_RGB, "JPEG")[:20] + encoded(_RGB, "PNG"),
    "SVG that fetches": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1:9/'/></svg>",
    "PostScript that runs": lambda: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch x) (w) file\n"
    ),
    "EXIF rubbish": lambda: encoded(_RGB, "JPEG", exif=_EXIF_RUBBISH),
    "EXIF that is 60 kB of nothing": lambda: encoded(_RGB, "JPEG", exif=b"Exif\0\0" + bytes(60_000)),
    "orientation 0": lambda: _with_exif(0),
    "orientation 9": lambda: _with_exif(9),
    "orientation 65,535": lambda: _with_exif(65_535),
    "ICC rubbish": lambda: encoded(_RGB, "JPEG", icc_profile=b"\xff" * 70_000),
    "ICC rubbish in a LAB TIFF": lambda: encoded(_RGB.convert("LAB"), "TIFF", icc_profile=b"\xff" * 5_000),
    "ICC rubbish in a WebP": lambda: encoded(_RGB, "WEBP", icc_profile=b"\xff" * 5_000),
}
"""What does harm where limits fail; every one is made when it is asked for."""
