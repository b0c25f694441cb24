"""CLIP: its weights are whole, sentences fit its context, and a batch changes no embedding."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dataset_builder.scores.clip import ClipEncoder, image_pixels, resolve_clip, sentence_tokens, split_sentences
from foundry.errors import UserError
from tests.dataset_builder.tiny_clip import WIDTH, picture

LONG = "A very long sentence about a house with a red door and a green roof and a blue wall and a garden. A dog."


def test_a_clip_that_lacks_tensors_is_refused_by_their_names(clip: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path / "cut")
    weights = load_file(clip / "open_clip_model.safetensors")
    del weights["visual.proj"]
    save_file(weights, tmp_path / "cut" / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r'cut cannot be read as a CLIP .*Missing key.*"visual.proj"'):
        ClipEncoder(resolve_clip(str(tmp_path / "cut")), batch_size=1)


def test_sentences_are_short_enough_and_lose_no_word(clip: Path) -> None:
    source = resolve_clip(str(clip))
    sentences = split_sentences(LONG, source)
    assert " ".join(sentences) == LONG
    assert len(sentences) > 2
    assert (sentence_tokens([*sentences, ""], source)[:, -1] == 0).all()
    assert split_sentences("Dr. Who (a man!) He runs. ", source) == ["Dr. Who (a man!)", "He runs."]
    assert split_sentences("  ", source) == []
    unbreakable = "x" * 500
    assert split_sentences(unbreakable, source) == [unbreakable]


def test_a_batch_changes_no_embedding(clip: Path) -> None:
    source = resolve_clip(str(clip))
    pixels = np.stack([image_pixels(np.array(picture(seed)), source) for seed in range(5)])
    together, alone = (ClipEncoder(source, batch_size=size).embed_images(pixels) for size in (4, 1))
    assert together.shape == (5, WIDTH)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5))
