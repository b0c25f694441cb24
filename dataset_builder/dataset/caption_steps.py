"""Caption steps of a recipe, as SQL: the survey of all captions, quantiles, the images left; and the state of all steps.

These tables are left in the workbench: `survey` (a row per caption) and `picked` (a row per image of a run). `step` is the
number of the step that dropped a row, null for a row that is left.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dataset_builder.dataset.recipe import RecipeConfig
from dataset_builder.reviews.edited_captions import edited_sql
from dataset_builder.schema import CAPTIONS
from dataset_builder.sql.run_files import RunFiles
from dataset_builder.sql.views import literal, quoted, value_sql

if TYPE_CHECKING:
    from dataset_builder.sql.database import Workbench

REJECTED = "rejected"
EMBED = "embed"
"""Steps that no recipe takes: what the captioner rejected, and images that could not be read to be embedded."""

# Columns of a caption that a data set has in addition to those of the run.
CAPTION_FIGURES = {
    "repetition": "(1 - num_distinct_nouns / greatest(num_nouns, 1))::FLOAT * (num_nouns > 0)::FLOAT",
    "opener": r"lower(regexp_extract(caption, '^\s*(\S+(?:\s+\S+){0,2})', 1))",
    "meta_share": "(num_meta_nouns / greatest(num_nouns, 1))::FLOAT",
}
HISTOGRAMS = {"num_words": 10, "num_nouns": 5, "num_t5_tokens": 20}
"""Columns that the card shows a histogram of, and the width of a bin."""


@dataclass(frozen=True)
class Step:
    """A step of the recipe, its reason for dropping a caption, and the SQL that is true for one that it drops."""

    name: str
    reason: str
    drops: str = ""


@dataclass
class SelectionState:
    """State of a selection: the runs that are open in a workbench, the recipe, and the steps taken so far."""

    bench: "Workbench"
    runs: dict[str, RunFiles]
    config: RecipeConfig
    steps: list[Step]
    notes: list[str] = field(default_factory=list)
    """Sentences for the user about what a step could not do or had to rename."""
    renamed: dict[tuple[int, str], str] = field(default_factory=dict)
    """Number of a run and prompt → the prompt's name in the data set, where it is another one."""

    @property
    def names(self) -> list[str]:
        """The names of the runs, by their numbers."""
        return list(self.runs)

    @property
    def conditions(self) -> dict[str, str]:
        """The splits that are SQL conditions."""
        return {name: sql for name, sql in self.config.splits.items() if isinstance(sql, str)}

    def add_step(self, step: Step) -> int:
        """Appends a step and returns its number."""
        self.steps.append(step)
        return len(self.steps) - 1

    def run_name(self, number: str = "picked.run") -> str:
        """SQL for the name of a run by its number."""
        return f"[{', '.join(map(literal, self.names))}][{number} + 1]"

    def captions(self, number: int, relation: str) -> str:
        """SQL for a relation of captions of a run, by its number, with the texts of people where they rewrote it."""
        run = list(self.runs.values())[number]
        return f"({edited_sql(relation, f'run_{number}.edits')})" if len(run.reviews.edits) else relation

    def uniform(self, purpose: str) -> str:
        """SQL for a number in [0, 1) that depends on the seed, the purpose and the key alone."""
        salt = literal(f"{self.config.seed}/{purpose}/")
        return f"((md5_number_upper({salt} || key) >> 11)::DOUBLE / {2**53})"

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The answer to a question."""
        return self.bench.fetch(sql).to_pylist()  # type: ignore[no-any-return]


def row_steps(recipe: RecipeConfig) -> Iterator[Step]:
    """The steps that look at one caption at a time."""
    yield Step("captioned", "not captioned yet", "width IS NULL")
    yield Step("captioned", "has no caption", "prompt IS NULL")
    if recipe.prompts:
        yield Step("prompts", "another prompt", f"prompt NOT IN ({', '.join(map(literal, recipe.prompts))})")
    statuses = ", ".join(map(literal, recipe.statuses))
    yield Step("statuses", f"status is not {' or '.join(recipe.statuses)}", f"status NOT IN ({statuses})")
    if recipe.min_side_px:
        side = f"least(width, height) < {recipe.min_side_px}"
        yield Step("min_side_px", f"shorter side below {recipe.min_side_px} px", side)
    if recipe.max_aspect is not None:
        aspect = f"greatest(width, height) > {recipe.max_aspect!r} * least(width, height)"
        yield Step("max_aspect", f"aspect above {recipe.max_aspect:g}", aspect)
    for name, least in recipe.least.items():
        yield Step("least", f"{name} below {least:g} or missing", f"coalesce({quoted(name)} < {least!r}, true)")
    if recipe.where:
        yield Step("where", recipe.where, f"coalesce(NOT ({recipe.where}\n), true)")


def keep_survey(state: SelectionState) -> None:
    """Makes the view `candidates` and the table `survey`. Raises UserError for SQL that is none and for unknown columns."""
    for setting, conditions in (("where", [state.config.where]), ("splits", state.conditions.values())):
        for condition in filter(None, conditions):
            state.bench.check_condition(condition, setting=setting)
    candidates = [_candidates_sql(state, number) for number in range(len(state.names))]
    state.bench.define("candidates", " UNION ALL BY NAME ".join(candidates))
    drops = " ".join(f"WHEN {step.drops} THEN {number}" for number, step in enumerate(state.steps))
    columns = list(HISTOGRAMS)
    columns += [f"{quoted(name)}::DOUBLE AS {_value(index)}" for index, name in enumerate(state.config.quantiles)]
    columns += [f"coalesce(({sql}\n), false) AS {condition_column(name)}" for name, sql in state.conditions.items()]
    state.bench.keep(
        "survey",
        f"SELECT list_position([{', '.join(map(literal, state.names))}], run)::SMALLINT - 1 AS run, unit, key, prompt, "
        f"(CASE {drops} END)::SMALLINT AS step{''.join(f', {column}' for column in columns)} FROM candidates",
    )


def keep_quantiles(state: SelectionState) -> None:
    """Drops captions outside of the quantiles that the recipe asks for, one column after the other."""
    for index, (name, (low, high)) in enumerate(state.config.quantiles.items()):
        value = _value(index)
        found = f"SELECT quantile_disc({value}, [{low}, {high}]) FROM survey WHERE step IS NULL"
        number = state.add_step(Step("quantiles", f"{name} outside of its quantiles {low:g} to {high:g}"))
        state.bench.change(
            f"UPDATE survey SET step = {number} WHERE step IS NULL AND "
            f"coalesce({value} < ({found})[1] OR {value} > ({found})[2], true)"
        )


def pick_images(state: SelectionState) -> None:
    """Makes the table `picked`: an image is dropped with its last caption, by the last step that dropped one."""
    conditions = "".join(f", bool_or({name} AND step IS NULL) AS {name}" for name in map(condition_column, state.conditions))
    state.bench.keep(
        "picked",
        "SELECT run, any_value(unit) AS unit, key, CASE WHEN bool_and(step IS NOT NULL) THEN max(step) END AS step, "
        f"NULL::BIGINT AS exact_group, NULL::BIGINT AS near_group, NULL::VARCHAR AS split{conditions} "
        "FROM survey GROUP BY run, key",
    )


def condition_column(split: str) -> str:
    """The column of `survey` and `picked` that tells whether the condition of a split holds."""
    return f"in_{split}"


def _candidates_sql(state: SelectionState, number: int) -> str:
    """A row to a caption of a run, with the columns of its image and scores; an image without captions has one row."""
    name = state.names[number]
    run = state.runs[name]
    own = [quoted(column) for column in CAPTIONS.names if column != "key"]
    figures = [f"{sql} AS {column}" for column, sql in CAPTION_FIGURES.items()]
    figures.append(value_sql(run.record.structured_prompts))
    images = [quoted(column) for column in run.image_columns if column != "key"]
    captions = state.captions(number, f"run_{number}.stored.captions")
    reviews, joins = _reviews_sql(run, number)
    return (
        f"SELECT {literal(name)} AS run, c.unit, i.key, {', '.join([*own, *figures, *reviews, *images])}, s.* EXCLUDE (key) "
        f"FROM run_{number}.images i LEFT JOIN {captions} c USING (key) "
        f"LEFT JOIN run_{number}.scores s USING (key){joins}"
    )


def _reviews_sql(run: RunFiles, number: int) -> tuple[list[str], str]:
    """The columns `flag` and `is_edited` of a caption `c`, and the joins that they need: none where nobody has reviewed."""
    columns, joins = ["NULL::VARCHAR AS flag", "false AS is_edited"], ""
    if len(run.reviews.flags):
        columns[0] = "nullif(flagged.value, '') AS flag"
        joins += _current_sql(f"run_{number}.flags", "flag", called="flagged")
    if len(run.reviews.edits):
        columns[1] = "edited.value IS NOT NULL AS is_edited"
        joins += _current_sql(f"run_{number}.edits", "true", called="edited")
    return columns, joins


def _current_sql(table: str, value: str, *, called: str) -> str:
    """A join of the current reviews; its columns have names that no other relation has."""
    current = f"(SELECT key AS {called}_key, prompt AS {called}_prompt, {value} AS value FROM {table} WHERE is_current)"
    return f" LEFT JOIN {current} {called} ON {called}_key = c.key AND {called}_prompt = c.prompt"


def _value(index: int) -> str:
    return f"value_{index}"
