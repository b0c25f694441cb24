"""Data set tab as plain functions: a recipe from the values of sliders, the funnel of its dry run, the file for build."""

import re
import shlex
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig, DedupConfig, RecipeConfig
from dataset_builder.sql.database import Database, scratch_database
from foundry.errors import UserError
from foundry.storage.folder import Folder, store_errors
from studio.captions.source import CaptionSource
from studio.html import failure, quiet, table, text

FOLDER = "recipes"
LEAST = {"num_words": "Words at least", "num_nouns": "Nouns at least", "num_distinct_nouns": "Different nouns at least"}
LEAST_SCORES = {"clip_mean": "CLIP score at least", "aesthetic": "Aesthetic score at least"}
NOT_BAD = "flag IS DISTINCT FROM 'bad'"
_NAME = re.compile(r"[\w-]{1,80}")


@dataclass(frozen=True, kw_only=True)
class Sliders:
    """Values of the components; 0 and empty ones are steps that are not taken."""

    prompts: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ("ok",)
    min_side_px: int = 0
    max_aspect: float = 0
    least: Mapping[str, float]
    without_bad: bool = False
    where: str = ""
    exact_duplicates: bool = False
    min_cosine: float = 0
    max_per_noun: int = 0
    validation_share: float = 0.01
    seed: int = 0

    def recipe(self) -> RecipeConfig:
        """The recipe of these values. Raises UserError as RecipeConfig does, and for SQL that is no single expression."""
        if self.where.strip():
            _check_condition(self.where)
        end = "\n" if "--" in self.where else ""  # a comment would hide what follows
        conditions = [f"({self.where}{end})"] if self.where.strip() else []
        conditions += [NOT_BAD] if self.without_bad else []
        shares: dict[str, float | str] = {"train": round(1 - self.validation_share, 6)}
        try:
            return RecipeConfig(
                statuses=self.statuses,
                prompts=self.prompts,
                min_side_px=self.min_side_px,
                max_aspect=self.max_aspect or None,
                least={name: float(value) for name, value in self.least.items() if value},
                where=" AND ".join(conditions),
                dedup=DedupConfig(exact=self.exact_duplicates, min_cosine=self.min_cosine or None),
                max_per_noun=self.max_per_noun or None,
                splits={"validation": self.validation_share, **shares} if self.validation_share else shares,
                seed=self.seed,
            )
        except ValueError as error:
            raise UserError(str(error)) from None


class RecipeTab:
    """Recipes over the runs that are open."""

    def __init__(self, sources: Sequence[CaptionSource], *, out: Path) -> None:
        self.runs = {source.title: source.url for source in sources if not source.is_dataset}
        self._sources = [source for source in sources if not source.is_dataset]
        self._out = out
        self._lock = threading.Lock()

    def prompts(self) -> list[str]:
        """The prompts of all runs."""
        return list(dict.fromkeys(prompt for source in self._sources for prompt in source.first().values("prompt")))

    def statuses(self) -> list[str]:
        """The statuses of captions in all runs, ok first."""
        found = {status for source in self._sources for status in source.first().values("status")}
        return ["ok", *sorted(found - {"ok"})]

    def funnel(self, runs: Sequence[str], sliders: Sliders) -> str:
        """The funnel of a dry run: images left and dropped by each step."""
        try:
            config = self._config(runs, sliders)
            with self._lock:  # one at a time: a slider that moves on asks again
                built = build_dataset(config)
        except UserError as error:
            return failure(str(error))
        rows = [row for row in built.funnel.to_pylist() if row["dropped"] or row["step"] == "planned"]
        planned = rows[0]["kept"] or 1
        shown = [
            {
                "step": row["step"],
                "reason": row["reason"],
                "dropped": row["dropped"],
                "left": row["kept"],
                "of all": f"{row['kept'] / planned:.1%}",
            }
            for row in rows
        ]
        notes = "".join(quiet(note) for note in built.notes)
        bar = f'<div class="left" style="--share:{100 * rows[-1]["kept"] / planned:.2f}%"><span></span></div>'
        said = f'<p class="big"><b>{rows[-1]["kept"]:,}</b> of {rows[0]["kept"]:,} images left</p>'
        return f'<div role="status" aria-live="polite">{said}{bar}{table(shown, caption="Funnel of the recipe")}{notes}</div>'

    def save(self, name: str, runs: Sequence[str], sliders: Sliders) -> str:
        """Writes the recipe as YAML that build reads, and says which command builds the data set.

        Raises UserError for a name that is no plain one, for a recipe of that name that is another, and for values that are
        refused.
        """
        if not _NAME.fullmatch(name.strip()):
            raise UserError("expected a name of letters, digits, _ and -, such as dense-v1")
        config = self._config(runs, sliders)
        path = self._out / FOLDER / f"{name.strip()}.yaml"
        content = recipe_yaml(config).encode()
        folder = Folder(str(path.parent))
        with store_errors(folder):
            if not folder.create(path.name, content) and path.read_bytes() != content:
                raise UserError(f"{path} is another recipe: give this one another name")
        command = ["t2i", "build", "--config", str(path), "--captions", *config.captions, "--out", name.strip()]
        return (
            f'<div role="status">{quiet(f"saved {path}; this builds the data set:")}'
            f"<pre><code>{text(shlex.join(command))}</code></pre></div>"
        )

    def _config(self, runs: Sequence[str], sliders: Sliders) -> BuildConfig:
        if not runs:
            raise UserError("no run is chosen: choose one or several")
        unknown = [run for run in runs if run not in self.runs]
        if unknown:
            raise UserError(f"{unknown[0]} is not open: choose one of {', '.join(self.runs)}")
        if not sliders.prompts:
            raise UserError("no prompt is chosen: choose one or several")
        every = set(self.prompts()) <= set(sliders.prompts)
        recipe = replace(sliders, prompts=() if every else sliders.prompts).recipe()
        values = {field.name: getattr(recipe, field.name) for field in fields(RecipeConfig)}
        return BuildConfig(captions=tuple(self.runs[run] for run in runs), out="dry-run", dry_run=True, **values)


def _check_condition(sql: str) -> None:
    with TemporaryDirectory(prefix="t2i-studio-") as spilled, scratch_database(spilled) as connection:
        Database(connection, comments={}, settings={}, ending=ExitStack()).check_condition(sql)


def recipe_yaml(config: BuildConfig) -> str:
    """The values of a recipe that differ from the defaults, as the option config of build reads them."""
    default = asdict(RecipeConfig())
    given = {name: value for name, value in asdict(config).items() if name in default and value != default[name]}
    return yaml.safe_dump(_plain(given), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """With lists in place of tuples."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
