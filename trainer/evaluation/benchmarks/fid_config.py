"""What a Fréchet Inception distance is taken from, and by. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FidConfig:
    """The reference and the network."""

    reference: str | None = None
    """A folder of images, or their statistics (.npz with mu and sigma); default: no FID."""
    weights: str | None = None
    """The Inception network: the published .pth, or another one's weights in safetensors; default: the published, fetched."""
    features: Literal["64", "192", "768", "2048"] = "2048"
    """Width of the layer that is looked at. FID is that of 2048; the others need fewer images, and are another figure."""
    resolution_px: int | None = None
    """Crop all images, the reference too, to their middle square and resize them to this side first; default: as they are."""

    def __post_init__(self) -> None:
        if self.resolution_px is not None and self.resolution_px < 1:
            raise ValueError("fid.resolution_px must be 1 or more")
