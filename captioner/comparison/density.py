"""Concept density of the candidates over the same images, with standard errors.

VN and DN are no means over images, so their errors are those of a jackknife: the images are cut into parts, and the spread of
the figures without one part each tells that of the figure. Source: Efron and Tibshirani 1993, "An Introduction to the
Bootstrap", chapter 11, with a group of images in place of a single one.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from captioner.comparison.candidates import Candidate
from captioner.comparison.measures import NUM_PARTS, Estimate, Figure
from dataset_builder.concepts.density import VALID_ABOVE
from dataset_builder.sql.database import Workbench

_VIEWS = {"written": ("true", ""), "t5": ("position <= num_t5_nouns", ", as T5 reads")}
"""The two ways to count: the nouns that count, and what is added to the title."""


def estimate_density(bench: Workbench, candidates: Sequence[Candidate]) -> list[Figure]:
    """VN, DN and their ratio for each way to count, as the paper counts: all nouns, valid where they appear more than 10 times.

    Reads the views `said_<candidate>` of measures.py.
    """
    num_images, num_parts = _sizes(bench)
    if not num_images:
        return []
    figures = []
    for view, (condition, suffix) in _VIEWS.items():
        counts = np.stack([_without_each_part(bench, one, condition) for one in candidates])  # (candidates, 1 + parts, 2)
        valid, distinct = counts[:, : num_parts + 1, 0], counts[:, : num_parts + 1, 1]
        ratio = np.divide(valid, distinct, out=np.zeros_like(valid), where=distinct > 0)
        for name, values in (("VN", valid), ("DN", distinct), ("VN / DN", ratio)):
            title, is_share = f"{name}{', %' if values is ratio else ''}{suffix}", values is ratio
            figures.append(_figure(f"{name} {view}", title, values, num_images=num_images, is_share=is_share))
    return figures


def _sizes(bench: Workbench) -> tuple[int, int]:
    """The images that are counted, and the parts that hold one: all alike but for one image."""
    row = bench.fetch("SELECT count(*) AS n FROM paired JOIN said_0 USING (image) WHERE nouns IS NOT NULL").to_pylist()[0]
    return row["n"], min(row["n"], NUM_PARTS)


def _without_each_part(bench: Workbench, one: Candidate, condition: str) -> NDArray[np.float64]:
    """VN and DN of all images, then without each part: (1 + NUM_PARTS, 2)."""
    counted = ", ".join(f"count(*) FILTER (part = {part}) AS p_{part}" for part in range(NUM_PARTS))
    nouns = (
        "SELECT part, num_t5_nouns, unnest(nouns) AS noun, generate_subscripts(nouns, 1) AS position "
        f"FROM paired JOIN said_{one.index} USING (image)"
    )
    by_noun = f"SELECT count(*) AS n, {counted} FROM ({nouns}) WHERE {condition} GROUP BY noun"
    left = ["n", *(f"n - p_{part}" for part in range(NUM_PARTS))]
    figures = (
        f"count(*) FILTER ({count} > {VALID_ABOVE}) AS valid_{index}, count(*) FILTER ({count} > 0) AS distinct_{index}"
        for index, count in enumerate(left)
    )
    row = bench.fetch(f"SELECT {', '.join(figures)} FROM ({by_noun})").to_pylist()[0]
    return np.array([[row[f"valid_{index}"], row[f"distinct_{index}"]] for index in range(len(left))], np.float64)


def _figure(name: str, title: str, values: NDArray[np.float64], *, num_images: int, is_share: bool) -> Figure:
    """`values`, (candidates, 1 + parts): of all images, then without each part."""
    pairs = combinations(range(len(values)), 2)
    return Figure(
        name=name,
        title=title,
        is_share=is_share,
        num_images=num_images,
        values=[_jackknife(row) for row in values],
        differences={(one, other): _jackknife(values[other] - values[one]) for one, other in pairs},
    )


def _jackknife(values: NDArray[np.float64]) -> Estimate:
    """The first value, and the standard error that the others, (parts,), tell."""
    parts = values[1:]
    if len(parts) < 2:
        return Estimate(value=float(values[0]), error=None)
    error = math.sqrt((len(parts) - 1) / len(parts) * float(((parts - parts.mean()) ** 2).sum()))
    return Estimate(value=float(values[0]), error=error)
