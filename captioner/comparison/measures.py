"""Measures of captions, paired: a row for each image that all candidates captioned, and means with standard errors.

An image is the same in several runs where its bytes are (`content_hash`), whatever its key. Everything is computed in SQL, so
that memory does not grow with the number of images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from captioner.comparison.candidates import Candidate, rivals
from dataset_builder.concepts.tagger import META_NOUNS
from dataset_builder.sql.database import Workbench
from dataset_builder.sql.views import literal
from foundry.errors import UserError

NUM_PARTS = 20
"""Parts of the images for the jackknife of density.py; images are numbered by their hash, so a part is a random choice."""
COUNTED = ("num_words", "num_t5_tokens", "num_nouns", "num_distinct_nouns", "num_t5_nouns", "nouns")
"""Columns of a caption that depend on how it was counted."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure of one caption. `is_share`: shown in percent."""

    title: str
    is_share: bool = False


MEASURES = {
    "num_words": Measure(title="words"),
    "num_t5_tokens": Measure(title="T5 tokens"),
    "cut": Measure(title="captions that T5 cuts, %", is_share=True),
    "num_nouns": Measure(title="nouns"),
    "num_t5_nouns": Measure(title="nouns that T5 reads"),
    "num_distinct_nouns": Measure(title="different nouns"),
    "confirmed": Measure(title="its nouns that another names, %", is_share=True),
    "covered": Measure(title="others' nouns that it names, %", is_share=True),
    "mean_logprob": Measure(title="log-probability of a token"),
    "clip_mean": Measure(title="CLIP, mean of the sentences"),
    "clip_least": Measure(title="CLIP, worst sentence"),
    "tabr": Measure(title="TaBR: similarity when drawn"),
    "tabr_chance": Measure(title="TaBR with another image"),
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its standard error, which is None if there is too little to tell."""

    value: float
    error: float | None

    @property
    def is_clear(self) -> bool:
        """Whether it differs from zero by more than two standard errors."""
        return self.error is not None and abs(self.value) > 2 * self.error


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the comparison, over the same `num_images` images for all candidates that have it."""

    name: str
    title: str
    is_share: bool
    num_images: int
    values: list[Estimate | None]
    """Values by candidate; None if it has none."""
    differences: dict[tuple[int, int], Estimate] = field(default_factory=dict)
    """Paired differences for (i, j), i < j: candidate j minus candidate i."""


def pair_images(bench: Workbench, candidates: Sequence[Candidate]) -> int:
    """Makes the table `paired`, the images of which all candidates have a caption with text; returns their number.

    Its columns are `image` (the content hash), `part`, and the key in each run, `key_<run>`. Of images that a run holds
    several times one is taken. Raises UserError if there are no captions, or none of the same image.
    """
    runs = sorted({one.run for one in candidates})
    for one in candidates:
        if not bench.fetch(f"SELECT 1 FROM {one.captions} WHERE num_words > 0 LIMIT 1").num_rows:
            raise UserError(f"{one.source} has no caption with text under {one.prompt} yet: caption first, or leave it out")
    keyed = [_keyed(run, [one for one in candidates if one.run == run]) for run in runs]
    joined = " JOIN ".join(
        f"({sql}) AS i_{run}{' USING (image)' * (run > runs[0])}" for run, sql in zip(runs, keyed, strict=True)
    )
    bench.keep("paired", f"SELECT *, ((row_number() OVER (ORDER BY image) - 1) % {NUM_PARTS})::TINYINT AS part FROM {joined}")
    (number,) = bench.fetch("SELECT count(*) AS n FROM paired")["n"].to_pylist()
    if not number:
        sizes = ", ".join(
            f"{one.source} {count:,}" for one, count in zip(candidates, num_captions(bench, candidates), strict=True)
        )
        raise UserError(
            f"the runs have captions of no image in common (captions: {sizes}; images are the same where their bytes are): "
            "caption the same files with each"
        )
    return int(number)


def num_captions(bench: Workbench, candidates: Sequence[Candidate]) -> list[int]:
    """The captions with text of each candidate, over all images of its run."""
    return [_count(bench, one, "num_words > 0") for one in candidates]


def num_without_text(bench: Workbench, candidates: Sequence[Candidate]) -> list[int]:
    """The captions of each candidate that have no text: refused, empty, or against their schema."""
    return [_count(bench, one, "num_words = 0") for one in candidates]


def measure_captions(
    bench: Workbench, candidates: Sequence[Candidate], *, max_tokens: int, recounted: bool, extra: Sequence[str]
) -> None:
    """Makes the table `measured`: a row per paired image, each measure as a column `<measure>_<candidate>`, `disagreement`.

    `max_tokens` is what T5 reads. `recounted`: counts are those of the table `recounted`, null for images that are not in it.
    `extra` names tables of further measures with the columns `image` and `candidate`.
    """
    columns, joins = [], []
    for one in candidates:
        number = one.index
        bench.define(f"said_{number}", _said(one, recounted=recounted))
        joins.append(f"JOIN said_{number} AS c_{number} USING (image)")
        columns += [f"c_{number}.{name} AS {name}_{number}" for name in COUNTED if name != "nouns"]
        columns += [f"c_{number}.mean_logprob AS mean_logprob_{number}"]
        columns += [f"(c_{number}.num_t5_tokens > {max_tokens})::INT AS cut_{number}"]
        for table in extra:
            joins.append(f"LEFT JOIN (SELECT * FROM {table} WHERE candidate = {number}) AS {table}_{number} USING (image)")
            measures = [name for name in _columns_of(bench, table) if name in MEASURES]
            columns += [f"{table}_{number}.{name} AS {name}_{number}" for name in measures]
    columns += [*_agreement(candidates), f"{_disagreement(len(candidates))} AS disagreement"]
    bench.keep("measured", f"SELECT image, part, {', '.join(columns)} FROM paired {' '.join(joins)}")


def estimate(bench: Workbench, candidates: Sequence[Candidate]) -> list[Figure]:
    """The means of all measures, and the paired differences of each two candidates."""
    present = set(_columns_of(bench, "measured"))
    measures = [name for name in MEASURES if f"{name}_0" in present]
    counts = ", ".join(f"count({name}_{one.index}) AS {name}_{one.index}" for name in measures for one in candidates)
    known = bench.fetch(f"SELECT {counts} FROM measured").to_pylist()[0]
    figures = []
    for name in measures:
        having = [one.index for one in candidates if known[f"{name}_{one.index}"]]
        if having:
            figures.append(_figure(bench, name, having, num_candidates=len(candidates)))
    return [figure for figure in figures if figure.num_images]


def _figure(bench: Workbench, name: str, having: Sequence[int], *, num_candidates: int) -> Figure:
    """One measure, over the images for which all that have it have it."""
    pairs = list(combinations(having, 2))
    terms = {f"v_{number}": f"{name}_{number}::DOUBLE" for number in having}
    terms |= {f"d_{one}_{other}": f"({name}_{other} - {name}_{one})::DOUBLE" for one, other in pairs}
    sums = ", ".join(f"avg({sql}) AS {term}, stddev_samp({sql}) AS {term}_s" for term, sql in terms.items())
    where = " AND ".join(f"{name}_{number} IS NOT NULL" for number in having)
    row = bench.fetch(f"SELECT count(*) AS n, {sums} FROM measured WHERE {where}").to_pylist()[0]
    found = {term: _estimate(row, term) for term in terms} if row["n"] else {}
    return Figure(
        name=name,
        title=MEASURES[name].title,
        is_share=MEASURES[name].is_share,
        num_images=row["n"],
        values=[found.get(f"v_{number}") for number in range(num_candidates)],
        differences={(one, other): found[f"d_{one}_{other}"] for one, other in pairs} if found else {},
    )


def _estimate(row: dict[str, Any], term: str) -> Estimate:
    spread = row[f"{term}_s"]
    return Estimate(value=row[term], error=None if spread is None else spread / math.sqrt(row["n"]))


def _keyed(run: int, candidates: Sequence[Candidate]) -> str:
    """The images of a run of which all these candidates, its prompts, have a caption with text."""
    captioned = " AND ".join(f"key IN (SELECT key FROM {one.captions} WHERE num_words > 0)" for one in candidates)
    return (
        f"SELECT content_hash AS image, min(key) AS key_{run} FROM run_{run}.stored.images "
        f"WHERE {captioned} GROUP BY content_hash"
    )


def _count(bench: Workbench, one: Candidate, condition: str) -> int:
    return int(bench.fetch(f"SELECT count(*) AS n FROM {one.captions} WHERE {condition}")["n"][0].as_py())


def _said(one: Candidate, *, recounted: bool) -> str:
    """A row per paired image with what the candidate said of it; `concepts` are its nouns, each once, without META_NOUNS."""
    counted = "r" if recounted else "s"
    join = f"LEFT JOIN (SELECT * FROM recounted WHERE candidate = {one.index}) r ON r.image = p.image" if recounted else ""
    meta = ", ".join(map(literal, sorted(META_NOUNS)))
    return (
        f"SELECT p.image, {', '.join(f'{counted}.{name}' for name in COUNTED)}, s.mean_logprob, "
        f"list_distinct(list_filter({counted}.nouns, lambda noun: noun NOT IN ({meta}))) AS concepts "
        f"FROM paired p JOIN {one.captions} s ON s.key = p.key_{one.run} {join}"
    )


def _agreement(candidates: Sequence[Candidate]) -> list[str]:
    """Share of each candidate's concepts that a rival names, and share of its rivals' concepts that it names."""
    columns = []
    for one, others in zip(candidates, rivals(candidates), strict=True):
        own = f"c_{one.index}.concepts"
        named = f"c_{others[0]}.concepts"
        if len(others) > 1:
            named = f"list_distinct(flatten([{', '.join(f'c_{other}.concepts' for other in others)}]))"
        both = f"len(list_intersect({own}, {named}))"
        columns.append(f"{both} / nullif(len({own}), 0) AS confirmed_{one.index}")
        columns.append(f"{both} / nullif(len({named}), 0) AS covered_{one.index}")
    return columns


def _disagreement(num_candidates: int) -> str:
    """1 minus the mean, over each two candidates, of the concepts that both name among those that either names."""
    shares = []
    for one, other in combinations(range(num_candidates), 2):
        a, b = f"c_{one}.concepts", f"c_{other}.concepts"
        both = f"len(list_intersect({a}, {b}))"
        shares.append(f"if(len({a}) + len({b}) = 0, 1, {both} / (len({a}) + len({b}) - {both}))")
    return f"1 - ({' + '.join(shares)}) / {len(shares)}"


def _columns_of(bench: Workbench, table: str) -> list[str]:
    return [str(name) for name in bench.fetch(f"DESCRIBE {table}")["column_name"].to_pylist()]
