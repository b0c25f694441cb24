"""The second judge of images: it matches the drawings themselves with the pixels, and knows nothing of llava-mini.

An image I of an object is P + (1 - A) B, where P is the drawing, A its alpha and B the background. With D = I - B and
S = P - A B, to put the drawing somewhere lowers the squared error of "nothing but background" by

    gain = 2 D.S - S.S          summed over the drawing's pixels and channels

and its fit is gain / S.S: 1 for the very drawing, 0 for one as good as nothing. Every kind in every second size is tried at
every place, by FFT, D and P and A being blurred by a pixel: a network's outlines may be a pixel off. The greatest gain of
sufficient fit may be an object, and nothing that overlaps it; it is one if it is like the drawing inside too.
S.S depends on the background alone, and repeats with it every 16 pixels.
Shapes: T drawings (kind and size), H = W = 64 pixels; colours in 0..1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from examples.openmoji.backgrounds import COLORS, IMAGE_SIZE_PX, PATTERNS, PERIOD_PX, background_pixels
from examples.openmoji.checks import Reading
from examples.openmoji.composition import PLACES
from examples.openmoji.kinds import KIND_NAMES
from examples.openmoji.sprites import sprite
from examples.openmoji.truth import ReadCaption, TrueObject

VERSION = "2"
"""Changes with any of the numbers below."""
MIN_FIT, MIN_COSINE, MIN_CORRELATION = 0.5, 0.9, 0.6
"""Thresholds that an object must reach: the share of the drawing that the image shows, the cosine between S and D, and within
the outline the correlation of the colors with the drawing's, which a blob of the right shape has not."""
_SIZES_PX = (20, 22, 23, 28, 30, 32, 34)
_SMALLEST_LARGE_PX = 26
_MAX_OVERLAP = 0.3
"""Overlap, as a share of the smaller box; more is the same object twice."""
_MAX_OBJECTS = 8
# Squared distance in RGB at which a pixel is no longer background: an object, or an outline.
_FAR = 0.03
_MIN_BACKGROUND_SHARE = 0.65
"""Share of the pixels outside the objects; below it, the background is none of the small world's."""
# Corners are searched for in this many rows and columns: whole periods of the background, and room for the smallest drawing.
_CORNERS = 48
# A Gaussian with a deviation of one pixel.
_KERNEL = torch.softmax(-0.5 * torch.arange(-3.0, 4.0).square(), dim=0)
_PLACE_NAMES = {cell: name for name, cell in PLACES.items()}


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """A drawing that the image shows."""

    kind: str
    size: str
    """`large` or `small`."""
    place: str
    """A key of PLACES."""
    x_px: int
    y_px: int
    width_px: int
    height_px: int
    correlation: float
    """Correlation of the colors within the outline; 1: identical to the drawing."""


@dataclass(frozen=True, kw_only=True)
class FoundScene:
    """Content of an image."""

    objects: tuple[FoundObject, ...]
    """Objects, those that explain most of the image first."""
    color: str
    """Color of the background; "" if it is none of the small world's."""
    pattern: str
    """Likewise."""

    def reading(self) -> Reading:
        """The scene in the form in which a caption is parsed."""
        kinds = [found.kind for found in self.objects]
        read = ReadCaption(
            counts={kind: kinds.count(kind) for kind in kinds},
            objects=tuple(TrueObject(kind=found.kind, size=found.size, place=found.place) for found in self.objects),
            colors=frozenset({self.color} - {""}),
            patterns=frozenset({self.pattern} - {""}),
            relations=(),
        )
        things = [f"{found.size} {found.kind} at {found.place} ({found.correlation:.2f})" for found in self.objects]
        background = f"{self.pattern} {self.color} background" if self.color else "no known background"
        return Reading(read=read, seen=", ".join([*things, background]))


@dataclass(frozen=True, kw_only=True)
class SpriteBank:
    """Drawings and backgrounds to compare with."""

    labels: tuple[tuple[str, int], ...]
    """Kind and size in pixels of each drawing."""
    drawings: tuple[Tensor, ...]
    """Premultiplied RGBA of each, (4, h, w)."""
    heights: Tensor
    """(T,)"""
    widths: Tensor
    """(T,)"""
    spectra: Tensor
    """(4, T, H, W/2 + 1) conjugate spectra of P and -A: with those of D and D.B they give D.S."""
    outside: Tensor
    """(T, R, R) whether a drawing with its upper left corner there does not fit into the image; R = places of a corner."""
    backgrounds: Tensor
    """(40, 3, H, W)"""
    energies: Tensor
    """(40, T, 16, 16) S.S before each background."""
    background_names: tuple[tuple[str, str], ...]
    """Colour and pattern of each."""


def sprite_bank(kinds: Sequence[str] = KIND_NAMES) -> SpriteBank:
    """The drawings of these kinds: what is not among them is not found."""
    labels = tuple((kind, size_px) for kind in kinds for size_px in _SIZES_PX)
    drawings = [torch.from_numpy(sprite(*label) / np.float32(255)).permute(2, 0, 1) for label in labels]  # (4, h, w)
    layers = torch.zeros(4, len(labels), IMAGE_SIZE_PX, IMAGE_SIZE_PX)  # (4, T, H, W)
    for index, drawing in enumerate(drawings):
        layers[:, index, : drawing.shape[1], : drawing.shape[2]] = _softened(drawing, "constant")
    heights, widths = (torch.tensor([drawing.shape[axis] for drawing in drawings]) for axis in (1, 2))
    corner = torch.arange(_CORNERS)
    too_low, too_right = (corner > IMAGE_SIZE_PX - sides[:, None] for sides in (heights, widths))  # (T, R)
    names = tuple((color, pattern) for color in COLORS for pattern in PATTERNS)
    backgrounds = _to_tensor(np.stack([background_pixels(*name) for name in names]))
    return SpriteBank(
        labels=labels,
        drawings=tuple(drawings),
        heights=heights,
        widths=widths,
        spectra=_spectra(torch.cat([layers[:3], -layers[3:]])),
        outside=too_low[:, :, None] | too_right[:, None, :],
        backgrounds=backgrounds,
        energies=torch.stack([_energy(_softened(background, "circular"), layers) for background in backgrounds]),
        background_names=names,
    )


def find_scenes(images: npt.NDArray[np.uint8], bank: SpriteBank) -> list[FoundScene]:
    """Content of each image: images uint8 RGB (N, 64, 64, 3). Raises ValueError for another shape."""
    if images.shape[1:] != (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3):
        raise ValueError(f"expected images (N, {IMAGE_SIZE_PX}, {IMAGE_SIZE_PX}, 3), found {images.shape}")
    return [_find_scene(image, bank) for image in _to_tensor(images)]


def _find_scene(image: Tensor, bank: SpriteBank) -> FoundScene:
    """Content of an image (3, H, W)."""
    nearest = _nearest_background(image, bank)
    background = bank.backgrounds[nearest]
    soft = _softened(background, "circular")
    rest = _softened(image - background, "replicate")
    fields = torch.cat([rest, (rest * soft).sum(0, keepdim=True)])  # (4, H, W)
    products = _correlate(fields, bank.spectra)[:, :_CORNERS, :_CORNERS]  # (T, R, R)
    tiles = _CORNERS // PERIOD_PX
    energies = bank.energies[nearest].repeat(1, tiles, tiles)  # (T, R, R)
    gains = (2 * products - energies).masked_fill(bank.outside, 0.0)
    found = [_found_object(place, rest, soft, bank) for place in _find_places(gains, energies, bank)]
    objects = tuple(one for one in found if one is not None)
    color, pattern = bank.background_names[nearest] if _is_background(image, background, objects) else ("", "")
    return FoundScene(objects=objects, color=color, pattern=pattern)


def _to_tensor(images: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def _nearest_background(image: Tensor, bank: SpriteBank) -> int:
    """Pixels that are far from a background weigh no more than far, so that objects do not matter."""
    return int((image - bank.backgrounds).square().sum(1).clamp(max=_FAR).mean((1, 2)).argmin())


def _softened(field: Tensor, padding: str) -> Tensor:
    """A field (C, H, W) blurred, so that outlines which are a pixel off still meet."""
    channels = len(field)
    padded = torch.nn.functional.pad(field[None], [len(_KERNEL) // 2] * 4, mode=padding)
    rows = torch.nn.functional.conv2d(padded, _KERNEL[:, None].expand(channels, 1, -1, 1), groups=channels)
    softened: Tensor = torch.nn.functional.conv2d(rows, _KERNEL.expand(channels, 1, 1, -1), groups=channels)[0]
    return softened


def _energy(background: Tensor, layers: Tensor) -> Tensor:
    """S.S = P.P - 2 (P A).B + (A A).(B B) before a background (3, H, W), for drawings (4, T, H, W): (T, 16, 16)."""
    color, alpha = layers[:3], layers[3:]
    fields = torch.cat([background, background.square().sum(0, keepdim=True)])
    crossed = _correlate(fields, _spectra(torch.cat([-2 * color * alpha, alpha.square()])))
    return color.square().sum((0, 2, 3))[:, None, None] + crossed[:, :PERIOD_PX, :PERIOD_PX]


def _spectra(layers: Tensor) -> Tensor:
    spectra: Tensor = torch.fft.rfft2(layers).conj().resolve_conj()
    return spectra


def _correlate(fields: Tensor, spectra: Tensor) -> Tensor:
    """Fields (C, H, W) against layers of each drawing, summed over C, by the place of the drawing's corner: (T, H, W)."""
    found = torch.zeros_like(spectra[0])
    for field, layer in zip(torch.fft.rfft2(fields), spectra, strict=True):
        found.addcmul_(layer, field)
    correlations: Tensor = torch.fft.irfft2(found, s=(IMAGE_SIZE_PX, IMAGE_SIZE_PX))
    return correlations


def _find_places(gains: Tensor, energies: Tensor, bank: SpriteBank) -> Iterator[tuple[int, int, int]]:
    """Drawing, top and left of what may be objects, greedily: the greatest gain first, and nothing that overlaps it.

    Both are (T, R, R).
    """
    drawing, top, left = torch.nonzero(gains > MIN_FIT * energies, as_tuple=True)
    gain, height, width = gains[drawing, top, left], bank.heights[drawing], bank.widths[drawing]
    for _ in range(_MAX_OBJECTS):
        if not len(gain) or float(gain.max()) <= 0:
            break
        best = int(gain.argmax())
        y, x, h, w = (int(values[best]) for values in (top, left, height, width))
        yield int(drawing[best]), y, x
        rows = ((top + height).clamp(max=y + h) - top.clamp(min=y)).clamp(min=0)
        columns = ((left + width).clamp(max=x + w) - left.clamp(min=x)).clamp(min=0)
        overlaps = rows * columns > _MAX_OVERLAP * (height * width).clamp(max=h * w)
        gain = gain.masked_fill(overlaps, 0.0)


def _found_object(place: tuple[int, int, int], rest: Tensor, background: Tensor, bank: SpriteBank) -> FoundObject | None:
    """The object at a place, if it is like its drawing. `rest` and `background` are (3, H, W), blurred."""
    index, top, left = place
    (kind, size_px), drawing = bank.labels[index], bank.drawings[index]
    height, width = drawing.shape[1:]
    soft = _softened(drawing, "constant")
    inside = drawing[3] > 0.5  # (h, w)
    there, behind = (field[:, top : top + height, left : left + width][:, inside] for field in (rest, background))
    expected = soft[:3, inside] - soft[3, inside] * behind  # S, (3, pixels)
    cosine, correlation = _cosine(there, expected), _cosine(_centered(there + behind), _centered(expected + behind))
    if cosine < MIN_COSINE or correlation < MIN_CORRELATION:
        return None
    # Cells are 16 pixels apart, with their centers at 16, 32 and 48.
    row, column = (min(max((start + side // 2 - 8) // 16, 0), 2) for start, side in ((top, height), (left, width)))
    return FoundObject(
        kind=kind,
        size="large" if size_px >= _SMALLEST_LARGE_PX else "small",
        place=_PLACE_NAMES[row, column],
        x_px=left,
        y_px=top,
        width_px=width,
        height_px=height,
        correlation=correlation,
    )


def _centered(colors: Tensor) -> Tensor:
    return colors - colors.mean(dim=1, keepdim=True)


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-3))


def _is_background(image: Tensor, background: Tensor, objects: Sequence[FoundObject]) -> bool:
    """Whether the pixels outside the objects show this background."""
    beside = torch.ones(IMAGE_SIZE_PX, IMAGE_SIZE_PX, dtype=torch.bool)
    for found in objects:
        beside[found.y_px : found.y_px + found.height_px, found.x_px : found.x_px + found.width_px] = False
    near = (image - background).square().sum(0) < _FAR
    return float(near[beside].float().mean()) >= _MIN_BACKGROUND_SHARE
