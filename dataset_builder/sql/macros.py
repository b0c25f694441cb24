"""Macros of SQL on a captioning run and on a data set, for the most frequent questions.

They read the views, and on two relations of `stored`: `tallies` (prompt, num_captions) counts the captions that are not
empty, `bodies` (body, noun, count) has the nouns of each prompt and of each split.
"""

from collections.abc import Sequence
from typing import Any

MACROS = {
    "density()": "the paper's Table 1: a row to each prompt and way of counting",
    "valid_nouns(least)": "nouns that appear at least so often, the most frequent first; the paper's are valid_nouns(11)",
    "rarefied(n)": "VN and DN to be expected of n captions, to compare bodies of different size",
    "compare(a, b)": "nouns of two prompts or splits by the difference of their shares, most typical of a first",
    "with_all(nouns, ['owl', 'tree'])": "a condition: whether a caption's nouns hold all of these",
    "with_all(['owl', 'tree'])": "a table: key and prompt of the captions that hold all of these",
}
"""The macros, and what each is for."""

_DENSITY = """
CREATE MACRO density() AS TABLE
SELECT prompt, counted, num_captions, valid_nouns, distinct_nouns,
    round(valid_nouns / nullif(distinct_nouns, 0), 4) AS ratio, total_nouns,
    round(total_nouns / nullif(num_captions, 0), 2) AS nouns_per_caption
FROM (
    SELECT prompt, way AS position, [{ways}][way] AS counted, count(*) FILTER (number > {valid_above}) AS valid_nouns,
        count(*) FILTER (number > 0) AS distinct_nouns, sum(number)::BIGINT AS total_nouns
    FROM (
        SELECT prompt, unnest([1, 2, 3, 4]) AS way,
            unnest([count, if(is_meta, 0, count), count_t5, if(is_meta, 0, count_t5)]) AS number
        FROM noun_counts
    ) GROUP BY ALL
) JOIN stored.tallies USING (prompt) ORDER BY prompt, position
"""

_VALID_NOUNS = """
CREATE MACRO valid_nouns(least) AS TABLE
SELECT prompt, noun, count, num_captions, is_meta FROM noun_counts WHERE count >= least ORDER BY count DESC, noun, prompt
"""

_RAREFIED = """
CREATE MACRO rarefied(n) AS TABLE
SELECT prompt, num_captions, round(figures.valid_nouns, 1) AS valid_nouns, round(figures.distinct_nouns, 1) AS distinct_nouns,
    round(figures.valid_nouns / nullif(figures.distinct_nouns, 0), 4) AS ratio
FROM (
    SELECT prompt, least(n, num_captions) AS num_captions,
        expected_nouns(counts, num_captions, least(n, num_captions)) AS figures
    FROM (SELECT prompt, list(count) AS counts FROM noun_counts GROUP BY prompt) JOIN stored.tallies USING (prompt)
) ORDER BY prompt
"""

_BODY = """
SELECT noun, sum(count)::BIGINT AS count, round(sum(count) / sum(sum(count)) OVER (), 6) AS share FROM stored.bodies
WHERE body = CASE WHEN {name} IN (SELECT body FROM stored.bodies) THEN {name}
    ELSE error('there is no prompt or split "' || {name} || '": there are '
        || (SELECT string_agg(DISTINCT body, ', ' ORDER BY body) FROM stored.bodies)) END
GROUP BY noun
"""

_COMPARE = f"""
CREATE MACRO compare(a, b) AS TABLE
SELECT noun, coalesce(one.count, 0) AS count_a, coalesce(other.count, 0) AS count_b,
    coalesce(one.share, 0) AS share_a, coalesce(other.share, 0) AS share_b, round(share_a - share_b, 6) AS difference
FROM ({_BODY.format(name="a")}) AS one FULL JOIN ({_BODY.format(name="b")}) AS other USING (noun)
ORDER BY difference DESC, noun
"""

HOLDS_ALL = """
CREATE MACRO with_all(nouns, wanted) AS list_bool_and(list_transform(wanted, lambda noun: list_contains(nouns, noun)))
"""

_ALL_BY_SCAN = "CREATE MACRO with_all(wanted) AS TABLE SELECT key, prompt FROM captions WHERE with_all(nouns, wanted)"

_ALL_BY_INDEX = """
CREATE MACRO with_all(wanted) AS TABLE
SELECT key, prompt FROM (
    SELECT unnest(keys) AS key, prompt FROM stored.noun_index WHERE noun IN (SELECT unnest(wanted))
) GROUP BY ALL HAVING count(*) = len(list_distinct(wanted))
"""


def macro_sql(*, has_noun_index: bool) -> list[str]:
    """The statements that create MACROS; the function `expected_nouns` must be there."""
    from dataset_builder.concepts.density import VALID_ABOVE, VIEWS

    ways = ", ".join(f"'{name}'" for name in VIEWS)
    return [
        _DENSITY.format(ways=ways, valid_above=VALID_ABOVE),
        _VALID_NOUNS,
        _RAREFIED,
        _COMPARE,
        HOLDS_ALL,
        _ALL_BY_INDEX if has_noun_index else _ALL_BY_SCAN,
    ]


def expected_nouns(counts: Sequence[int], num_captions: int, sample_size: int) -> dict[str, Any]:
    """concept_density.rarefied as SQL calls it."""
    import numpy as np

    from dataset_builder.concepts.density import rarefied

    density = rarefied(np.array(counts, dtype=np.int64), num_captions=num_captions, sample_size=sample_size)
    return {"valid_nouns": float(density.valid_nouns), "distinct_nouns": float(density.distinct_nouns)}


EXPECTED_NOUNS_TYPES = (["BIGINT[]", "BIGINT", "BIGINT"], "STRUCT(valid_nouns DOUBLE, distinct_nouns DOUBLE)")
"""The SQL types that `expected_nouns` takes and gives."""
