"""Sample grids: a VAE that computes NaN is named, and no black grid is written."""

from pathlib import Path

import pytest
import torch

from foundry.errors import NotFiniteOutput
from model.dit import DiT
from model.dit_config import DiTConfig
from model.encoders.text_encoder import TextEncoderConfig, load_text_encoder
from tests.model.tiny_parts import pipeline_config, poison_vae, save_tiny_t5, save_tiny_vae, tiny_dit, tiny_vae
from trainer.config.running import WatchConfig
from trainer.monitoring.sample_grids import SampleGrids, Subjects

CLASSES = DiTConfig(sample_size=16, width=48, depth=1, num_heads=4, conditioning="class", num_classes=2)


@pytest.mark.parametrize("conditioning", ["text", "class"])
def test_a_vae_that_computes_nan_draws_no_black_grid(tmp_path: Path, *, conditioning: str) -> None:
    t5, vae = save_tiny_t5(tmp_path / "t5"), save_tiny_vae(tmp_path / "vae")
    config = pipeline_config(text_encoder=t5, vae=vae)
    torch.manual_seed(0)
    if conditioning == "class":
        network = DiT(CLASSES).eval()
        subjects = Subjects(texts=("owl", "key"), captions=None, null_caption=None, labels=(0, 1))
    else:
        network = tiny_dit()
        encoder = load_text_encoder(TextEncoderConfig(name=str(t5), dtype="float32", max_caption_tokens=20))
        subjects = Subjects(texts=("owl",), captions=encoder.encode(["owl"]), null_caption=encoder.null_captions())
    watch = WatchConfig(sample_steps=1)
    sound = SampleGrids(tmp_path, pipeline=config, subjects=subjects, vae=tiny_vae(vae), config=watch)
    assert sound.draw(network, 0).is_file()
    broken = SampleGrids(tmp_path, pipeline=config, subjects=subjects, vae=tiny_vae(poison_vae(vae)), config=watch)
    with pytest.raises(NotFiniteOutput, match=f"the VAE {vae} decodes finite latents to NaN"):
        broken.draw(network, 1)
    assert len(list((tmp_path / "samples").iterdir())) == 1
