"""Selection of a recipe: its steps in their order over captioning runs, the funnel, and the rows that they dropped, as SQL."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from dataset_builder.dataset.caption_steps import (
    EMBED,
    HISTOGRAMS,
    REJECTED,
    SelectionState,
    Step,
    keep_quantiles,
    keep_survey,
    pick_images,
    row_steps,
)
from dataset_builder.dataset.image_steps import choose_images, drop_duplicates, merge_images, split_images, thin_nouns
from dataset_builder.dataset.recipe import RecipeConfig
from dataset_builder.schema import FUNNEL
from dataset_builder.sql.run_files import RunFiles
from dataset_builder.sql.views import literal

if TYPE_CHECKING:
    from dataset_builder.sql.database import Workbench


def select(bench: "Workbench", runs: dict[str, RunFiles], recipe: RecipeConfig) -> SelectionState:
    """Takes the steps of a recipe over the runs that are open in a workbench, where they leave their tables.

    Raises UserError for SQL that is none and for columns that are not there.
    """
    state = SelectionState(bench=bench, runs=runs, config=recipe, steps=list(row_steps(recipe)))
    keep_survey(state)
    keep_quantiles(state)
    pick_images(state)
    merge_images(state)
    drop_duplicates(state)
    thin_nouns(state)
    split_images(state)
    choose_images(state)
    return state


def num_left(state: SelectionState) -> int:
    """The images of the data set."""
    return int(state.rows("SELECT count(*) AS images FROM chosen")[0]["images"])


def num_edited(state: SelectionState) -> int:
    """The captions of the data set that people rewrote."""
    edits = [
        f"SELECT {number} AS run, key, prompt FROM run_{number}.edits WHERE is_current"
        for number, run in enumerate(state.runs.values())
        if len(run.reviews.edits)
    ]
    if not edits:
        return 0
    joined = "kept JOIN chosen ON chosen.run = owner AND chosen.key = kept.key"
    found = f"({' UNION ALL '.join(edits)}) e ON e.run = kept.run AND e.key = kept.key AND e.prompt = kept.prompt"
    return int(state.rows(f"SELECT count(*) AS captions FROM {joined} JOIN {found}")[0]["captions"])


def funnel_table(state: SelectionState, *, lost: Mapping[str, int] | None = None) -> pa.Table:
    """schema.FUNNEL of the steps; `lost` are images that could not be read afterwards, by reason."""
    planned = state.rows("SELECT (SELECT count(*) FROM picked) + (SELECT count(*) FROM rejected) AS images")[0]["images"]
    rows = [{"step": "planned", "reason": "", "kept": planned, "dropped": 0}]
    embedding = [(Step(EMBED, reason), number) for reason, number in (lost or {}).items()]
    for step, dropped in [*_counts(state), *embedding]:
        rows.append({"step": step.name, "reason": step.reason, "kept": rows[-1]["kept"] - dropped, "dropped": dropped})
    return pa.Table.from_pylist(rows, schema=FUNNEL)


def histograms(state: SelectionState) -> dict[str, dict[int, int]]:
    """Histograms of words, nouns and T5 tokens of the captions of the data set: lower bound of each bin → captions."""
    classes = ", ".join(f"{name} // {width} * {width} AS {name}" for name, width in HISTOGRAMS.items())
    joined = "kept JOIN chosen ON chosen.run = owner AND chosen.key = kept.key"
    counts: dict[str, Counter[int]] = {name: Counter() for name in HISTOGRAMS}
    for row in state.rows(f"SELECT {classes}, count(*) AS captions FROM {joined} GROUP BY ALL"):
        for name, count in counts.items():
            count[row[name]] += row["captions"]
    return {name: dict(sorted(count.items())) for name, count in counts.items()}


def dropped_sql(state: SelectionState) -> str:
    """Every image of the runs that was dropped, as schema.DROPPED, in the order of runs and keys."""
    return (
        f"SELECT key, {state.run_name()} AS run, {_step_names(state)} FROM picked WHERE step IS NOT NULL "
        f"UNION ALL SELECT key, run, {literal(REJECTED)}, reason FROM rejected ORDER BY run, key"
    )


def dropped_captions_sql(state: SelectionState) -> str:
    """Every caption that was dropped while its image stays, as schema.DROPPED_CAPTIONS."""
    return (
        f"SELECT s.key, {state.run_name('s.run')} AS run, prompt, {_step_names(state)} FROM survey s "
        "LEFT JOIN others USING (run, key) JOIN (SELECT run AS owner_run, key AS owner_key FROM chosen) "
        "ON owner_run = coalesce(owner, s.run) AND owner_key = s.key WHERE step IS NOT NULL ORDER BY run, s.key, prompt"
    )


def groups_sql() -> str:
    """The images that are in a group of duplicates, as schema.GROUPS."""
    return "FROM groups WHERE exact_group IS NOT NULL OR near_group IS NOT NULL ORDER BY run, key"


def _counts(state: SelectionState) -> Iterator[tuple[Step, int]]:
    """Number of images that each step dropped, in order; images that the captioner rejected come first."""
    for row in state.rows("SELECT reason, count(*) AS dropped FROM rejected GROUP BY ALL ORDER BY reason"):
        yield Step(REJECTED, row["reason"]), row["dropped"]
    found = state.rows("SELECT step, count(*) AS dropped FROM picked WHERE step IS NOT NULL GROUP BY ALL")
    by_step = {row["step"]: row["dropped"] for row in found}
    for number, step in enumerate(state.steps):
        yield step, by_step.get(number, 0)


def _step_names(state: SelectionState) -> str:
    """The columns `step` and `reason` by the number of a step."""
    names, reasons = ([literal(getattr(step, of)) for step in state.steps] for of in ("name", "reason"))
    return f"[{', '.join(names)}][step + 1] AS step, [{', '.join(reasons)}][step + 1] AS reason"
