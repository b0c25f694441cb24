"""Image steps of a recipe, as SQL: merge, de-duplicate, thin, split, choose.

Merging: an image is the same in several runs where key and content hash are equal. The first run in which a caption of it
is left owns the sample; the captions of the others are attached to it. Runs of one run_id wrote the same caption: that of the
first is taken. Where different runs have captions of an image under one prompt, it is called `run/prompt` in the data set.

These tables are left in the workbench: `others` (images in the runs that do not own them), `groups` (of duplicates) and
`chosen` (the images of the data set).
"""

from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dataset_builder.concepts.tagger import META_NOUNS
from dataset_builder.dataset.caption_steps import SelectionState, Step, condition_column
from dataset_builder.dataset.duplicates import Duplicates, find_duplicates
from dataset_builder.dataset.recipe import DedupConfig
from dataset_builder.schema import GROUPS
from dataset_builder.sql.views import literal
from foundry.errors import UserError

if TYPE_CHECKING:
    from dataset_builder.sql.database import Workbench

_NONE = "SELECT NULL::SMALLINT AS run, NULL::INTEGER AS unit, NULL::VARCHAR AS key, NULL::SMALLINT AS owner WHERE false"


def merge_images(state: SelectionState) -> None:
    """Merges images that several runs hold into one. A split's condition holds where it holds for a caption of any run."""
    _keep_others(state.bench, num_runs=len(state.names))
    if len(state.names) == 1:
        return
    run_ids = [run.record.run_id for run in state.runs.values()]
    image = state.add_step(Step("merged", "the same image in another run: their captions are merged"))
    caption = state.add_step(Step("merged", "the same caption in another run"))
    _keep_repeated(state.bench, run_ids=run_ids)
    state.bench.change(
        f"UPDATE survey SET step = {caption} FROM repeated r WHERE {_same_row('survey', 'r')} AND r.prompt = survey.prompt"
    )
    for name in map(condition_column, state.conditions):
        holds = f"SELECT owner AS run, key FROM others JOIN picked USING (run, key) WHERE {name}"
        state.bench.change(f"UPDATE picked SET {name} = true FROM ({holds}) g WHERE {_same_row('picked', 'g')}")
    state.bench.change(f"UPDATE picked SET step = {image} FROM others g WHERE {_same_row('picked', 'g')}")
    for prompt in _prompts_of_several(state.bench):
        named = [f"{state.names[run_ids.index(run_id)]}/{prompt}" for run_id in run_ids]
        state.renamed |= {(number, prompt): name for number, name in enumerate(named)}
        state.notes.append(
            f"several runs have captions of one image under {prompt}: they are {' and '.join(dict.fromkeys(named))} here"
        )


def drop_duplicates(state: SelectionState) -> None:
    """Drops images that are the same or nearly the same as another one, and makes the table `groups`."""
    config = state.config.dedup
    if not config.is_on:
        state.bench.keep_table("groups", GROUPS.empty_table())
        return
    left = f"(SELECT {state.run_name()} AS run, key FROM picked WHERE step IS NULL)"
    images = (
        "SELECT run, key, content_hash, width::BIGINT * height AS area_px, clip_mean, perceptual_hash "
        f"FROM {left} JOIN images USING (run, key) LEFT JOIN scores USING (run, key) ORDER BY run, key"
    )
    embeddings = f"SELECT run, key, embedding FROM {left} JOIN embeddings USING (run, key) ORDER BY run, key"
    with TemporaryDirectory() as directory:
        found = find_duplicates(
            state.bench.batches(images), embeddings=state.bench.batches(embeddings), config=config, directory=directory
        )
    state.notes += _not_compared(found, config)
    state.bench.keep_table("groups", found.groups)
    exact = state.add_step(Step("dedup", "the same bytes as another image"))
    near = state.add_step(Step("dedup", "nearly the same as another image"))
    state.bench.change(
        "UPDATE picked SET exact_group = g.exact_group, near_group = g.near_group, step = CASE WHEN g.is_kept THEN NULL "
        f"WHEN g.is_copy THEN {exact} ELSE {near} END FROM groups g "
        f"WHERE picked.step IS NULL AND g.run = {state.run_name()} AND g.key = picked.key "
        "AND (g.exact_group IS NOT NULL OR g.near_group IS NOT NULL)"
    )


def thin_nouns(state: SelectionState) -> None:
    """Draws images so that each noun is expected in at most `max_per_noun`: with probability most / (images that have it),
    by the most frequent of its nouns. Meta-nouns, which name no concept, and those of `uncapped_nouns` do not count."""
    most = state.config.max_per_noun
    if most is None:
        return
    number = state.add_step(Step("max_per_noun", f"capped: one of its nouns is in more than {most} images"))
    captions = " UNION ALL ".join(
        f"SELECT {index}::SMALLINT AS run, key, prompt, nouns FROM {state.captions(index, f'run_{index}.captions')}"
        for index in range(len(state.names))
    )
    left = "(SELECT run, key FROM picked WHERE step IS NULL)"
    uncapped = ", ".join(map(literal, sorted(META_NOUNS.union(state.config.uncapped_nouns))))
    state.bench.keep(
        "image_nouns",
        f"SELECT DISTINCT run, key, noun FROM (SELECT owner AS run, key, unnest(nouns) AS noun FROM ({captions}) "
        "JOIN (SELECT run, owner, key, prompt FROM kept) USING (run, key, prompt)) "
        f"JOIN {left} USING (run, key) WHERE noun NOT IN ({uncapped})",
    )
    frequent = f"SELECT noun, count(*) AS images FROM image_nouns GROUP BY noun HAVING count(*) > {most}"
    state.bench.keep(
        "thinned",
        f"SELECT run, key FROM image_nouns JOIN ({frequent}) USING (noun) GROUP BY run, key "
        f"HAVING {state.uniform('noun')} >= {most} / max(images)",
    )
    state.bench.keep("image_nouns", "SELECT 1 AS nothing")
    state.bench.change(f"UPDATE picked SET step = {number} FROM thinned t WHERE {_same_row('picked', 't')}")


def split_images(state: SelectionState) -> None:
    """Gives each image its split: the first that takes it; one that no split takes is dropped."""
    number = state.add_step(Step("splits", "in no split"))
    low, branches = 0.0, []
    for name, share in state.config.splits.items():
        if isinstance(share, str):
            branches.append(f"WHEN {condition_column(name)} THEN {literal(name)}")
        else:
            branches.append(f"WHEN {state.uniform('split')} BETWEEN {low!r} AND {low + share!r} THEN {literal(name)}")
            low += share
    state.bench.change(f"UPDATE picked SET split = CASE {' '.join(branches)} END WHERE step IS NULL")
    state.bench.change(f"UPDATE picked SET step = {number} WHERE step IS NULL AND split IS NULL")


def choose_images(state: SelectionState) -> None:
    """Makes the table `chosen`, the images of the data set; a key of different images in several runs gets its run's name.

    Raises UserError if two samples would have one key.
    """
    shared = "SELECT key FROM picked WHERE step IS NULL GROUP BY key HAVING count(*) > 1"
    state.bench.keep(
        "chosen",
        "SELECT run, unit, key, split, exact_group, near_group, "
        f"CASE WHEN key IN ({shared}) THEN {state.run_name()} || '/' || key ELSE key END AS sample_key "
        "FROM picked WHERE step IS NULL ORDER BY run, unit, key",
    )
    twice = state.rows("SELECT sample_key FROM chosen GROUP BY ALL HAVING count(*) > 1 LIMIT 1")
    if twice:
        raise UserError(
            f"the key {twice[0]['sample_key']} is in several runs: build them separately, or caption under other names"
        )


def _keep_others(bench: "Workbench", *, num_runs: int) -> None:
    """Makes the table `others` (run, unit, key, owner), runs as their numbers, of the table `picked`, and the view `kept`: the
    captions of the table `survey` that are left, with the owner of their image."""
    hashes = " UNION ALL ".join(
        f"SELECT {n}::SMALLINT AS run, key, content_hash FROM run_{n}.stored.images" for n in range(num_runs)
    )
    several = "SELECT key FROM picked WHERE step IS NULL GROUP BY key HAVING count(*) > 1"
    same = (
        "SELECT run, unit, key, min(run) OVER (PARTITION BY key, content_hash) AS owner "
        f"FROM picked JOIN ({hashes}) USING (run, key) WHERE step IS NULL AND key IN ({several}) QUALIFY owner < run"
    )
    bench.keep("others", same if num_runs > 1 else _NONE)
    bench.define(
        "kept", "SELECT s.*, coalesce(owner, run) AS owner FROM survey s LEFT JOIN others USING (run, key) WHERE step IS NULL"
    )


def _keep_repeated(bench: "Workbench", *, run_ids: Sequence[str]) -> None:
    """Makes the table `repeated` (run, key, prompt): captions of an image that an earlier run of the same run_id wrote too."""
    made_by = f"[{', '.join(map(literal, run_ids))}][run + 1]"
    bench.keep(
        "repeated",
        "SELECT run, key, prompt FROM kept WHERE key IN (SELECT key FROM others) "
        f"QUALIFY row_number() OVER (PARTITION BY owner, key, prompt, {made_by} ORDER BY run) > 1",
    )


def _prompts_of_several(bench: "Workbench") -> list[str]:
    """The prompts under which an image has several captions."""
    once = "SELECT owner, key, prompt FROM kept WHERE key IN (SELECT key FROM others) GROUP BY ALL HAVING count(*) > 1"
    return sorted(bench.fetch(f"SELECT DISTINCT prompt FROM ({once})")["prompt"].to_pylist())


def _not_compared(found: Duplicates, config: DedupConfig) -> Iterator[str]:
    advice = "python -m dataset_builder.score measures what is missing"
    if config.max_hamming is not None and found.num_without_hash:
        yield f"{found.num_without_hash:,} images have no perceptual hash to compare, being plain or not scored: {advice}"
    if config.min_cosine is not None and found.num_without_embedding:
        yield f"{found.num_without_embedding:,} images have no embedding to compare, not being scored: {advice}"


def _same_row(table: str, other: str) -> str:
    return f"{other}.run = {table}.run AND {other}.key = {table}.key"
