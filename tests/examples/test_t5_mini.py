"""t5-mini: a plain T5 encoder whose features tell what belongs together in captions it has never seen."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import T5EncoderModel

from examples.openmoji.probe_t5 import ProbeConfig, main
from examples.openmoji.probes import probe
from model.encoders.text_encoder import TextEncoderConfig, load_text_encoder

T5 = Path(__file__).resolve().parents[2] / "model/pretrained/t5-mini"


CAPTION = "A large owl is on the left. The background is plain pink."


@cache
def _figures() -> dict[str, float]:
    unread = [f"{name}_of_embeddings" for name in ("objects", "background", "size", "grid")]
    return probe(ProbeConfig(count=400, train_count=4000), without=["grid", *unread])


def test_it_is_a_plain_t5_encoder() -> None:
    model = T5EncoderModel.from_pretrained(T5)
    assert isinstance(model, T5EncoderModel)
    assert {path.name for path in T5.iterdir()} == {
        *("LICENSE", "config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["objects", "background", "place", "size"])
def test_linear_probes_find_what_a_caption_says(name: str) -> None:
    assert _figures()[name] >= 0.98


@pytest.mark.slow
def test_the_words_alone_do_not_tell_which_place_belongs_to_which_object() -> None:
    assert _figures()["place_of_embeddings"] < 0.3


def test_the_features_of_a_word_depend_on_what_is_said_of_it() -> None:
    encoder = load_text_encoder(TextEncoderConfig(name="mini", dtype="float32"))
    here, there, again = (
        encoder.encode([text]).tokens for text in (CAPTION, CAPTION.replace("left", "right"), CAPTION.upper())
    )
    owl = encoder.tokenizer.tokenize(CAPTION.lower()).index("▁owl")
    assert not torch.allclose(here[owl], there[owl], atol=0.1)
    torch.testing.assert_close(here, again)  # the pipeline reads captions in lower case


def test_the_probes_print_their_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ProbeConfig(form="prompt", count=50, train_count=400)) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["num_captions"] == 50 and 0 <= printed["grid"] <= 1
