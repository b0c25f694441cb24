"""Text encoders besides T5: features are those of transformers, without padding and without the template before a caption."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from foundry.errors import UserError
from model.encoders.frozen_parts import find_part, stored_tensors
from model.encoders.text_encoder import TextEncoder, TextEncoderConfig, load_text_encoder
from tests.model.tiny_language_models import KINDS, POSITIONS, WIDTH, save_language_model
from tests.model.tiny_parts import save_tiny_vae

CAPTIONS = ["a red owl", "", "an owl on the left, a key on the right of it", "é"]
TEMPLATE = "say: {caption}. so"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save_language_model(root / kind, kind) for kind in KINDS}


def load(folder: Path, **settings: Any) -> TextEncoder:
    asked = {"dtype": "float32", "max_caption_tokens": 40, "cleaning": "none", **settings}
    return load_text_encoder(TextEncoderConfig(name=str(folder), **asked))


def reference(folder: Path, ids: list[int], hidden_state: int = -1) -> torch.Tensor:
    """The hidden states of tokens, alone and without a mask, as the whole model computes them."""
    kind = find_part(str(folder), "text_encoder")
    if kind.folder.name == "t5gemma":
        model: Any = transformers.T5GemmaForConditionalGeneration.from_pretrained(
            folder, attn_implementation="eager"
        ).get_encoder()
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").model
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    return states[hidden_state][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("hidden_state", [-1, -2])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers_without_the_padding(folders: dict[str, Path], kind: str, hidden_state: int) -> None:
    encoder = load(folders[kind], hidden_state=hidden_state)
    found = encoder.encode(CAPTIONS)
    end = [encoder.tokenizer.eos_token_id] if kind == "qwen3" else []  # whose tokenizer puts no token around a text
    ids = [[*encoder.tokenizer(caption).input_ids, *end] for caption in CAPTIONS]
    assert found.lengths.tolist() == [len(row) for row in ids] and found.lengths[1] == 1 and encoder.width == WIDTH
    for own, row in zip(found.tokens.split(found.lengths.tolist()), ids, strict=True):
        torch.testing.assert_close(own, reference(folders[kind], row, hidden_state), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_is_read_and_its_head_left_out(folders: dict[str, Path], kind: str) -> None:
    encoder = load(folders[kind], template=TEMPLATE, max_caption_tokens=50)
    found = encoder.encode(CAPTIONS)
    head = len(encoder.tokenizer("say:").input_ids)
    for own, caption in zip(found.tokens.split(found.lengths.tolist()), CAPTIONS, strict=True):
        ids = encoder.tokenizer(TEMPLATE.replace("{caption}", caption)).input_ids
        expected = reference(folders[kind], ids)
        assert head - 1 <= len(ids) - len(own) <= head + 1  # the blank before a caption may be a token, and of either
        torch.testing.assert_close(own, expected[len(ids) - len(own) :], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["gemma2", "qwen3"])
def test_a_chat_is_the_tokenizers_with_one_start(folders: dict[str, Path], kind: str) -> None:
    encoder = load(folders[kind], chat=True, template="say: {caption}")
    whole = encoder.tokenizer.apply_chat_template(
        [{"role": "user", "content": "say: an owl"}], tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    found = encoder.encode(["an owl"]).tokens
    torch.testing.assert_close(found, reference(folders[kind], whole)[-len(found) :], rtol=1e-3, atol=1e-3)
    assert not encoder.config.chat and encoder.config.template.count("{caption}") == 1
    # The whole template is what features and checkpoints record: it alone gives the same features.
    again = load(folders[kind], template=encoder.config.template)
    assert torch.equal(again.encode(CAPTIONS).tokens, encoder.encode(CAPTIONS).tokens)
    assert again.fingerprint() == encoder.fingerprint()


def test_captions_are_cut_and_templates_are_not(folders: dict[str, Path]) -> None:
    whole, cut = (
        load(folders["qwen3"], template=TEMPLATE, max_caption_tokens=50),
        load(folders["qwen3"], template=TEMPLATE, max_caption_tokens=10),
    )
    (count,), (left_out,) = whole.count_tokens(CAPTIONS[2:3]), cut.count_cut_tokens(CAPTIONS[2:3])
    assert left_out == count - 10 > 0 and cut.encode(CAPTIONS[2:3]).lengths.tolist() == [10]
    # Tokens of a causal model see none behind them: the beginning of the caption is the same, its end is that of the template.
    same = torch.isclose(cut.encode(CAPTIONS[2:3]).tokens, whole.encode(CAPTIONS[2:3]).tokens[:10], atol=1e-4).all(dim=1)
    assert same.tolist() == [True] * 6 + [False] * 4
    (tokens,) = cut._tokenize(CAPTIONS[2:3])
    assert cut.tokenizer.decode(tokens.ids).endswith(". so") and tokens.num_kept == 10


def test_a_load_reports_no_tensors_that_are_left_out(folders: dict[str, Path]) -> None:
    reported: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = reported.append  # type: ignore[assignment,method-assign]
    library = logging.getLogger("transformers")
    library.addHandler(handler)
    try:
        load(folders["t5gemma"])
    finally:
        library.removeHandler(handler)
    assert not reported


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_a_whole_model_hold_the_encoders_tensors(folders: dict[str, Path], kind: str) -> None:
    """Whose fingerprint is taken from the files where the weights in memory are quantised."""
    encoder = load(folders[kind])
    names = [name for name, _ in encoder.model.named_parameters()]
    if kind == "t5gemma":  # its embeddings are tied to the decoder's, under whose name alone they may be stored
        names = [name for name in names if "embed_tokens" not in name]
    stored = dict(stored_tensors(folders[kind], names))
    assert all(torch.equal(stored[name], dict(encoder.model.named_parameters())[name]) for name in names)
    assert load(folders[kind], dtype="bfloat16").fingerprint() == encoder.fingerprint()


def test_what_cannot_be_read_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"template must be a text that has \{caption\} once"):
        TextEncoderConfig(name="mini", template="describe it")
    with pytest.raises(ValueError, match="hidden_state must be -1 or less"):
        TextEncoderConfig(name="mini", hidden_state=0)
    with pytest.raises(UserError, match=rf"at most {POSITIONS} tokens, found max_caption_tokens 300: give fewer"):
        load(folders["gemma2"], max_caption_tokens=300)
    with pytest.raises(UserError, match=r"found max_caption_tokens 60 and \d+ of the template: give fewer"):
        load(folders["gemma2"], max_caption_tokens=60, template=TEMPLATE)
    with pytest.raises(UserError, match="max_caption_tokens 2 leaves no place for a caption: 4 tokens of the template"):
        load(folders["qwen3"], max_caption_tokens=2, template=TEMPLATE)
    with pytest.raises(UserError, match="has 3 layers, found hidden_state -5: give one from -1 to -4"):
        load(folders["qwen3"], hidden_state=-5)
    bare = save_language_model(tmp_path / "bare", "qwen3")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="the tokenizer of .*bare has no chat template: write one as the template"):
        load(bare, chat=True)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"bare holds no tokenizer: expected tokenizer\.json or"):
        load(bare)
    path = bare / "config.json"
    path.write_text(path.read_text().replace('"model_type": "qwen3"', '"model_type": "llama"'))
    with pytest.raises(
        UserError, match="expected a text encoder of type t5, t5gemma, .*, qwen3, found llama: give another model"
    ):
        load(bare)
    with pytest.raises(UserError, match="there is no text_encoder in"):
        load(save_tiny_vae(tmp_path / "vae") / "none")
