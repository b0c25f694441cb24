"""The judge: what a caption says about a scene, held against the truth.

A caption is read by the words of the small world alone, whatever the order of its sentences. It names an object by a kind
with an article or a number ("a large owl", "two owls"); "the owl" points back at one. A place belongs to the object of the
same sentence; a background's colour and pattern are in the clause that says "background".
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from examples.openmoji.backgrounds import COLORS, PATTERNS
from examples.openmoji.composition import PLACES, Relation, Scene
from examples.openmoji.kinds import KINDS

_SINGULAR = {kind.name: kind.name for kind in KINDS}
_PLURAL = {kind.plural: kind.name for kind in KINDS if kind.plural != kind.name}
_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "2": 2, "3": 3, "4": 4, "5": 5}
_SIZES = ("large", "small")
_PATTERN_WORDS = {**{pattern: pattern for pattern in PATTERNS}, "stripes": "striped", "dots": "dotted", "checks": "checkered"}
_COLOR_WORDS = {**{color: color for color in COLORS}, "grey": "gray"}
_PLACE = re.compile(r"\b(top left|top right|bottom left|bottom right|top|bottom|left|right|center|centre|middle)\b")
_THE_KIND = rf"the (?:large |small )?({'|'.join(_SINGULAR)})"
_RELATION = re.compile(rf"\b{_THE_KIND} is (?:to the )?(left of|right of|above|below) {_THE_KIND}\b")
# How far before a kind its article or number may be: "a large gray owl".
_WORDS_BEFORE = 3


@dataclass(frozen=True, kw_only=True)
class TrueObject:
    """One object of a scene, or of a caption, where size and place may be missing ("")."""

    kind: str
    size: str
    place: str


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Ground truth that a caption is compared with."""

    objects: tuple[TrueObject, ...]
    background_color: str
    pattern: str
    relation: Relation | None = None


@dataclass(frozen=True, kw_only=True)
class ReadCaption:
    """Content of a caption."""

    counts: dict[str, int]
    """Number of each kind."""
    objects: tuple[TrueObject, ...]
    """The objects named one by one."""
    colors: frozenset[str]
    """Colours named for the background."""
    patterns: frozenset[str]
    relations: tuple[Relation, ...]


@dataclass(frozen=True, kw_only=True)
class CaptionFigures:
    """Accuracy of captions; all in 0..1."""

    num_captions: int
    object_precision: float
    """Share of the objects named that are there, counted with repeats over all captions."""
    object_recall: float
    """Share of the objects there that are named."""
    object_f1: float
    background: float
    """Share of captions with the background's colour and pattern both right, and no other named."""
    place: float
    """Share of the objects found whose place is right."""
    size: float
    """Share of the objects found whose size is right."""
    relation: float
    """Share of scenes with a relation whose caption states one, and states none that is false."""
    hallucination_rate: float
    """Share of captions that name a kind that is absent."""


def truth_of(scene: Scene) -> Truth:
    """The truth of a scene that was drawn here."""
    objects = tuple(TrueObject(kind=thing.kind, size=thing.size, place=thing.place) for thing in scene.objects)
    return Truth(objects=objects, background_color=scene.color, pattern=scene.pattern, relation=scene.relation)


def read_truths(path: str) -> dict[str, Truth]:
    """The truths of a `_truth.parquet`, by key."""
    import pyarrow.parquet as pq

    columns = ["key", "objects", "background_color", "pattern", "relation"]
    return {
        row["key"]: Truth(
            objects=tuple(TrueObject(kind=o["kind"], size=o["size"], place=o["place"]) for o in row["objects"]),
            background_color=row["background_color"],
            pattern=row["pattern"],
            relation=Relation(**row["relation"]) if row["relation"] else None,
        )
        for row in pq.read_table(path, columns=columns).to_pylist()
    }


def judge(captions: Sequence[str], truths: Sequence[Truth]) -> CaptionFigures:
    """Figures over captions and truths of the same order. A rate with nothing to count is 0."""
    if len(captions) != len(truths):
        raise ValueError(f"{len(captions)} captions against {len(truths)} truths: give one truth for each caption")
    sums: Counter[str] = Counter()
    for caption, truth in zip(captions, truths, strict=True):
        sums.update(_tally(read_caption(caption), truth))
    precision = _ratio(sums["found"], sums["named"])
    recall = _ratio(sums["found"], sums["there"])
    return CaptionFigures(
        num_captions=len(captions),
        object_precision=precision,
        object_recall=recall,
        object_f1=_ratio(2 * precision * recall, precision + recall),
        background=_ratio(sums["background"], len(captions)),
        place=_ratio(sums["placed"], sums["found"]),
        size=_ratio(sums["sized"], sums["found"]),
        relation=_ratio(sums["related"], sums["relations"]),
        hallucination_rate=_ratio(sums["hallucinated"], len(captions)),
    )


def read_caption(caption: str) -> ReadCaption:
    """Parses a caption; what it does not understand it passes over."""
    singles: Counter[str] = Counter()
    plurals: Counter[str] = Counter()
    mentioned: set[str] = set()
    objects: list[TrueObject] = []
    relations: list[Relation] = []
    colors: set[str] = set()
    patterns: set[str] = set()
    for sentence in re.split(r"[.;!?\n]", caption.lower()):
        relations += [Relation(subject=s, relation=r, other=o) for s, r, o in _RELATION.findall(sentence)]
        for clause in sentence.split(","):
            words = re.findall(r"\w+", clause)
            if "background" in words or "backdrop" in words:
                colors |= {_COLOR_WORDS[word] for word in words if word in _COLOR_WORDS}
                patterns |= {_PATTERN_WORDS[word] for word in words if word in _PATTERN_WORDS}
        mentioned |= {kind for relation in relations for kind in (relation.subject, relation.other)}
        for mention in _mentions(_RELATION.sub(" ", sentence)):
            mentioned.add(mention.kind)
            if mention.number == 1:
                singles[mention.kind] += 1
                objects.append(TrueObject(kind=mention.kind, size=mention.size, place=mention.place))
            plurals[mention.kind] = max(plurals[mention.kind], mention.number)
    counts = {kind: max(1, singles[kind], plurals[kind]) for kind in mentioned}
    return ReadCaption(
        counts=counts,
        objects=tuple(objects),
        colors=frozenset(colors),
        patterns=frozenset(patterns),
        relations=tuple(relations),
    )


@dataclass(frozen=True)
class _Mention:
    kind: str
    number: int
    """0 where it points back ("the owl")."""
    size: str
    place: str


def _mentions(sentence: str) -> list[_Mention]:
    """The objects of one sentence, each with its place: the last before it if the sentence starts with one, else the next."""
    tokens = list(re.finditer(r"[a-z]+|\d+|[,:]", sentence))
    words = [token.group() for token in tokens]
    kinds = [i for i, word in enumerate(words) if word in _SINGULAR or word in _PLURAL]
    places = [(match.start(), _place_name(match.group())) for match in _PLACE.finditer(sentence)]
    starts = [tokens[i].start() for i in kinds]
    place_first = bool(places and starts and places[0][0] < starts[0])
    mentions = []
    for order, i in enumerate(kinds):
        if place_first:
            near = [place for start, place in places if start < starts[order]][-1:]
        else:
            end = starts[order + 1] if order + 1 < len(starts) else len(sentence)
            near = [place for start, place in places if starts[order] < start < end][:1]
        number, size = _number_and_size(words, i)
        kind = _SINGULAR.get(words[i]) or _PLURAL[words[i]]
        mentions.append(_Mention(kind, number, size, near[0] if near else ""))
    return mentions


def _number_and_size(words: list[str], at: int) -> tuple[int, str]:
    """Number and size stated by the words before a kind."""
    number = 2 if words[at] in _PLURAL else 1
    size = ""
    for word in reversed(words[max(0, at - _WORDS_BEFORE) : at]):
        if word in _NUMBERS:
            return _NUMBERS[word], size
        if word == "the":
            return (number if number > 1 else 0), size
        if word in ("a", "an", "one", "another", "and", ",", ":") or word in _SINGULAR or word in _PLURAL:
            return number, size
        if word in _SIZES:
            size = word
    return number, size


def _place_name(words: str) -> str:
    return "center" if words in ("centre", "middle") else words


def _tally(read: ReadCaption, truth: Truth) -> dict[str, int]:
    """Contribution of one caption to the sums."""
    there = Counter(thing.kind for thing in truth.objects)
    found = {kind: min(number, read.counts.get(kind, 0)) for kind, number in there.items()}
    return {
        "there": there.total(),
        "named": sum(read.counts.values()),
        "found": sum(found.values()),
        "placed": _agreeing([(o.kind, o.place) for o in read.objects], [(o.kind, o.place) for o in truth.objects]),
        "sized": _agreeing([(o.kind, o.size) for o in read.objects], [(o.kind, o.size) for o in truth.objects]),
        "background": int(read.colors == {truth.background_color} and read.patterns == {truth.pattern}),
        "relations": int(truth.relation is not None),
        "related": int(
            truth.relation is not None and bool(read.relations) and all(_holds(relation, truth) for relation in read.relations)
        ),
        "hallucinated": int(any(kind not in there for kind in read.counts)),
    }


def _agreeing(said: list[tuple[str, str]], true: list[tuple[str, str]]) -> int:
    return (Counter(said) & Counter(true)).total()


def _holds(relation: Relation, truth: Truth) -> bool:
    """Whether any two objects of these kinds have this relation."""
    subjects = [PLACES[thing.place] for thing in truth.objects if thing.kind == relation.subject]
    others = [PLACES[thing.place] for thing in truth.objects if thing.kind == relation.other]
    return any(_stands(relation.relation, a, b) for a in subjects for b in others)


def _stands(relation: str, a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether the (row, column) a is left of, right of, above or below b."""
    (row, column), (other_row, other_column) = a, b
    return {
        "left of": column < other_column,
        "right of": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }[relation]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
