"""t5-mini: the encoder of T5 v1.1 at the scale of the small world, and its training.

A diffusion model sees a caption token by token. So each token of an object's sentence learns to tell the object's kind, size,
place, number and relation, each token of the background its colour and pattern, and the mean of all tokens which kind is at
each of the nine places, how many of each kind there are, and the background. A share of the texts is read with gaps instead
and the missing tokens are asked for, which keeps what the labels do not ask about.

Tensor legend: B texts, L tokens of the longest, D width, V vocabulary.
"""

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.openmoji.composition import draw_scene
from examples.openmoji.labelled_texts import LABELS, LabelledText, labelled_text
from examples.openmoji.train_t5 import TrainT5Config
from examples.openmoji.training_loop import Figures, fit, muon_and_adamw, run_processes, save_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

_WIDTH, _MLP_WIDTH, _LAYERS, _HEADS, _HEAD_WIDTH = 192, 512, 4, 6, 32
_FORM_WEIGHTS = {"dense": 0.45, "prompt": 0.3, "medium": 0.1, "short": 0.05, "alt_text": 0.1}
_LOWER_CASE_SHARE = 0.75
_GAPPED_TEXTS_SHARE, _GAPS_SHARE = 0.2, 0.2
_GAPS_WEIGHT = 0.3
_IGNORED = -100
_KINDS, _PLACES = LABELS["kind"], LABELS["place"]
# What the mean of a text's tokens is asked: (number of questions, number of answers to each).
_TEXT_QUESTIONS = {
    "grid": (len(_PLACES), len(_KINDS) + 1),
    "counts": (len(_KINDS), 1 + len(LABELS["number"])),
    "color": (1, len(LABELS["color"])),
    "pattern": (1, len(LABELS["pattern"])),
}


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """Texts with what is asked about them; _IGNORED where there is no answer."""

    input_ids: Tensor
    """int64 (B, L), padded with 0."""
    word_answers: Tensor
    """int64 (B, L, number of LABELS)."""
    text_answers: dict[str, Tensor]
    """int64 (B, questions), by the names of _TEXT_QUESTIONS."""
    missing_ids: Tensor
    """int64 (B, L): the tokens that belong in the gaps of input_ids."""


class TextReader(nn.Module):
    """The encoder with a linear head for each kind of question. The heads are thrown away."""

    def __init__(self, encoder: "T5EncoderModel") -> None:
        super().__init__()
        width, vocabulary = encoder.config.d_model, encoder.config.vocab_size
        self.encoder = encoder
        self.word_head = nn.Linear(width, sum(map(len, LABELS.values())))
        self.text_heads = nn.ModuleDict({name: nn.Linear(width, n * m) for name, (n, m) in _TEXT_QUESTIONS.items()})
        self.gap_head = nn.Linear(width, vocabulary)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids (B, L) -> features of tokens (B, L, D) and their mean over the tokens that are no padding (B, D)."""
        mask = (input_ids != 0).long()
        features = self.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state.float()
        mean = (features * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return features, mean


def train(config: TrainT5Config) -> None:
    """Trains from the state in the run folder."""
    run_processes(_train_rank, config, num_processes=config.schedule.num_processes, seed=config.seed)


def _train_rank(config: TrainT5Config) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    encoder = build_t5(tokenizer)
    reader = TextReader(encoder)
    fit(
        "t5",
        reader,
        text_figures,
        optimizers=muon_and_adamw(reader, inner_matrices(encoder), config.schedule),
        schedule=config.schedule,
        batches=functools.partial(text_batches, config, tokenizer),
        run_dir=Path(config.run_dir),
        save=lambda: save_pretrained(encoder, Path(config.out), processor=tokenizer),
    )


def build_t5(tokenizer: "PreTrainedTokenizerBase") -> "T5EncoderModel":
    """An encoder with random weights (from torch's generator) in float32, for this tokenizer."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=_WIDTH,
        d_kv=_HEAD_WIDTH,
        d_ff=_MLP_WIDTH,
        num_layers=_LAYERS,
        num_heads=_HEADS,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config)


def inner_matrices(encoder: "T5EncoderModel") -> list[nn.Parameter]:
    """The matrices of the layers; word embeddings and position biases are tables, not matrices."""
    named = encoder.encoder.block.named_parameters()
    return [parameter for name, parameter in named if parameter.ndim > 1 and "relative_attention_bias" not in name]


def text_figures(model: TextReader, batch: TextBatch) -> Figures:
    """The loss of all questions, and for each the share of right answers."""
    features, mean = model(batch.input_ids)
    figures: dict[str, float] = {}
    losses = []
    words = model.word_head(features).float().split([len(answers) for answers in LABELS.values()], dim=-1)
    for name, logits, answers in zip(LABELS, words, batch.word_answers.unbind(-1), strict=True):
        losses += _answered(name, logits, answers, figures)
    for name, (questions, _) in _TEXT_QUESTIONS.items():
        logits = model.text_heads[name](mean).float().unflatten(-1, (questions, -1))
        losses += _answered(f"text_{name}", logits, batch.text_answers[name], figures)
    gaps = batch.missing_ids != _IGNORED
    logits = model.gap_head(features[gaps]).float()
    losses += [_GAPS_WEIGHT * loss for loss in _answered("gaps", logits, batch.missing_ids[gaps], figures)]
    return torch.stack(losses).sum(), figures


def _answered(name: str, logits: Tensor, answers: Tensor, figures: dict[str, float]) -> list[Tensor]:
    """Cross entropy of the questions with an answer, if there are any; adds the share of right answers to `figures`."""
    asked = answers != _IGNORED
    if not asked.any():
        return []
    logits, answers = logits[asked], answers[asked]
    figures[name] = (logits.argmax(-1) == answers).float().mean().item()
    return [cross_entropy(logits, answers)]


def text_batches(
    config: TrainT5Config, tokenizer: "PreTrainedTokenizerBase", first: int, share: tuple[int, int]
) -> Iterator[TextBatch]:
    """Endless batches from number `first` on; all texts of one are of the same form, so that little is padded."""
    rank, ranks = share
    number = first
    while True:
        rng = random.Random(f"{config.seed}/{number}/form")
        form = rng.choices(list(_FORM_WEIGHTS), list(_FORM_WEIGHTS.values()))[0]
        lower = rng.random() < _LOWER_CASE_SHARE
        indices = range(number * config.schedule.batch_size + rank, (number + 1) * config.schedule.batch_size, ranks)
        scenes = [draw_scene(seed=config.seed, index=index) for index in indices]
        texts = [labelled_text(scene, form, seed=config.seed, lower=lower) for scene in scenes]
        yield text_batch(texts, tokenizer, rng=random.Random(f"{config.seed}/{number}/{rank}/gaps"))
        number += 1


def text_batch(texts: list[LabelledText], tokenizer: "PreTrainedTokenizerBase", *, rng: random.Random) -> TextBatch:
    """Tokens and answers; a share of the texts gets gaps, and is asked about nothing else."""
    encoded = tokenizer([text.text for text in texts], return_offsets_mapping=True)
    size = (len(texts), max(map(len, encoded.input_ids)))
    input_ids = torch.zeros(size, dtype=torch.long)
    word_answers = torch.full((*size, len(LABELS)), _IGNORED)
    text_answers = {name: torch.full((len(texts), n), _IGNORED) for name, (n, _) in _TEXT_QUESTIONS.items()}
    missing_ids = torch.full(size, _IGNORED)
    for row, (text, ids, offsets) in enumerate(zip(texts, encoded.input_ids, encoded.offset_mapping, strict=True)):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        if rng.random() < _GAPPED_TEXTS_SHARE:
            for column in rng.sample(range(len(ids)), max(1, round(_GAPS_SHARE * len(ids)))):
                missing_ids[row, column], input_ids[row, column] = ids[column], tokenizer.unk_token_id
            continue
        for start, end, labels in text.spans:
            columns = [column for column, (first, last) in enumerate(offsets) if start <= first < last <= end]
            for name, answer in labels.items():
                word_answers[row, columns, list(LABELS).index(name)] = LABELS[name].index(answer)
        for name, answers in _text_answers(text).items():
            text_answers[name][row] = torch.tensor(answers)
    return TextBatch(input_ids=input_ids, word_answers=word_answers, text_answers=text_answers, missing_ids=missing_ids)


def _text_answers(text: LabelledText) -> dict[str, list[int]]:
    """Answers about the whole text, as far as it states them. A place without an object is answered by the number after the
    kinds."""
    answers = {}
    if text.places:
        answers["grid"] = [_KINDS.index(text.places[p]) if p in text.places else len(_KINDS) for p in _PLACES]
    if all(text.kinds.values()):
        answers["counts"] = [int(text.kinds.get(kind, "0")) for kind in _KINDS]
    for name, answer in text.background.items():
        answers[name] = [LABELS[name].index(answer)]
    return answers
