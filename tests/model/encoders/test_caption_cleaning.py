"""Prompts of imported checkpoints are read as their authors and diffusers read them; our own as they were trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline

from foundry.errors import UserError
from model.convert import ConvertConfig, main
from model.dit import Captions
from model.dit_config import UnstatedConfig
from model.encoders.text_encoder import clean_captions
from model.formats.checkpoint import PipelineConfig, read_pipeline_config, save_checkpoint
from model.formats.official_files import official_state, write_weights
from model.generation.pipeline import open_pipeline
from model.generation.pipeline_parts import RuntimeConfig
from model.generation.request import GenerationRequest
from model.sampling import SamplingConfig
from tests.model.tiny_networks import CLASS, TEXT, random_network
from tests.model.tiny_parts import SIDE_PX, save_tiny_checkpoint

NASTY = (
    "  A RED   Owl ",
    "see https://owls.com/a?b=1 &amp; <b>MORE</b> keys.jpg",
    "&amp;amp;lt;owl&amp;amp;gt; @night #12345 “blue” key -- 1024x768",
    "Ã¼ber the blue owl\\n\\n(key_01.png), free shipping, click for more 八",
)
STEPS = SamplingConfig(num_inference_steps=2)


def _convert(source: str, target: str, checkpoint: Path, out: Path, **settings: Any) -> Path:
    values: dict[str, Any] = {"copy_parts": False, "unstated": UnstatedConfig(num_heads=4)} | settings
    assert main(ConvertConfig(checkpoint=str(checkpoint), out=str(out), source=source, target=target, **values)) == 0  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("kind", [PixArtAlphaPipeline, PixArtSigmaPipeline])
def test_an_imported_pipeline_reads_prompts_as_diffusers_at_its_defaults(tmp_path: Path, kind: Any) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path, objective="rectified_flow")
    ours = _convert("native", "diffusers", checkpoint, tmp_path / "ours", copy_parts=True)
    kind(**PixArtAlphaPipeline.from_pretrained(ours).components).save_pretrained(tmp_path / "published")
    imported = _convert("diffusers", "native", tmp_path / "published", tmp_path / "imported")
    pipeline, theirs = (
        open_pipeline(imported, runtime=RuntimeConfig(dtype="float32")),
        kind.from_pretrained(tmp_path / "published"),
    )
    theirs.set_progress_bar_config(disable=True)
    embeddings, mask, _, _ = theirs.encode_prompt(list(NASTY), do_classifier_free_guidance=False, clean_caption=True)
    expected = Captions.from_padded(embeddings, mask)
    found = pipeline.encode(NASTY)
    assert found.lengths.tolist() == expected.lengths.tolist()
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-4, atol=1e-5)
    drawn = pipeline(GenerationRequest(prompts=NASTY, seed=3, sampling=STEPS), output="latents")
    size = {"height": SIDE_PX, "width": SIDE_PX, "use_resolution_binning": False}  # there is no table of so few pixels
    generators = [torch.Generator().manual_seed(3) for _ in NASTY]
    latents = theirs(list(NASTY), num_inference_steps=2, generator=generators, output_type="latent", **size).images
    torch.testing.assert_close(torch.stack([one.latents for one in drawn]), latents, rtol=1e-3, atol=1e-3)


def test_nasty_prompts_tell_the_ways_of_cleaning_apart() -> None:
    for prompt in NASTY[1:]:
        assert clean_captions([prompt], "thorough") != clean_captions([prompt], "lower")


def test_files_of_the_authors_are_cleaned_thoroughly_unless_a_flag_says_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for tokens in (120, 300):
        network = random_network(TEXT, max_caption_tokens=tokens)
        path = tmp_path / f"{tokens}.pth"
        write_weights(path, official_state(network.state_dict(), network.config), wrapped=True)
        native = _convert("official", "native", path, tmp_path / f"{tokens}")
        assert read_pipeline_config(native).caption_cleaning == "thorough"
        assert "captions: thorough cleaning; where the network" in capsys.readouterr().out
        plain = _convert("official", "native", path, tmp_path / f"{tokens}-plain", caption_cleaning="lower")
        assert read_pipeline_config(plain).caption_cleaning == "lower"
        assert "cleaning" not in capsys.readouterr().out
    network = random_network(CLASS)
    write_weights(tmp_path / "dit.pt", official_state(network.state_dict(), network.config), wrapped=False)
    assert read_pipeline_config(_convert("dit", "native", tmp_path / "dit.pt", tmp_path / "dit")).caption_cleaning == "lower"
    assert "cleaning" not in capsys.readouterr().out


@pytest.mark.parametrize("cleaning", ["none", "lower", "thorough"])
def test_our_own_networks_keep_their_cleaning_through_every_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cleaning: Any
) -> None:
    pipeline = PipelineConfig(objective="diffusion", resolution=128, caption_cleaning=cleaning)
    native = save_checkpoint(tmp_path / "in", random_network(TEXT), pipeline)
    folder = _convert("native", "diffusers", native, tmp_path / "diffusers")
    assert ("called with clean_caption=False" in capsys.readouterr().out) == (cleaning != "thorough")
    back = _convert("diffusers", "native", folder, tmp_path / "back")
    again = _convert("native", "native", back, tmp_path / "again")
    assert [read_pipeline_config(one).caption_cleaning for one in (back, again)] == [cleaning, cleaning]
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_caption_cleaning": "all"}))
    with pytest.raises(UserError, match=r"model_index\.json: _caption_cleaning: expected one of none, .*, found 'all'"):
        _convert("diffusers", "native", folder, tmp_path / "none")
