"""Captions with the texts of people in place of the model's, as SQL."""

from dataset_builder.reviews.files import COUNTED


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
