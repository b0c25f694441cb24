"""The steps of a recipe as SQL over captioning runs: which captions and images stay, and why the others do not.

Leaves these tables in the workbench: `survey` (a row to a caption), `picked` (a row to an image of a run), `guests` (see
merged_images.py), `groups` (of duplicates) and `chosen` (the images of the data set). `step` is the number of the step that
dropped a row, null for what stays. An image goes with its last caption.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dataset_builder.concepts.tagger import META_NOUNS
from dataset_builder.dataset.caption_steps import CAPTION_FIGURES, EMBED, REJECTED, Step, row_steps
from dataset_builder.dataset.image_steps import keep_guests, keep_repeated, prompts_of_several
from dataset_builder.dataset.recipe import DedupConfig, RecipeConfig
from dataset_builder.sql.run_files import RunFiles
from dataset_builder.sql.views import literal, quoted
from foundry.errors import UserError
from foundry.storage.schema import CAPTIONS, SCORES

if TYPE_CHECKING:
    import pyarrow as pa

    from dataset_builder.dataset.duplicates import Duplicates
    from dataset_builder.sql.database import Workbench

HISTOGRAMS = {"num_words": 10, "num_nouns": 5, "num_t5_tokens": 20}
"""What the card shows a histogram of, and the width of a class."""


class Selection:
    """Takes the steps of a recipe over the runs that are open in a workbench."""

    def __init__(self, bench: "Workbench", runs: dict[str, RunFiles], recipe: RecipeConfig) -> None:
        self._bench = bench
        self._recipe = recipe
        self.runs = runs
        self.names = list(runs)
        self.steps = list(row_steps(recipe))
        self.notes: list[str] = []
        self.renamed: dict[tuple[int, str], str] = {}
        """Number of a run and prompt → what the prompt is called in the data set, where that is something else."""

    def take_steps(self) -> None:
        """Makes the tables. Raises UserError for SQL that is none and for columns that are not there."""
        for condition in filter(None, [self._recipe.where, *self._conditions.values()]):
            self._bench.statements(f"SELECT {condition}")  # one expression, whose brackets are its own
        self._bench.define("candidates", " UNION ALL BY NAME ".join(map(self._candidates_sql, range(len(self.names)))))
        self._survey()
        self._keep_quantiles()
        self._pick()
        self._merge()
        self._drop_duplicates()
        self._thin_nouns()
        self._split()
        self._choose()

    def num_left(self) -> int:
        """The images of the data set."""
        return int(self._rows("SELECT count(*) AS images FROM chosen")[0]["images"])

    def funnel(self, *, lost: "Mapping[str, int] | None" = None) -> "pa.Table":
        """schema.FUNNEL of the steps; `lost` are images that could not be read afterwards, by reason."""
        import pyarrow as pa

        from foundry.storage.schema import FUNNEL

        planned = self._rows("SELECT (SELECT count(*) FROM picked) + (SELECT count(*) FROM rejected) AS images")[0]["images"]
        rows = [{"step": "planned", "reason": "", "kept": planned, "dropped": 0}]
        embedding = [(Step(EMBED, reason), number) for reason, number in (lost or {}).items()]
        for step, dropped in [*self._counts(), *embedding]:
            rows.append({"step": step.name, "reason": step.reason, "kept": rows[-1]["kept"] - dropped, "dropped": dropped})
        return pa.Table.from_pylist(rows, schema=FUNNEL)

    def histograms(self) -> dict[str, dict[int, int]]:
        """How many captions of the data set have so many words, nouns and T5 tokens: the least of each class → captions."""
        classes = ", ".join(f"{name} // {width} * {width} AS {name}" for name, width in HISTOGRAMS.items())
        joined = "kept JOIN chosen ON chosen.run = home AND chosen.key = kept.key"
        counts: dict[str, Counter[int]] = {name: Counter() for name in HISTOGRAMS}
        for row in self._rows(f"SELECT {classes}, count(*) AS captions FROM {joined} GROUP BY ALL"):
            for name, count in counts.items():
                count[row[name]] += row["captions"]
        return {name: dict(sorted(count.items())) for name, count in counts.items()}

    def dropped_sql(self) -> str:
        """Every image of the runs that was dropped, as schema.DROPPED, in the order of runs and keys."""
        return (
            f"SELECT key, {self._run_name()} AS run, {self._step_names()} FROM picked WHERE step IS NOT NULL "
            f"UNION ALL SELECT key, run, {literal(REJECTED)}, reason FROM rejected ORDER BY run, key"
        )

    def dropped_captions_sql(self) -> str:
        """Every caption that was dropped while its image stays, as schema.DROPPED_CAPTIONS."""
        return (
            f"SELECT s.key, {self._run_name('s.run')} AS run, prompt, {self._step_names()} FROM survey s "
            "LEFT JOIN guests USING (run, key) JOIN (SELECT run AS home_run, key AS home_key FROM chosen) "
            "ON home_run = coalesce(home, s.run) AND home_key = s.key WHERE step IS NOT NULL ORDER BY run, s.key, prompt"
        )

    def groups_sql(self) -> str:
        """The images that are in a group of duplicates, as schema.GROUPS."""
        return "FROM groups WHERE exact_group IS NOT NULL OR near_group IS NOT NULL ORDER BY run, key"

    def _counts(self) -> Iterator[tuple[Step, int]]:
        """How many images each step dropped, in order; images that the captioner rejected come first."""
        for row in self._rows("SELECT reason, count(*) AS dropped FROM rejected GROUP BY ALL ORDER BY reason"):
            yield Step(REJECTED, row["reason"]), row["dropped"]
        found = self._rows("SELECT step, count(*) AS dropped FROM picked WHERE step IS NOT NULL GROUP BY ALL")
        by_step = {row["step"]: row["dropped"] for row in found}
        for number, step in enumerate(self.steps):
            yield step, by_step.get(number, 0)

    def _candidates_sql(self, number: int) -> str:
        """A row to a caption of a run, with the columns of its image and scores; an image without captions has one row."""
        name = self.names[number]
        run = self.runs[name]
        own = [quoted(column) for column in CAPTIONS.names if column != "key"]
        figures = [f"{sql} AS {column}" for column, sql in CAPTION_FIGURES.items()]
        taken = {"run", "unit", *CAPTIONS.names, *CAPTION_FIGURES, *SCORES.names}
        images = [column for column in run.image_columns if column != "key"]
        renamed = [f"i.{quoted(column)} AS {quoted(f'source_{column}' if column in taken else column)}" for column in images]
        return (
            f"SELECT {literal(name)} AS run, c.unit, i.key, {', '.join([*own, *figures, *renamed])}, s.* EXCLUDE (key) "
            f"FROM run_{number}.images i LEFT JOIN run_{number}.stored.captions c USING (key) "
            f"LEFT JOIN run_{number}.scores s USING (key)"
        )

    def _survey(self) -> None:
        drops = " ".join(f"WHEN {step.drops} THEN {number}" for number, step in enumerate(self.steps))
        columns = list(HISTOGRAMS)
        columns += [f"{quoted(name)}::DOUBLE AS {_value(index)}" for index, name in enumerate(self._recipe.quantiles)]
        columns += [f"coalesce(({sql}\n), false) AS {_condition(name)}" for name, sql in self._conditions.items()]
        self._bench.keep(
            "survey",
            f"SELECT list_position([{', '.join(map(literal, self.names))}], run)::SMALLINT - 1 AS run, unit, key, prompt, "
            f"(CASE {drops} END)::SMALLINT AS step{''.join(f', {column}' for column in columns)} FROM candidates",
        )

    def _keep_quantiles(self) -> None:
        for index, (name, (low, high)) in enumerate(self._recipe.quantiles.items()):
            value = _value(index)
            found = f"SELECT quantile_disc({value}, [{low}, {high}]) FROM survey WHERE step IS NULL"
            number = self._add(Step("quantiles", f"{name} outside of its quantiles {low:g} to {high:g}"))
            self._bench.change(
                f"UPDATE survey SET step = {number} WHERE step IS NULL AND "
                f"coalesce({value} < ({found})[1] OR {value} > ({found})[2], true)"
            )

    def _pick(self) -> None:
        conditions = "".join(f", bool_or({name} AND step IS NULL) AS {name}" for name in map(_condition, self._conditions))
        self._bench.keep(
            "picked",
            "SELECT run, any_value(unit) AS unit, key, CASE WHEN bool_and(step IS NOT NULL) THEN max(step) END AS step, "
            f"NULL::BIGINT AS exact_group, NULL::BIGINT AS near_group, NULL::VARCHAR AS split{conditions} "
            "FROM survey GROUP BY run, key",
        )

    def _merge(self) -> None:
        """Images that several runs hold become one. Its splits' conditions hold where they hold for a caption of any run."""
        keep_guests(self._bench, num_runs=len(self.names))
        if len(self.names) == 1:
            return
        run_ids = [str(run.record.get("run_id")) for run in self.runs.values()]
        image = self._add(Step("merged", "the same image in another run: its captions are put together"))
        caption = self._add(Step("merged", "the same caption in another run"))
        keep_repeated(self._bench, run_ids=run_ids)
        self._bench.change(
            f"UPDATE survey SET step = {caption} FROM repeated r WHERE {_same_row('survey', 'r')} AND r.prompt = survey.prompt"
        )
        for name in map(_condition, self._conditions):
            holds = f"SELECT home AS run, key FROM guests JOIN picked USING (run, key) WHERE {name}"
            self._bench.change(f"UPDATE picked SET {name} = true FROM ({holds}) g WHERE {_same_row('picked', 'g')}")
        self._bench.change(f"UPDATE picked SET step = {image} FROM guests g WHERE {_same_row('picked', 'g')}")
        for prompt in prompts_of_several(self._bench):
            named = [f"{self.names[run_ids.index(run_id)]}/{prompt}" for run_id in run_ids]
            self.renamed |= {(number, prompt): name for number, name in enumerate(named)}
            self.notes.append(
                f"several runs have captions of one image under {prompt}: they are {' and '.join(dict.fromkeys(named))} here"
            )

    def _drop_duplicates(self) -> None:
        from dataset_builder.dataset.duplicates import find_duplicates
        from foundry.storage.schema import GROUPS

        config = self._recipe.dedup
        if not config.is_on:
            self._bench.keep_table("groups", GROUPS.empty_table())
            return
        left = f"(SELECT {self._run_name()} AS run, key FROM picked WHERE step IS NULL)"
        images = (
            "SELECT run, key, content_hash, width::BIGINT * height AS area_px, clip_mean, perceptual_hash "
            f"FROM {left} JOIN images USING (run, key) LEFT JOIN scores USING (run, key) ORDER BY run, key"
        )
        embeddings = f"SELECT run, key, embedding FROM {left} JOIN embeddings USING (run, key) ORDER BY run, key"
        with TemporaryDirectory() as directory:
            found = find_duplicates(
                self._bench.batches(images), embeddings=self._bench.batches(embeddings), config=config, directory=directory
            )
        self.notes += _not_compared(found, config)
        self._bench.keep_table("groups", found.groups)
        exact = self._add(Step("dedup", "the same bytes as another image"))
        near = self._add(Step("dedup", "nearly the same as another image"))
        self._bench.change(
            "UPDATE picked SET exact_group = g.exact_group, near_group = g.near_group, step = CASE WHEN g.is_kept THEN NULL "
            f"WHEN g.is_copy THEN {exact} ELSE {near} END FROM groups g "
            f"WHERE picked.step IS NULL AND g.run = {self._run_name()} AND g.key = picked.key "
            "AND (g.exact_group IS NOT NULL OR g.near_group IS NOT NULL)"
        )

    def _thin_nouns(self) -> None:
        """Draws images so that each noun is expected in at most `max_per_noun`: with probability most / (images that have it),
        by the most frequent of its nouns. Meta-nouns, which name no concept, and those of `uncapped_nouns` do not count."""
        most = self._recipe.max_per_noun
        if most is None:
            return
        number = self._add(Step("max_per_noun", f"drawn out: one of its nouns is in more than {most} images"))
        captions = " UNION ALL ".join(
            f"SELECT {index}::SMALLINT AS run, key, prompt, nouns FROM run_{index}.captions" for index in range(len(self.names))
        )
        left = "(SELECT run, key FROM picked WHERE step IS NULL)"
        uncapped = ", ".join(map(literal, sorted(META_NOUNS.union(self._recipe.uncapped_nouns))))
        self._bench.keep(
            "image_nouns",
            f"SELECT DISTINCT run, key, noun FROM (SELECT home AS run, key, unnest(nouns) AS noun FROM ({captions}) "
            "JOIN (SELECT run, home, key, prompt FROM kept) USING (run, key, prompt)) "
            f"JOIN {left} USING (run, key) WHERE noun NOT IN ({uncapped})",
        )
        frequent = f"SELECT noun, count(*) AS images FROM image_nouns GROUP BY noun HAVING count(*) > {most}"
        self._bench.keep(
            "thinned",
            f"SELECT run, key FROM image_nouns JOIN ({frequent}) USING (noun) GROUP BY run, key "
            f"HAVING {self._uniform('noun')} >= {most} / max(images)",
        )
        self._bench.keep("image_nouns", "SELECT 1 AS nothing")
        self._bench.change(f"UPDATE picked SET step = {number} FROM thinned t WHERE {_same_row('picked', 't')}")

    def _split(self) -> None:
        number = self._add(Step("splits", "in no split"))
        low, branches = 0.0, []
        for name, share in self._recipe.splits.items():
            if isinstance(share, str):
                branches.append(f"WHEN {_condition(name)} THEN {literal(name)}")
            else:
                branches.append(f"WHEN {self._uniform('split')} BETWEEN {low!r} AND {low + share!r} THEN {literal(name)}")
                low += share
        self._bench.change(f"UPDATE picked SET split = CASE {' '.join(branches)} END WHERE step IS NULL")
        self._bench.change(f"UPDATE picked SET step = {number} WHERE step IS NULL AND split IS NULL")

    def _choose(self) -> None:
        """A key that is that of different images in several runs gets the name of its run before it."""
        shared = "SELECT key FROM picked WHERE step IS NULL GROUP BY key HAVING count(*) > 1"
        self._bench.keep(
            "chosen",
            "SELECT run, unit, key, split, exact_group, near_group, "
            f"CASE WHEN key IN ({shared}) THEN {self._run_name()} || '/' || key ELSE key END AS sample_key "
            "FROM picked WHERE step IS NULL ORDER BY run, unit, key",
        )
        twice = self._rows("SELECT sample_key FROM chosen GROUP BY ALL HAVING count(*) > 1 LIMIT 1")
        if twice:
            raise UserError(
                f"the key {twice[0]['sample_key']} is in several runs: build them apart, or caption under other names"
            )

    @property
    def _conditions(self) -> dict[str, str]:
        return {name: sql for name, sql in self._recipe.splits.items() if isinstance(sql, str)}

    def _add(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def _run_name(self, number: str = "picked.run") -> str:
        return f"[{', '.join(map(literal, self.names))}][{number} + 1]"

    def _step_names(self) -> str:
        """The columns `step` and `reason` by the number of a step."""
        names, reasons = ([literal(getattr(step, of)) for step in self.steps] for of in ("name", "reason"))
        return f"[{', '.join(names)}][step + 1] AS step, [{', '.join(reasons)}][step + 1] AS reason"

    def _uniform(self, purpose: str) -> str:
        """A number in [0, 1) that depends on the seed, the purpose and the key alone."""
        salt = literal(f"{self._recipe.seed}/{purpose}/")
        return f"((md5_number_upper({salt} || key) >> 11)::DOUBLE / {2**53})"

    def _rows(self, sql: str) -> list[dict[str, Any]]:
        table: pa.Table = self._bench.fetch(sql)
        return table.to_pylist()  # type: ignore[no-any-return]


def _not_compared(found: "Duplicates", config: DedupConfig) -> Iterator[str]:
    advice = "python -m dataset_builder.score measures what is missing"
    if config.max_hamming is not None and found.num_without_hash:
        yield f"{found.num_without_hash:,} images have no perceptual hash to compare, being plain or not scored: {advice}"
    if config.min_cosine is not None and found.num_without_embedding:
        yield f"{found.num_without_embedding:,} images have no embedding to compare, not being scored: {advice}"


def _same_row(table: str, other: str) -> str:
    return f"{other}.run = {table}.run AND {other}.key = {table}.key"


def _value(index: int) -> str:
    return f"value_{index}"


def _condition(split: str) -> str:
    return f"in_{split}"
