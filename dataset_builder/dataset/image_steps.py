"""Merges images across runs: the first run that kept an image owns the sample; captions of the others are attached.

Key and bytes tell that it is the same image. It is taken from the first of the runs in which a caption of it is left, its home,
and the captions of the others, its guests, join it there. Runs of one run_id wrote the same caption: the first one's is taken.
Where runs that differ have captions of an image under one prompt, that prompt is called `run/prompt` in the whole data set.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataset_builder.sql.views import literal

if TYPE_CHECKING:
    from dataset_builder.sql.database import Workbench

_NONE = "SELECT NULL::SMALLINT AS run, NULL::INTEGER AS unit, NULL::VARCHAR AS key, NULL::SMALLINT AS home WHERE false"


def keep_guests(bench: "Workbench", *, num_runs: int) -> None:
    """Makes the table `guests` (run, unit, key, home), runs as their numbers, of the table `picked`, and the view `kept`: the
    captions of the table `survey` that are left, with the home of their image."""
    hashes = " UNION ALL ".join(
        f"SELECT {n}::SMALLINT AS run, key, content_hash FROM run_{n}.stored.images" for n in range(num_runs)
    )
    several = "SELECT key FROM picked WHERE step IS NULL GROUP BY key HAVING count(*) > 1"
    same = (
        "SELECT run, unit, key, min(run) OVER (PARTITION BY key, content_hash) AS home "
        f"FROM picked JOIN ({hashes}) USING (run, key) WHERE step IS NULL AND key IN ({several}) QUALIFY home < run"
    )
    bench.keep("guests", same if num_runs > 1 else _NONE)
    bench.define(
        "kept", "SELECT s.*, coalesce(home, run) AS home FROM survey s LEFT JOIN guests USING (run, key) WHERE step IS NULL"
    )


def keep_repeated(bench: "Workbench", *, run_ids: Sequence[str]) -> None:
    """Makes the table `repeated` (run, key, prompt): captions of an image that an earlier run of the same run_id wrote too."""
    made_by = f"[{', '.join(map(literal, run_ids))}][run + 1]"
    bench.keep(
        "repeated",
        "SELECT run, key, prompt FROM kept WHERE key IN (SELECT key FROM guests) "
        f"QUALIFY row_number() OVER (PARTITION BY home, key, prompt, {made_by} ORDER BY run) > 1",
    )


def prompts_of_several(bench: "Workbench") -> list[str]:
    """The prompts under which an image has several captions."""
    once = "SELECT home, key, prompt FROM kept WHERE key IN (SELECT key FROM guests) GROUP BY ALL HAVING count(*) > 1"
    return sorted(bench.fetch(f"SELECT DISTINCT prompt FROM ({once})")["prompt"].to_pylist())
