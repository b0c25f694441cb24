"""Captions to features: those of transformers, without padding, in any batch; the null caption; fingerprints of encoders."""

import importlib.util
from pathlib import Path

import pytest
import torch
from diffusers import PixArtAlphaPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from foundry.errors import UserError
from model.dit import Captions
from model.encoders.frozen_parts import find_part, stored_tensors
from model.encoders.text_encoder import TextEncoder, TextEncoderConfig, batches_by_length, clean_captions, load_text_encoder
from tests.model.tiny_parts import CAPTION_WIDTH, save_tiny_t5, tiny_text_encoder

CAPTIONS = ["a red owl", "", "the large blue key on the left, a small owl", "owl " * 40, "key"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return tiny_text_encoder(folder)


def padded(folder: Path, captions: list[str], *, max_length: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and mask as diffusers' pipelines make them: every caption filled up to the limit."""
    tokenizer = tiny_text_encoder(folder).tokenizer
    inputs = tokenizer(captions, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        features = T5EncoderModel.from_pretrained(folder)(**inputs).last_hidden_state
    return features, inputs.attention_mask


def test_features_are_those_of_transformers_without_the_padding(folder: Path, encoder: TextEncoder) -> None:
    found = encoder.encode(CAPTIONS)
    expected = Captions.from_padded(*padded(folder, [caption.lower().strip() for caption in CAPTIONS]))
    assert found.lengths.tolist() == expected.lengths.tolist() == [4, 1, 12, 20, 2]
    assert found.tokens.shape == (39, CAPTION_WIDTH)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_batch_tokens", [20, 45, 8192])
def test_a_caption_has_the_same_features_in_every_batch(folder: Path, encoder: TextEncoder, max_batch_tokens: int) -> None:
    together = tiny_text_encoder(folder, max_batch_tokens=max_batch_tokens).encode(CAPTIONS)
    for index, caption in enumerate(CAPTIONS):
        torch.testing.assert_close(together.select([index]).tokens, encoder.encode([caption]).tokens, rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(1, 120), max_size=60), st.integers(120, 600))
def test_batches_hold_each_caption_once_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    batches = list(batches_by_length(lengths, max_tokens=max_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[index] for index in batch) <= max_tokens for batch in batches)
    # No batch is smaller than it must be: the next caption would not have fitted.
    assert all((len(batch) + 1) * max(lengths[index] for index in batch) > max_tokens for batch in batches[:-1])


def test_the_null_caption_is_the_empty_one_with_its_own_mask(folder: Path, encoder: TextEncoder) -> None:
    features, mask = padded(folder, [""])
    null = encoder.null_captions(3)
    assert null.lengths.tolist() == [1, 1, 1] and mask.sum() == 1
    torch.testing.assert_close(null.tokens, features[0, :1].expand(3, -1), rtol=1e-4, atol=1e-5)


def test_nothing_to_encode_is_no_error(encoder: TextEncoder) -> None:
    assert encoder.encode([]).tokens.shape == (0, CAPTION_WIDTH) and encoder.count_tokens([]) == []


def test_features_can_be_trained_on(encoder: TextEncoder) -> None:
    weight = torch.ones(CAPTION_WIDTH, requires_grad=True)
    (encoder.encode(["owl"]).tokens * weight).sum().backward()  # tensors of inference mode would refuse
    assert weight.grad is not None


def test_what_is_cut_is_counted(encoder: TextEncoder) -> None:
    assert encoder.count_tokens(CAPTIONS) == [4, 1, 12, 41, 2]
    assert encoder.count_cut_tokens(CAPTIONS) == [0, 0, 0, 21, 0]


def test_cleaning_is_that_of_diffusers() -> None:
    raw = ["  A Red   OWL ", "see http://owls.com &amp; <b>MORE</b> keys.jpg"]
    assert clean_captions(raw, "none") == raw
    pipeline = PixArtAlphaPipeline.__new__(PixArtAlphaPipeline)  # no parts: its text functions need none
    assert clean_captions(raw, "lower") == pipeline._text_preprocessing(raw, clean_caption=False)
    if importlib.util.find_spec("bs4") is None:
        with pytest.raises(UserError, match="pip install beautifulsoup4 ftfy"):
            clean_captions(raw, "thorough")
    else:
        assert clean_captions(raw, "thorough") == pipeline._text_preprocessing(raw, clean_caption=True)
        assert "http" not in clean_captions(raw, "thorough")[1]


def test_a_fingerprint_knows_weights_and_vocabulary_but_not_dtype_or_files(
    folder: Path, encoder: TextEncoder, tmp_path: Path
) -> None:
    expected = encoder.fingerprint()
    rounded = load_text_encoder(TextEncoderConfig(name=str(folder), dtype="bfloat16"))
    assert rounded.model.dtype == torch.bfloat16 and rounded.fingerprint() == expected
    rounded.model.save_pretrained(tmp_path / "split", max_shard_size="30KB")
    encoder.tokenizer.save_pretrained(tmp_path / "split")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 1
    assert tiny_text_encoder(tmp_path / "split").fingerprint() == expected
    # With 8-bit weights in memory the files are read; they must tell the same.
    quantised = TextEncoder(
        encoder.model,
        encoder.tokenizer,
        config=TextEncoderConfig(name="mini", quantisation="torchao"),
        part=find_part(str(tmp_path / "split"), "text_encoder"),
    )
    assert quantised.fingerprint() == expected
    assert tiny_text_encoder(save_tiny_t5(tmp_path / "other", seed=1)).fingerprint() != expected
    with torch.no_grad():
        rounded.model.encoder.block[1].layer[1].DenseReluDense.wo.weight[0] += 0.1
    assert rounded.fingerprint() != expected


@pytest.mark.parametrize(("quantisation", "error"), [("bitsandbytes", 0.05), ("torchao", 0.05), ("bitsandbytes_4bit", 0.3)])
def test_quantised_weights_need_their_library(tmp_path: Path, quantisation: str, error: float) -> None:
    """With the library the features are nearly the same. Not part of the locked environment: run where it is installed."""
    library, folder = quantisation.removesuffix("_4bit"), save_tiny_t5(tmp_path, width=64)  # 4 bits come in blocks of 64
    config = TextEncoderConfig(name=str(folder), quantisation=quantisation)  # type: ignore[arg-type]
    if importlib.util.find_spec(library) is None:
        with pytest.raises(UserError, match=f"pip install {library}"):
            load_text_encoder(config)
        return
    quantised = load_text_encoder(config)
    found, expected = quantised.encode(["a red owl"]).tokens.float(), tiny_text_encoder(folder).encode(["a red owl"]).tokens
    assert 0 < ((found - expected).norm() / expected.norm()).item() < error
    assert quantised.fingerprint() == tiny_text_encoder(folder).fingerprint()
    if library == "bitsandbytes":  # what model/generation/memory.py counts with
        attention, mlp = (layer[0] for layer in zip(*(block.layer for block in quantised.model.encoder.block), strict=True))
        stored = torch.int8 if quantisation == library else torch.uint8  # two weights of 4 bits in a byte
        assert attention.SelfAttention.q.weight.dtype == mlp.DenseReluDense.wi_0.weight.dtype == stored
        assert mlp.DenseReluDense.wo.weight.dtype == quantised.model.shared.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bits_need_no_library(tmp_path: Path, dtype: str) -> None:
    folder = save_tiny_t5(tmp_path, width=64)
    small = load_text_encoder(TextEncoderConfig(name=str(folder), quantisation="int4", dtype=dtype))  # type: ignore[arg-type]
    found, expected = small.encode(["a red owl"]).tokens, tiny_text_encoder(folder).encode(["a red owl"]).tokens
    assert str(found.dtype) == f"torch.{dtype}"
    assert 0 < ((found.float() - expected).norm() / expected.norm()).item() < 0.3
    assert small.fingerprint() == tiny_text_encoder(folder).fingerprint()
    assert not any(isinstance(module, torch.nn.Linear) for module in small.model.modules())  # `wo` of the MLPs too


def test_a_part_of_a_whole_diffusers_pipeline_is_found(folder: Path, tmp_path: Path) -> None:
    encoder = tiny_text_encoder(folder)
    encoder.model.save_pretrained(tmp_path / "text_encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert tiny_text_encoder(tmp_path).fingerprint() == encoder.fingerprint()


def test_what_is_not_an_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no text_encoder in nowhere"):
        load_text_encoder(TextEncoderConfig(name="./nowhere"))
    with pytest.raises(UserError, match="is unavailable"):
        load_text_encoder(TextEncoderConfig(name="somebody/something"))
    with pytest.raises(UserError, match="holds no text_encoder: expected config.json"):
        load_text_encoder(TextEncoderConfig(name=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no weights as safetensors"):
        load_text_encoder(TextEncoderConfig(name=str(tmp_path)))
    part = find_part(str(folder), "text_encoder")
    with pytest.raises(UserError, match="holds no tensor nothing"):
        list(stored_tensors(part.folder, ["nothing"]))
    T5EncoderModel.from_pretrained(folder).save_pretrained(tmp_path / "cut")
    tiny_text_encoder(folder).tokenizer.save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    whole = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read as a T5 encoder"):
        load_text_encoder(TextEncoderConfig(name=str(tmp_path / "cut")))
    (tmp_path / "cut" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"holds no tokenizer: expected tokenizer.json or spiece\.model"):
        load_text_encoder(TextEncoderConfig(name=str(tmp_path / "cut")))
    (tmp_path / "cut" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cut cannot be read as a tokenizer .KeyError"):
        load_text_encoder(TextEncoderConfig(name=str(tmp_path / "cut")))
    (tmp_path / "tokenizer.json").rename(tmp_path / "cut" / "tokenizer.json")
    del whole["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    save_file(whole, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack encoder\.block\.1\.layer\.1\.DenseReluDense\.wo\.weight:"):
        load_text_encoder(TextEncoderConfig(name=str(tmp_path / "cut")))


def test_settings_that_make_no_sense_are_all_named() -> None:
    with pytest.raises(ValueError, match=r"dtype must be .*; max_batch_tokens must be"):
        TextEncoderConfig(name="mini", dtype="float16", max_batch_tokens=10)  # type: ignore[arg-type]
