"""Captions of a run with the texts that people have edited, as SQL."""

COUNTED = (
    "status",
    "num_words",
    "num_t5_tokens",
    "num_nouns",
    "num_distinct_nouns",
    "num_meta_nouns",
    "num_t5_nouns",
    "nouns",
)
"""Columns of schema.CAPTIONS that an edit has anew, for its own text."""


def edited_sql(captions: str, edits: str) -> str:
    """A SELECT of a relation with the columns of schema.CAPTIONS, in which the current edits of a relation have replaced
    texts and counts. A person's text has no log-probabilities, and no rule of cleaning changed it."""
    replaced = ["coalesce(e.after, c.caption) AS caption"]
    replaced += [f"coalesce(e.{name}, c.{name}) AS {name}" for name in COUNTED]
    replaced += [f"CASE WHEN e.key IS NULL THEN c.{name} END AS {name}" for name in ("mean_logprob", "min_logprob")]
    replaced.append("CASE WHEN e.key IS NULL THEN c.flags ELSE [] END AS flags")
    return (
        f"SELECT c.* REPLACE ({', '.join(replaced)}) FROM {captions} c "
        f"LEFT JOIN (SELECT * FROM {edits} WHERE is_current) e ON e.key = c.key AND e.prompt = c.prompt"
    )
