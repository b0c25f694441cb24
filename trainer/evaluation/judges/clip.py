"""CLIP as a judge: cosines of images and texts, through the one file that imports open_clip."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dataset_builder.scores.clip import ClipEncoder, ClipSource, image_pixels, sentence_tokens

if TYPE_CHECKING:
    import torch

    from trainer.evaluation.judges.models import Placement

_BATCH = 64


class Clip:
    """A loaded CLIP. Deterministic."""

    def __init__(self, source: ClipSource, placement: "Placement") -> None:
        self.source = source
        self.encoder = ClipEncoder(source, batch_size=_BATCH, device=placement.device, dtype=placement.dtype)

    def embed_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> "torch.Tensor":
        """Embeddings of length 1 (N, D) of images (H, W, 3) of any size, resized and cropped as CLIP wants them."""
        return self.encoder.embed_images(np.stack([image_pixels(image, self.source) for image in images]))

    def embed_texts(self, texts: Sequence[str]) -> "torch.Tensor":
        """Embeddings of length 1 (T, D); what goes beyond CLIP's 77 tokens is not read."""
        return self.encoder.embed_texts(sentence_tokens(texts, self.source))

    def cosines(self, images: Sequence[npt.NDArray[np.uint8]], texts: Sequence[str]) -> list[float]:
        """Of each image and its text."""
        found: list[float] = (self.embed_images(images) * self.embed_texts(texts)).sum(dim=-1).tolist()
        return found
