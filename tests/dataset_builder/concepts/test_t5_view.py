"""The part of a text that T5 reads, by the tokenizer's own offsets."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dataset_builder.concepts.t5_view import T5Config, T5View, TextView
from foundry.errors import UserError

WORDS = ["owl", "red", "fish", "large", "tiny", "stone", "key", "apple", "tree", "lamp", "boat", "green", "field", "cloud"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer shaped like T5's: unigram pieces with a space mark, </s> at the end, and a truncation that must not count."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -3.0), ("▁owl", -1.0), ("▁red", -1.0), ("s", -2.0)]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((letter, -5.0) for letter in "abcdefghijklmnopqrtuvwxyz")], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding()
    path = tmp_path_factory.mktemp("tokenizer")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(path)
    return str(path)


def test_tokens_are_counted_whole_and_cut_where_the_encoder_stops(folder: str) -> None:
    view = T5View(T5Config(tokenizer=folder, max_tokens=4))
    text = "red owls red owl"  # ▁red ▁owl s ▁red ▁owl </s>
    assert view.measure(["", "red", "red owls", text]) == [TextView(1, 0), TextView(2, 3), TextView(4, 8), TextView(6, 8)]
    assert text[:8] == "red owls"
    assert view.measure([]) == []


def test_offsets_are_of_the_text_as_written(folder: str) -> None:
    view = T5View(T5Config(tokenizer=folder, max_tokens=3))
    assert view.measure(["red ﬁ owl"])[0].cut_char <= len("red ﬁ")  # NFKC writes the ligature as two letters


@given(
    words=st.lists(st.sampled_from(["red", "owl", "owls", "xyz", "\N{OWL}", "é"]), max_size=12), max_tokens=st.integers(3, 9)
)
@settings(max_examples=60, deadline=None)
def test_the_part_read_is_what_fits(folder: str, words: list[str], max_tokens: int) -> None:
    text = " ".join(words)
    view = T5View(T5Config(tokenizer=folder, max_tokens=max_tokens))
    (whole,) = view.measure([text])
    (read,) = view.measure([text[: whole.cut_char]])
    assert (whole.cut_char == len(text)) == (whole.num_t5_tokens <= max_tokens)
    assert read.num_t5_tokens <= max_tokens


def test_the_shipped_tokenizer_is_found_by_its_name() -> None:
    view = T5View(T5Config(tokenizer="mini"))
    (short, long) = view.measure(["a red owl", "a red owl " * 300])
    assert short.cut_char == 9
    assert long.num_t5_tokens > 120
    assert 0 < long.cut_char < 3000
    described = view.describe()
    assert (described["tokenizer"], described["max_tokens"], len(described["fingerprint"])) == ("mini", 120, 16)
    assert T5Config.as_described(described, default=T5Config(tokenizer="x", max_tokens=9)) == T5Config(tokenizer="mini")


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but spiece.model, trained as T5's was: separate ids for padding, end and unknown, NFKC."""
    folder = tmp_path_factory.mktemp("spiece")
    sentences = (f"{size} {thing}s sit by the {thing} of {size} ﬁre" for size in WORDS for thing in WORDS)
    options: dict[str, Any] = {
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
        "vocab_size": 60,
        "hard_vocab_limit": False,
        "normalization_rule_name": "nmt_nfkc",
    }
    SentencePieceTrainer.train(
        sentence_iterator=sentences, model_prefix=str(folder / "spiece"), model_type="unigram", minloglevel=2, **options
    )
    return folder


def test_spiece_model_counts_as_sentencepiece_itself_does(spiece: Path) -> None:
    texts = ["", "red owls", "A large ﬁsh,  far  away; a tiny owl\nsits.", "stones " * 90, "日本 red"]
    itself = SentencePieceProcessor(model_file=str(spiece / "spiece.model"))
    views = T5View(T5Config(tokenizer=str(spiece), max_tokens=20)).measure(texts)
    assert [view.num_t5_tokens for view in views] == [len(itself.encode(text)) + 1 for text in texts]
    assert itself.decode(itself.encode(texts[3])[:19]) == texts[3][: views[3].cut_char]


def test_auto_is_the_small_worlds_for_its_own_model_alone() -> None:
    auto = T5Config(tokenizer="auto", max_tokens=77)
    assert auto.of_model("mini") == T5Config(tokenizer="mini", max_tokens=77)
    assert auto.of_model("./llava") == T5Config(tokenizer="google/t5-v1_1-xxl", max_tokens=77)
    assert T5Config(tokenizer="mini").of_model("./llava") == T5Config(tokenizer="mini")


def test_what_is_not_a_tokenizer_is_named(tmp_path: Path) -> None:
    view = T5View(T5Config(tokenizer=str(tmp_path)))
    with pytest.raises(UserError, match=f"the T5 tokenizer {tmp_path} cannot be loaded .it has neither"):
        view.measure(["x"])
    (tmp_path / "spiece.model").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="spiece.model is damaged"):
        view.measure(["x"])
    with pytest.raises(UserError, match=r"someone/t5 cannot be loaded .the hub is out of reach.* or `mini` for"):
        T5View(T5Config(tokenizer="someone/t5")).measure(["x"])
    with pytest.raises(ValueError, match="max_tokens"):
        T5Config(max_tokens=1)
