"""Endless batches of scenes for training llava-mini, rendered in a separate process.

Batch number n holds the scenes n * batch_size onwards of one seed, so that a resumed run continues with the scenes it has not
seen. Tensor legend: B batch, P patches of a side, L tokens.
"""

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from examples.openmoji.backgrounds import COLORS, IMAGE_SIZE_PX, PATTERNS
from examples.openmoji.composition import PLACES, Scene, draw_scene, render
from examples.openmoji.descriptions import describe
from examples.openmoji.kinds import KIND_NAMES
from examples.openmoji.llava_mini import IMAGE_TOKEN, PATCH_SIZE_PX, PROMPTS, chat_text
from examples.openmoji.sprites import sprite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Each patch's labels, in this order, and how many classes each has. Kind 0 is "no object".
LABEL_SIZES = {"kind": 1 + len(KIND_NAMES), "size": 2, "place": len(PLACES), "color": len(COLORS), "pattern": len(PATTERNS)}
IGNORED = -100
_PATCHES = IMAGE_SIZE_PX // PATCH_SIZE_PX
# A patch of which less is covered counts as empty; between the two shares it is not asked about.
_EMPTY_SHARE, _COVERED_SHARE = 0.04, 0.2
_PROMPT_WEIGHTS = {"dense": 0.7, "medium": 0.15, "short": 0.15}
# The longest caption of each kind in the tokens of llava-mini, with the end of text.
_CAPTION_TOKENS = {"dense": 108, "medium": 20, "short": 10}
_JPEG_SHARE = 0.6
_JPEG_QUALITIES = (95, 95, 90, 80)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Scenes with the labels of their patches, or with tokens; the other is None."""

    pixels: Tensor
    """uint8 (B, 3, 64, 64)."""
    patch_labels: Tensor | None = None
    """int64 (B, P * P, 5), in the order of LABEL_SIZES; IGNORED where there is no answer."""
    prompt: str = ""
    """Prompt of PROMPTS that all of these captions answer, so that none is padded to the length of a longer kind."""
    input_ids: Tensor | None = None
    """int64 (B, L): prompt with the image's tokens, caption, end of text, padding on the right."""
    image_start: int = 0
    """Start of the image's tokens in each row."""
    answer_start: int = 0
    """Start of the caption in each row."""
    answer_mask: Tensor | None = None
    """bool (B, L - answer_start): the tokens of the caption and the end of text."""


def batches(
    *, seed: int, batch_size: int, first_batch: int, tokenizer_folder: str | None, share: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Endless batches from `first_batch` on: with patch labels, or with tokens where a tokenizer is named.

    `share` is (rank, number of ranks): each rank gets its part of every batch.
    """
    assert batch_size % share[1] == 0, f"a batch of {batch_size} does not divide into {share[1]}"
    dataset = _Scenes(seed=seed, batch_size=batch_size, first_batch=first_batch, tokenizer_folder=tokenizer_folder, share=share)
    return iter(DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=8))


class _Scenes(IterableDataset[Batch]):
    def __init__(
        self, *, seed: int, batch_size: int, first_batch: int, tokenizer_folder: str | None, share: tuple[int, int]
    ) -> None:
        self.seed, self.batch_size, self.first_batch = seed, batch_size, first_batch
        self.tokenizer_folder, self.share = tokenizer_folder, share

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        tokenizer = None
        if self.tokenizer_folder:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_folder)
        number = self.first_batch
        while True:
            rank, ranks = self.share
            indices = range(number * self.batch_size + rank, (number + 1) * self.batch_size, ranks)
            scenes = [draw_scene(seed=self.seed, index=index) for index in indices]
            pixels = torch.from_numpy(np.stack([_seen_pixels(scene, seed=self.seed) for scene in scenes])).permute(0, 3, 1, 2)
            if tokenizer is None:
                yield Batch(pixels=pixels, patch_labels=_stacked_patch_labels(scenes))
            else:
                rng = random.Random(f"{self.seed}/{number}/prompt")
                prompt = rng.choices(list(_PROMPT_WEIGHTS), list(_PROMPT_WEIGHTS.values()))[0]
                yield _captions_batch(pixels, scenes, tokenizer, prompt=prompt, seed=self.seed)
            number += 1


def _seen_pixels(scene: Scene, *, seed: int) -> npt.NDArray[np.uint8]:
    """The scene as a reader would see it: mostly through JPEG of some quality."""
    from PIL import Image

    pixels = render(scene)
    rng = random.Random(f"{seed}/{scene.index}/jpeg")
    if rng.random() >= _JPEG_SHARE:
        return pixels
    buffer = io.BytesIO()
    subsampling = rng.choice(("4:4:4", "4:4:4", "4:2:0"))
    Image.fromarray(pixels).save(buffer, "JPEG", quality=rng.choice(_JPEG_QUALITIES), subsampling=subsampling)
    return np.array(Image.open(buffer))


def _stacked_patch_labels(scenes: list[Scene]) -> Tensor:
    return torch.from_numpy(np.stack([patch_labels(scene) for scene in scenes]))


def patch_labels(scene: Scene) -> npt.NDArray[np.int64]:
    """Content of each patch, (P * P, 5) in the order of LABEL_SIZES."""
    labels = np.zeros((_PATCHES, _PATCHES, len(LABEL_SIZES)), dtype=np.int64)
    labels[..., 1:3] = IGNORED
    labels[..., 3], labels[..., 4] = COLORS.index(scene.color), PATTERNS.index(scene.pattern)
    largest = np.zeros((_PATCHES, _PATCHES))
    places = list(PLACES)
    for thing in scene.objects:
        alpha = np.zeros((IMAGE_SIZE_PX, IMAGE_SIZE_PX))
        box = alpha[thing.y_px : thing.y_px + thing.height_px, thing.x_px : thing.x_px + thing.width_px]
        box[:] = sprite(thing.kind, thing.size_px)[..., 3] / 255
        covered = alpha.reshape(_PATCHES, PATCH_SIZE_PX, _PATCHES, PATCH_SIZE_PX).mean(axis=(1, 3))
        ours = covered > largest
        largest = np.maximum(largest, covered)
        answer = (1 + KIND_NAMES.index(thing.kind), ("small", "large").index(thing.size), places.index(thing.place))
        labels[ours & (covered >= _COVERED_SHARE), :3] = answer
    labels[(largest >= _EMPTY_SHARE) & (largest < _COVERED_SHARE), 0] = IGNORED
    return labels.reshape(-1, len(LABEL_SIZES))


def _captions_batch(
    pixels: Tensor, scenes: list[Scene], tokenizer: "PreTrainedTokenizerFast", *, prompt: str, seed: int
) -> Batch:
    """Question and caption of each scene, padded to the one length of the prompt's captions."""
    question = tokenizer(chat_text(PROMPTS[prompt]), add_special_tokens=False).input_ids
    length = len(question) + _CAPTION_TOKENS[prompt]
    input_ids = torch.full((len(scenes), length), tokenizer.pad_token_id)
    answer_mask = torch.zeros(len(scenes), _CAPTION_TOKENS[prompt], dtype=torch.bool)
    for row, scene in enumerate(scenes):
        caption = " " + getattr(describe(scene, seed=seed), prompt)
        ids = [*question, *tokenizer(caption, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        assert len(ids) <= length, f"{len(ids)} tokens do not fit into {length}"
        input_ids[row, : len(ids)] = torch.tensor(ids)
        answer_mask[row, : len(ids) - len(question)] = True
    return Batch(
        pixels=pixels,
        prompt=prompt,
        input_ids=input_ids,
        image_start=question.index(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)),
        answer_start=len(question),
        answer_mask=answer_mask,
    )
