"""Concept density of the candidates over the same images, with standard errors.

VN and DN are no means over images, so their errors are those of a jackknife: the images are cut into parts, and the spread of
the figures without a quarter of the parts tells that of the figures. A single part would not do: VN has a threshold, near which
a few images decide. Source: Shao and Wu 1989, "A general theory for jackknife variance estimation", the delete-d jackknife.
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

_LEFT_OUT = tuple(tuple((first + step) % NUM_PARTS for step in (0, 1, 3, 7, 12)) for first in range(NUM_PARTS))
"""The parts that each replicate leaves out: each part is in as many, and few of them share two."""
_MIN_IMAGES = 2 * NUM_PARTS
_VIEWS = {"written": ("true", ""), "t5": ("position <= num_t5_nouns", ", as T5 reads")}
"""The two ways to count: the nouns that count, and what is added to the title."""


def estimate_density(bench: Workbench, candidates: Sequence[Candidate]) -> list[Figure]:
    """VN, DN and their ratio for each way to count, as the paper counts: all nouns, valid where they appear more than 10 times.

    Reads the views `said_<candidate>` of measures.py.
    """
    num_images = bench.fetch("SELECT count(nouns) AS n FROM said_0")["n"][0].as_py()
    if not num_images:
        return []
    figures = []
    for view, (condition, suffix) in _VIEWS.items():
        counts = np.stack([_replicates(bench, one, condition) for one in candidates])  # (candidates, 1 + replicates, 2)
        valid, distinct = counts[..., 0], counts[..., 1]
        ratio = np.divide(valid, distinct, out=np.zeros_like(valid), where=distinct > 0)
        for name, title, values in (
            ("valid_nouns", "VN", valid),
            ("distinct_nouns", "DN", distinct),
            ("ratio", "VN / DN, %", ratio),
        ):
            is_share = values is ratio
            figures.append(_figure(f"{name}_{view}", title + suffix, values, num_images=num_images, is_share=is_share))
    return figures


def _replicates(bench: Workbench, one: Candidate, condition: str) -> NDArray[np.float64]:
    """VN and DN of all images, then without the parts of each of _LEFT_OUT: (1 + replicates, 2)."""
    counted = ", ".join(f"count(*) FILTER (part = {part}) AS p_{part}" for part in range(NUM_PARTS))
    nouns = (
        "SELECT part, num_t5_nouns, unnest(nouns) AS noun, generate_subscripts(nouns, 1) AS position "
        f"FROM paired JOIN said_{one.index} USING (image)"
    )
    by_noun = f"SELECT count(*) AS n, {counted} FROM ({nouns}) WHERE {condition} GROUP BY noun"
    left = ["n", *("n - " + " - ".join(f"p_{part}" for part in parts) for parts in _LEFT_OUT)]
    figures = (
        f"count(*) FILTER ({count} > {VALID_ABOVE}) AS valid_{index}, count(*) FILTER ({count} > 0) AS distinct_{index}"
        for index, count in enumerate(left)
    )
    row = bench.fetch(f"SELECT {', '.join(figures)} FROM ({by_noun})").to_pylist()[0]
    return np.array([[row[f"valid_{index}"], row[f"distinct_{index}"]] for index in range(len(left))], np.float64)


def _figure(name: str, title: str, values: NDArray[np.float64], *, num_images: int, is_share: bool) -> Figure:
    """`values`, (candidates, 1 + replicates): of all images, then without some."""
    pairs = combinations(range(len(values)), 2)
    return Figure(
        name=name,
        title=title,
        is_share=is_share,
        num_images=num_images,
        values=[_jackknife(row, num_images=num_images) for row in values],
        differences={(one, other): _jackknife(values[other] - values[one], num_images=num_images) for one, other in pairs},
    )


def _jackknife(values: NDArray[np.float64], *, num_images: int) -> Estimate:
    """The first value, and the standard error that the others tell; None for so few images that parts hold one or none."""
    num_left_out = len(_LEFT_OUT[0])
    error = math.sqrt((NUM_PARTS - num_left_out) / num_left_out * float(values[1:].var()))
    return Estimate(value=float(values[0]), error=error if num_images >= _MIN_IMAGES else None)
