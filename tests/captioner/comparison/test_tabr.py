"""Images that are drawn again are compared by embeddings of length 1; a drawing that fails is one line."""

from pathlib import Path

import numpy as np
import pytest

from captioner.comparison.sampled import SampledImage
from captioner.comparison.tabr import TabrSettings, draw_captions, load_encoder
from examples.openmoji.composition import render
from examples.openmoji.scene_files import sample
from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits
from tests.captioner.comparison.imported_runs import SCENES
from tests.dataset_builder.tiny_clip import WIDTH, write_tiny_clip


@pytest.mark.parametrize("name", ["mini", "clip"])
def test_an_image_is_most_similar_to_itself(name: str, tmp_path: Path) -> None:
    encoder = load_encoder(name if name == "mini" else str(write_tiny_clip(tmp_path)))
    scenes = [render(sample(SCENES, index).scene) for index in range(3)]
    embeddings = encoder.embed(scenes)
    assert embeddings.shape == (3, 64 * 192 if name == "mini" else WIDTH)
    similar = embeddings @ embeddings.T
    assert np.allclose(np.diag(similar), 1, atol=1e-3)
    assert (similar.argmax(axis=1) == np.arange(3)).all()
    assert np.allclose(encoder.embed(scenes[1:2])[0], embeddings[1], atol=1e-2), "alone as among others"


def test_a_drawing_that_fails_says_what_to_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = SampledImage(image="0", row={}, captions=["An owl.", "A key."], limits=DecodeLimits())
    with pytest.raises(UserError, match="model.generate ended with exit code 2, its message is above"):
        draw_captions([image], checkpoint="nowhere", settings=TabrSettings(), folder=tmp_path / "images")
    assert "expected a checkpoint (transformer/ and pipeline.json) at nowhere" in capfd.readouterr().err
    assert (tmp_path / "images" / "prompts.jsonl").read_text().count("\n") == 2
