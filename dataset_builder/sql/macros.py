"""Macros of SQL on a captioning run and on a data set, for the most frequent questions.

They read the views, and on two relations of `stored`: `tallies` (prompt, num_captions) counts the captions that are not
empty, `bodies` (body, noun, count) has the nouns of each prompt and of each split.
"""

MACROS = {
    "density()": "the paper's Table 1: a row per prompt and way of counting",
    "valid_nouns(least)": "nouns that appear at least this often, the most frequent first; the paper's are valid_nouns(11)",
    "rarefied(n)": "VN and DN to be expected from n captions, to compare collections of different sizes",
    "compare(a, b)": "nouns of two prompts or splits by the difference of their shares, most typical of a first",
    "with_all(nouns, ['owl', 'tree'])": "a condition: whether a caption's nouns contain all of these",
    "with_all(['owl', 'tree'])": "a table: key and prompt of the captions that contain all of these",
}
"""The macros, and what each is for."""
SCALAR_MACROS = {"with_all(nouns, ['owl', 'tree'])"}
"""Macros that return a value; the others return a table."""

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
            unnest([count, count * not_meta, count_t5, count_t5 * not_meta]) AS number
        FROM (SELECT *, (NOT is_meta)::BIGINT AS not_meta FROM noun_counts)
    ) GROUP BY ALL
) JOIN stored.tallies USING (prompt) ORDER BY prompt, position
"""

_VALID_NOUNS = """
CREATE MACRO valid_nouns(least) AS TABLE
SELECT prompt, noun, count, num_captions, is_meta FROM noun_counts WHERE count >= least ORDER BY count DESC, noun, prompt
"""

# log(n over k), by the formula of concepts/density.py, which says why it is no difference of log-gammas.
_STIRLING_ERROR = """
CREATE MACRO stored.stirling_error(x) AS
CASE WHEN x < 16 THEN lgamma(x + 1) - (x + 5e-1) * ln(x) + x - 5e-1 * ln(2 * pi())
    ELSE (1 / 12 - (1 / 360 - 1 / (1260 * x * x)) / (x * x)) / x END
"""
_LOG_CHOOSE = """
CREATE MACRO stored.log_choose(n, k) AS
CASE WHEN k <= 0 OR k >= n THEN 0
    ELSE k * ln(n / k) + (n - k) * ln(n / (n - k)) + 5e-1 * ln(n / (2 * pi() * k * (n - k)))
        + stored.stirling_error(n) - stored.stirling_error(k) - stored.stirling_error(n - k) END
"""

_RAREFIED = """
CREATE MACRO rarefied(n) AS TABLE
WITH bodies AS (
    SELECT prompt, total::DOUBLE AS total, sample AS num_captions,
        coalesce(round_even(total * sample / nullif(num_captions, 0), 0), 0)::DOUBLE AS drawn
    FROM (SELECT prompt, sum(count) AS total FROM noun_counts GROUP BY prompt) JOIN (
        SELECT prompt, num_captions, CASE WHEN n < 0 THEN error('a sample holds 0 captions or more, not ' || n)
            ELSE least(n, num_captions) END AS sample FROM stored.tallies
    ) USING (prompt)
), sizes AS (
    SELECT prompt, count::DOUBLE AS size, count(*) AS times FROM noun_counts WHERE count > 0 GROUP BY ALL
), chances AS (
    SELECT prompt, num_captions, size, times, k,
        CASE WHEN k <= size AND k <= drawn AND size - k <= total - drawn THEN exp(least(0,
            stored.log_choose(drawn, k) + stored.log_choose(total - drawn, size - k) - stored.log_choose(total, size)
        )) ELSE 0 END AS chance
    FROM sizes JOIN bodies USING (prompt) CROSS JOIN (SELECT range::DOUBLE AS k FROM range({valid_above} + 1))
), nouns AS (
    SELECT prompt, num_captions, times, greatest(0, 1 - sum(chance)) AS is_valid,
        greatest(0, 1 - sum(chance) FILTER (k = 0)) AS is_drawn
    FROM chances GROUP BY prompt, num_captions, times, size
)
SELECT prompt, num_captions, round(sum(times * is_valid), 1) AS valid_nouns, round(sum(times * is_drawn), 1) AS distinct_nouns,
    round(sum(times * is_valid) / nullif(sum(times * is_drawn), 0), 4) AS ratio
FROM nouns GROUP BY prompt, num_captions ORDER BY prompt
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
    """The statements that create MACROS."""
    from dataset_builder.concepts.density import VALID_ABOVE, VIEWS

    ways = ", ".join(f"'{name}'" for name in VIEWS)
    return [
        _DENSITY.format(ways=ways, valid_above=VALID_ABOVE),
        _VALID_NOUNS,
        _STIRLING_ERROR,
        _LOG_CHOOSE,
        _RAREFIED.format(valid_above=VALID_ABOVE),
        _COMPARE,
        HOLDS_ALL,
        _ALL_BY_INDEX if has_noun_index else _ALL_BY_SCAN,
    ]
