"""CLIP as a judge: cosines of images and texts, and the CLIP score of an image and its prompt."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dataset_builder.scores.clip import ClipEncoder, ClipSource, image_pixels, resolve_clip, sentence_tokens
from trainer.evaluation.benchmark import JudgeSource, Prompt, Verdict
from trainer.evaluation.judges.models import Placement, check_finite

if TYPE_CHECKING:
    import torch

    from trainer.evaluation.config import EvaluateConfig


_BATCH = 64
CLIP_SCORE = "clip_score"


class Clip:
    """A loaded CLIP. Deterministic."""

    def __init__(self, source: ClipSource, placement: "Placement") -> None:
        self.source = source
        self.encoder = ClipEncoder(source, batch_size=_BATCH, device=placement.device, dtype=placement.dtype)

    def embed_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> "torch.Tensor":
        """Embeddings of length 1 (N, D) of images (H, W, 3) of any size, resized and cropped as CLIP wants them."""
        return self._checked(self.encoder.embed_images(np.stack([image_pixels(image, self.source) for image in images])))

    def embed_texts(self, texts: Sequence[str]) -> "torch.Tensor":
        """Embeddings of length 1 (T, D); tokens after CLIP's 77th are not read."""
        return self._checked(self.encoder.embed_texts(sentence_tokens(texts, self.source)))

    def cosines(self, images: Sequence[npt.NDArray[np.uint8]], texts: Sequence[str]) -> list[float]:
        """Cosine of each image and its text."""
        found: list[float] = (self.embed_images(images) * self.embed_texts(texts)).sum(dim=-1).tolist()
        return found

    def _checked(self, embeddings: "torch.Tensor") -> "torch.Tensor":
        check_finite(embeddings, name=self.source.name)
        return embeddings


class ClipScore:
    """Scores images by a loaded CLIP."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    def __call__(self, images: Sequence[npt.NDArray[np.uint8]], prompts: Sequence[Prompt]) -> Iterator[Verdict]:
        """Cosines, in order."""
        texts = [prompt.text for prompt in prompts]
        empty, *tokens = sentence_tokens(["", *texts], self.clip.source)
        for cosine, read in zip(self.clip.cosines(images, texts), tokens, strict=True):
            cut = "" if read[-1] == empty[-1] else f", the prompt cut off at {len(read)} tokens"
            yield Verdict(values={CLIP_SCORE: cosine}, seen=f"cosine {cosine:.3f}{cut}")


def clip_score_judge(name: str, config: "EvaluateConfig") -> JudgeSource:
    """The judge of a CLIP: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG. Raises UserError if it is unavailable."""
    source = resolve_clip(name)
    return JudgeSource(
        version=f"{source.fingerprint} {config.judge_dtype}", load=lambda: ClipScore(Clip(source, Placement.of(config)))
    )
