"""Pairs of a short prompt and a dense caption of the same image, from captioning runs, data sets and Parquet files."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from foundry.errors import UserError
from trainer.rewriting.config import FitRewriterConfig

COLUMNS = ("prompt", "caption")


@dataclass(frozen=True)
class Pair:
    """A prompt and the caption that it is rewritten into."""

    prompt: str
    caption: str


def read_pairs(config: FitRewriterConfig) -> list[Pair]:
    """All pairs, each once, in the order of their sources. Raises UserError for a source that holds none."""
    pairs: dict[Pair, None] = {}
    for source in config.captions:
        found = list(_of_captions(source, short=config.short, dense=config.dense))
        if not found:
            raise UserError(
                f"{source} holds no image with a caption of {' or '.join(config.short)} and one of {config.dense}: caption it "
                "with the prompt set ladder, or name the prompts that it has",
                setting="captions",
            )
        pairs |= dict.fromkeys(found)
    for path in config.pairs:
        pairs |= dict.fromkeys(_of_file(Path(path)))
    return list(pairs)


def split_pairs(pairs: Sequence[Pair], *, num_validation: int) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs: the prompts of the latter have the smallest hashes, and none of them is trained on.

    Raises UserError if too few prompts are left to train on.
    """
    hashes = {pair.prompt: hashlib.sha256(pair.prompt.encode()).digest() for pair in pairs}
    kept_out = set(sorted(hashes, key=hashes.__getitem__)[:num_validation])
    training = [pair for pair in pairs if pair.prompt not in kept_out]
    if not training:
        raise UserError(
            f"{len(hashes)} prompts, of which {num_validation} are kept out: give more pairs, or keep out fewer",
            setting="validation_pairs",
        )
    return training, list({pair.prompt: pair for pair in pairs if pair.prompt in kept_out}.values())


def _of_captions(source: str, *, short: Sequence[str], dense: str) -> Iterator[Pair]:
    from dataset_builder.sql.dataset_files import open_stored
    from dataset_builder.sql.views import literal

    names = ", ".join(map(literal, short))
    with open_stored(source) as database:
        table = database.fetch(
            "SELECT short.caption AS prompt, dense.caption AS caption FROM captions AS short "
            "JOIN captions AS dense USING (key) "
            f"WHERE short.prompt IN ({names}) AND dense.prompt = {literal(dense)} ORDER BY key, short.prompt"
        )
    yield from _pairs(table.to_pylist())


def _of_file(path: Path) -> Iterator[Pair]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=list(COLUMNS))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: expected a Parquet file with the columns prompt and caption ({reason})", setting="pairs"
        ) from error
    if missing := set(COLUMNS) - set(table.column_names):
        raise UserError(f"{path} has no column {min(missing)}: expected prompt and caption", setting="pairs")
    yield from _pairs(table.to_pylist())


def _pairs(rows: Sequence[dict[str, str | None]]) -> Iterator[Pair]:
    for row in rows:
        prompt, caption = (row["prompt"] or "").strip(), (row["caption"] or "").strip()
        if prompt and caption:
            yield Pair(prompt, caption)
