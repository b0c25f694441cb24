"""The probes of probe_t5.py. Tensor legend: N samples, Q questions to each, A answers to a question, D width."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.openmoji.composition import PLACES, draw_scene
from examples.openmoji.kinds import KIND_NAMES
from examples.openmoji.labelled_texts import LABELS, LabelledText, labelled_text
from examples.openmoji.probe_t5 import ProbeConfig
from model.encoders.text_encoder import TextEncoder, TextEncoderConfig, load_text_encoder

_STEPS, _LR, _WEIGHT_DECAY = 400, 0.02, 1e-3


@dataclass(frozen=True, kw_only=True)
class _Features:
    """Texts with their features."""

    texts: list[LabelledText]
    means: Tensor
    """(number of texts, D)"""
    nouns: list[Tensor]
    """Features, for each text, of the tokens that name an object: (number of those, D)."""


@dataclass(frozen=True, kw_only=True)
class _Questions:
    """features (N, D) and answers (N, Q)."""

    features: Tensor
    answers: Tensor


def probe(config: ProbeConfig, *, without: Collection[str] = ()) -> dict[str, float]:
    """The share of right answers of each probe on unseen captions, of features and of word embeddings, but for the figures
    `without`."""
    encoder = load_text_encoder(TextEncoderConfig(name=config.model))
    fit_on, score_on = _texts(config, "train", config.train_count), _texts(config, "unseen", config.count)
    figures = {}
    for suffix, features_of in (("", _encoded), ("_of_embeddings", _embedded)):
        known, unseen = features_of(encoder, fit_on), features_of(encoder, score_on)
        for name, (questions_of, num_answers) in _PROBES.items():
            if name + suffix in without:
                continue
            right = _right(questions_of(known), questions_of(unseen), num_answers)
            figures[name + suffix] = right.all(dim=1).float().mean().item()
            if name == "background":
                figures["color" + suffix], figures["pattern" + suffix] = right.float().mean(dim=0).tolist()
    return figures


def _texts(config: ProbeConfig, split: str, count: int) -> list[LabelledText]:
    scenes = [draw_scene(seed=config.seed, index=index, split=split) for index in range(count)]
    return [labelled_text(scene, config.form, seed=config.seed) for scene in scenes]


def _encoded(encoder: TextEncoder, texts: list[LabelledText]) -> _Features:
    captions = encoder.encode([text.text for text in texts])
    return _features(encoder, texts, list(captions.tokens.float().split(captions.lengths.tolist())))


def _embedded(encoder: TextEncoder, texts: list[LabelledText]) -> _Features:
    """The same of word embeddings, before the first layer."""
    table = encoder.model.get_input_embeddings().weight.detach().float()
    ids = encoder.tokenizer([text.text for text in texts]).input_ids
    return _features(encoder, texts, [table[row] for row in ids])


def _features(encoder: TextEncoder, texts: list[LabelledText], tokens: list[Tensor]) -> _Features:
    encoded = encoder.tokenizer([text.text for text in texts])
    nouns = []
    for row, (text, features) in enumerate(zip(texts, tokens, strict=True)):
        nouns.append(features[[encoded.char_to_token(row, start) for start, _ in text.nouns]])
    return _Features(texts=texts, means=torch.stack([features.mean(dim=0) for features in tokens]), nouns=nouns)


def _objects(found: _Features) -> _Questions:
    answers = [[int(kind in text.kinds) for kind in KIND_NAMES] for text in found.texts]
    return _Questions(features=found.means, answers=torch.tensor(answers))


def _background(found: _Features) -> _Questions:
    """Colour and pattern, of the captions that state them; both have as many answers, some of them never right."""
    stated = [row for row, text in enumerate(found.texts) if text.background]
    answers = [[LABELS[name].index(found.texts[row].background[name]) for name in ("color", "pattern")] for row in stated]
    return _Questions(features=found.means[stated], answers=torch.tensor(answers))


def _grid(found: _Features) -> _Questions:
    stated = [row for row, text in enumerate(found.texts) if text.places]
    kind_of = {kind: number for number, kind in enumerate(KIND_NAMES)}
    places = [found.texts[row].places for row in stated]
    answers = [[kind_of[some[place]] if place in some else len(KIND_NAMES) for place in PLACES] for some in places]
    return _Questions(features=found.means[stated], answers=torch.tensor(answers))


def _of_nouns(found: _Features, label: str) -> _Questions:
    pairs = [
        (features, LABELS[label].index(labels[label]))
        for text, tokens in zip(found.texts, found.nouns, strict=True)
        for features, (_, labels) in zip(tokens, text.nouns, strict=True)
        if label in labels
    ]
    return _Questions(
        features=torch.stack([features for features, _ in pairs]), answers=torch.tensor([[answer] for _, answer in pairs])
    )


# Each probe's questions, and how many answers each has.
_PROBES: dict[str, tuple[Callable[[_Features], _Questions], int]] = {
    "objects": (_objects, 2),
    "background": (_background, len(LABELS["color"])),
    "place": (lambda found: _of_nouns(found, "place"), len(PLACES)),
    "size": (lambda found: _of_nouns(found, "size"), 2),
    "grid": (_grid, len(KIND_NAMES) + 1),
}


def _right(known: _Questions, unseen: _Questions, num_answers: int) -> Tensor:
    """Fits a linear map on what is known; whether it is right on what is unseen, bool (N, Q)."""
    mean, deviation = known.features.mean(dim=0), known.features.std(dim=0) + 1e-6
    features = (known.features - mean) / deviation
    num_questions = known.answers.shape[1]
    linear = nn.Linear(features.shape[1], num_questions * num_answers)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=_LR, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, _STEPS)
    for _ in range(_STEPS):  # on all samples at once
        logits = linear(features).unflatten(1, (num_questions, num_answers))  # (N, Q, A)
        cross_entropy(logits.flatten(0, 1), known.answers.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.inference_mode():
        answers = linear((unseen.features - mean) / deviation).unflatten(1, (num_questions, num_answers)).argmax(-1)
        return torch.as_tensor(answers == unseen.answers)
