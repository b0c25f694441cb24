"""CLIP score: the cosine between an image and its prompt, by any CLIP of open_clip.

The cosine itself, from -1 to 1: others publish it times 100, or times 2.5 with negatives at 0. It belongs to its CLIP: by
another one it is another figure. The prompt is read as a whole, up to the model's context (77 tokens); what is cut off is said.

Source: Hessel et al. 2021 (arXiv 2104.08718), equation 1, without its weight of 2.5.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dataset_builder.scores.clip import resolve_clip, sentence_tokens
from trainer.evaluation.benchmark import JudgeSource, Prompt, Verdict
from trainer.evaluation.judges.clip import Clip
from trainer.evaluation.judges.models import Placement

if TYPE_CHECKING:
    from trainer.evaluation.config import EvaluateConfig

CLIP_SCORE = "clip_score"


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
    """The judge of a CLIP: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG. Raises UserError where it cannot be had."""
    source = resolve_clip(name)
    return JudgeSource(
        version=f"{source.fingerprint} {config.judge_dtype}", load=lambda: ClipScore(Clip(source, Placement.of(config)))
    )
