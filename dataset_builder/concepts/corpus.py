"""Noun counts of a body of text that is tagged now, such as the alt text of a run or a column of a Parquet file.

A column is read in batches and tagged on all cores; memory grows with the number of different nouns, not with the text.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from dataset_builder.concepts.noun_counts import caption_nouns, count_nouns, load_t5_view, load_tagger, merge_counts
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from foundry.hardware import usable_cores

if TYPE_CHECKING:
    import pyarrow as pa

TEXTS_PER_TASK = 1000
_MERGE_EVERY = 16
# Below this, tagging here is done before worker processes have loaded their models.
_SMALL_CHARS = 1_500_000

Texts = Iterator[tuple[Sequence[str], Sequence[str | None]]]
"""Batches of a column: the prompt of each text ("" if there is none), and the texts."""


@dataclass(frozen=True, kw_only=True)
class CountedText:
    """One row of the table: a body of text, how much of it there is, and its noun counts."""

    source: str
    """Path or URL of the run or file."""
    column: str
    """Its text column."""
    prompt: str
    """The prompt that the texts answer; "" for a column without prompts."""
    num_captions: int
    """Texts, empty ones left out."""
    num_empty: int
    """Rows without text: null, blank, or a caption that was refused."""
    num_cut: int
    """Texts of which the text encoder does not read all."""
    counts: "pa.Table"
    """schema.NOUN_COUNTS of this prompt."""
    tagger: dict[str, Any]
    """NounTagger.describe()."""
    t5: dict[str, Any]
    """T5View.describe()."""


@dataclass
class _Tally:
    """Sums of one prompt while a column is read."""

    num_captions: int = 0
    num_empty: int = 0
    num_cut: int = 0


@dataclass
class _Counted:
    """Counts of one task, or of all."""

    tallies: dict[str, _Tally] = field(default_factory=dict)
    tables: "list[pa.Table]" = field(default_factory=list)

    def add(self, other: "_Counted") -> None:
        """Adds the sums; tables are merged now and then, so that memory does not grow with their number."""
        for prompt, tally in other.tallies.items():
            own = self.tallies.setdefault(prompt, _Tally())
            own.num_captions += tally.num_captions
            own.num_empty += tally.num_empty
            own.num_cut += tally.num_cut
        self.tables += other.tables
        if len(self.tables) > _MERGE_EVERY:
            self.tables = [merge_counts(self.tables)]


def tagged_texts(
    texts: Texts, *, source: str, column: str, tagger: TaggerConfig, t5: T5Config, num_workers: int | None = None
) -> list[CountedText]:
    """Tags and counts a column now, a row to a prompt, on `num_workers` processes (default: one to a core).

    The counts do not depend on the number of processes. Raises UserError if the tagger or the tokenizer is unavailable.
    """
    tagger_description, t5_description = load_tagger(tagger).describe(), load_t5_view(t5).describe()
    tasks = _tasks(texts)
    first, num_chars = [], 0
    for task in tasks:
        first.append(task)
        num_chars += sum(len(text or "") for text in task[1])
        if num_chars > _SMALL_CHARS:
            break
    num_workers = num_workers or usable_cores()
    counted = _Counted()
    if num_chars <= _SMALL_CHARS or num_workers == 1:
        for prompts, batch in chain(first, tasks):
            counted.add(_count_task(prompts, batch, tagger, t5))
    else:
        for part in _count_in_processes(chain(first, tasks), tagger, t5, num_workers=num_workers):
            counted.add(part)
    every = merge_counts(counted.tables)
    return [
        CountedText(
            source=source,
            column=column,
            prompt=prompt,
            num_captions=tally.num_captions,
            num_empty=tally.num_empty,
            num_cut=tally.num_cut,
            counts=counts_of_prompt(every, prompt),
            tagger=tagger_description,
            t5=t5_description,
        )
        for prompt, tally in sorted(counted.tallies.items())
    ]


def counts_of_prompt(counts: "pa.Table", prompt: str) -> "pa.Table":
    """The rows of schema.NOUN_COUNTS that are of this prompt."""
    import pyarrow.compute as pc

    return counts.filter(pc.equal(counts["prompt"], prompt))


def _tasks(texts: Texts) -> Texts:
    for prompts, batch in texts:
        for start in range(0, len(batch), TEXTS_PER_TASK):
            yield prompts[start : start + TEXTS_PER_TASK], batch[start : start + TEXTS_PER_TASK]


def _count_in_processes(tasks: Texts, tagger: TaggerConfig, t5: T5Config, *, num_workers: int) -> Iterator[_Counted]:
    """Yields the counts of all tasks, with at most two tasks to a process waiting or done."""
    pending: set[Future[_Counted]] = set()
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        for prompts, batch in tasks:
            if len(pending) >= 2 * num_workers:
                done, pending = wait(pending, return_when="FIRST_COMPLETED")
                yield from (future.result() for future in done)
            pending.add(pool.submit(_count_task, prompts, batch, tagger, t5))
        yield from (future.result() for future in pending)


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism


def _count_task(prompts: Sequence[str], texts: Sequence[str | None], tagger: TaggerConfig, t5: T5Config) -> _Counted:
    counted = _Counted()
    kept: list[tuple[_Tally, str, str]] = []
    for prompt, text in zip(prompts, texts, strict=True):
        tally = counted.tallies.setdefault(prompt, _Tally())
        if text and not text.isspace():
            kept.append((tally, prompt, text))
        else:
            tally.num_empty += 1
    written = [text for _, _, text in kept]
    captions = []
    tagged, views = load_tagger(tagger).tag(written), load_t5_view(t5).measure(written)
    for (tally, prompt, _), nouns, view in zip(kept, tagged, views, strict=True):
        captions.append(caption_nouns(nouns, prompt=prompt, cut_char=view.cut_char))
        tally.num_captions += 1
        tally.num_cut += view.num_t5_tokens > t5.max_tokens
    counted.tables.append(count_nouns(captions))
    return counted
