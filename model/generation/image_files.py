"""Images on disk: names from prompt and seed, PNG that says what it was drawn from, grids."""

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError
from foundry.storage.folder import new_file

if TYPE_CHECKING:
    from PIL import Image

SOFTWARE = "T2I Foundry"
_NAME_LENGTH = 60
_READABLE_PX = 256


@dataclass(frozen=True)
class ImageFile:
    """A PNG, there or still to draw."""

    path: Path
    values: Mapping[str, Any]
    """Values that the image is drawn from, which the file records."""


def image_names(prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """A file name for each image, of its prompt and seed: `a-red-owl-s7.png`. The same in every list of prompts.

    Prompts that would look alike, being long or of other scripts, get six digits of a hash, and so does the empty one.
    """
    names = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")
        name = words[:_NAME_LENGTH].rstrip("-")
        if not name or name.replace("-", " ") != prompt:
            name = f"{name}-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}".lstrip("-")
        names.append(f"{name}-s{seed}.png")
    return names


def png_bytes(image: "Image.Image", values: Mapping[str, Any]) -> bytes:
    """A PNG with a text entry for each value."""
    from PIL.PngImagePlugin import PngInfo

    info, buffer = PngInfo(), io.BytesIO()
    for key, text in _texts(values).items():
        info.add_itxt(key, text)
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(image: "Image.Image", path: Path, values: Mapping[str, Any]) -> None:
    """Writes a PNG with a text entry for each value; complete or not at all. Raises UserError where it cannot be written."""
    try:
        with new_file(path) as partial:
            partial.write_bytes(png_bytes(image, values))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def is_drawn(path: Path, values: Mapping[str, Any]) -> bool:
    """Whether a whole PNG is there that was drawn from exactly these values."""
    from PIL import Image

    if not path.is_file():
        return False
    try:
        with Image.open(path) as image:
            image.load()  # a PNG's text may follow its pixels; and a cut-off file is found
            return getattr(image, "text", {}) == _texts(values)
    except (OSError, SyntaxError, ValueError):  # ValueError: a text longer than Pillow takes, as none of ours is
        return False


def open_image(path: Path) -> "Image.Image":
    """A PNG in memory, its file closed."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def make_grid(images: "Sequence[Image.Image]", *, columns: int | None = None, gap_px: int = 4, scale: int = 1) -> "Image.Image":
    """Images of one size in rows on white; default: about as many columns as rows.

    `scale`: whole factor by which they are enlarged, each pixel to a square; 0: until their longer side has 256 pixels.
    """
    from PIL import Image

    factor = scale or math.ceil(_READABLE_PX / max(images[0].size))
    images = [image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST) for image in images]
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * (width + gap_px) - gap_px, rows * (height + gap_px) - gap_px), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        grid.paste(image, (column * (width + gap_px), row * (height + gap_px)))
    return grid


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    texts = {key: value if isinstance(value, str) else json.dumps(value, sort_keys=True) for key, value in values.items()}
    return {"Software": SOFTWARE, **texts}
