"""A captioning run of any size without images and without a model: files and commits as the captioner leaves them.

Nouns follow Zipf's law over a large vocabulary, about 29 to a caption, with two other words before each. Only the index files
of the plan are missing, which nobody reads once all units are committed.
"""

import hashlib
import json
import os
import string
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

MEAN_NOUNS = 29
OTHER_WORDS = 3000
T5_NOUNS = 25
"""Nouns that 120 tokens of T5 hold here."""
_ATTEMPT = "00000000"


@dataclass(frozen=True, kw_only=True)
class SyntheticRun:
    """Size of the run that `write_run` writes: a caption to an image, spread evenly over the units."""

    num_captions: int
    num_units: int
    num_nouns: int
    seed: int = 0
    images: tuple[str, tuple[tuple[int, int], ...]] | None = None
    """A tar, and the first byte and the length of each image in it, which the rows refer to in turn; none: a tar that is not
    there."""

    @property
    def unit_size(self) -> int:
        """Images to a unit; the last one may have fewer."""
        return -(-self.num_captions // self.num_units)


def write_run(folder: Path, run: SyntheticRun) -> None:
    """Writes the run on all cores, unless it is there; then its noun counts are added up, as the captioner does in the end.

    The same run always gets the same rows.
    """
    from dataset_builder.sql.noun_blocks import merge_counts_of
    from dataset_builder.sql.run_files import read_run
    from foundry.storage.run_record import is_run

    if not is_run(str(folder)):
        _write_units(folder, run)
    merge_counts_of(read_run(str(folder)))


def _write_units(folder: Path, run: SyntheticRun) -> None:
    from foundry.storage.folder import Folder
    from foundry.storage.run_record import RunRecord
    from foundry.storage.schema import SCHEMA_VERSION

    settings = {
        "tagger": {"model": "synthetic", "version": "1", "noun_tags": ["NN"]},
        "t5": {"tokenizer": "synthetic", "max_tokens": 120},
        "prompts": {"name": "synthetic", "version": "1", "prompts": [{"name": "dense", "text": "none: the words are drawn"}]},
        "unit_size": run.unit_size,
        "schema_version": SCHEMA_VERSION,
    }
    record = RunRecord.new(settings=settings, images=[], licence="")
    for name in ("captions", "images", "noun_counts", "commits", "plans"):
        (folder / name).mkdir(parents=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(partial(_write_unit, folder, run, record.run_id), range(run.num_units), chunksize=64):
            pass
    part = {"path": "images/plan-0.parquet", "first_unit": 0, "units": run.num_units, "rows": run.num_captions}
    (folder / "plans" / "0.json").write_text(json.dumps({"parts": [part], "sources": [], "num_repeated": 0}))
    record.create(Folder(str(folder)))


def _write_unit(folder: Path, run: SyntheticRun, run_id: str, number: int) -> None:
    from foundry.units.commits import Commit, CommittedFile, table_bytes

    images = range(number * run.unit_size, min((number + 1) * run.unit_size, run.num_captions))
    files = {}
    for kind, table in _tables(run, number, images):
        data = table_bytes(table)
        path = f"{kind}/{number:08d}-{_ATTEMPT}.parquet"
        (folder / path).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        files[kind] = CommittedFile(path=path, rows=len(table), num_bytes=len(data), sha256=digest)
    commit = Commit(
        run_id=run_id,
        unit=number,
        planned=len(images),
        completed=len(images),
        rejected={},
        files=files,
        attempt=_ATTEMPT,
        committed_at="2026-01-01T00:00:00.000+00:00",
    )
    (folder / f"commits/{number:08d}.json").write_text(json.dumps(asdict(commit), indent=1))


def _tables(run: SyntheticRun, number: int, images: range) -> "Iterator[tuple[str, pa.Table]]":
    import numpy as np
    import pyarrow as pa

    from dataset_builder.schema import CAPTIONS, NOUN_COUNTS
    from foundry.images.index import IMAGES

    rng = np.random.default_rng([run.seed, number])
    size = len(images)
    keys = [f"sa_{image:09d}" for image in images]
    num_nouns = rng.poisson(MEAN_NOUNS, size).clip(1).astype(np.int32)
    caption_of = np.repeat(np.arange(size), num_nouns)
    codes = np.searchsorted(_cumulative(run.num_nouns), rng.random(len(caption_of)))
    place = np.arange(len(codes)) - np.repeat(np.cumsum(num_nouns) - num_nouns, num_nouns)
    pairs = np.unique(codes.astype(np.int64) * size + caption_of)
    nouns = pa.ListArray.from_arrays(_offsets(num_nouns), _vocabulary(run.num_nouns).take(pa.array(codes)))
    tokens = (num_nouns * 4).astype(np.int32)
    columns: dict[str, Any] = {
        "key": keys,
        "prompt": ["dense"] * size,
        "caption": _texts(rng, codes, num_nouns, run.num_nouns),
        "status": ["ok"] * size,
        "flags": [[]] * size,
        "finish_reason": ["stop"] * size,
        "num_tokens": tokens,
        "num_words": num_nouns * 3,
        "num_t5_tokens": tokens,
        "num_nouns": num_nouns,
        "num_distinct_nouns": np.bincount(pairs % size, minlength=size).astype(np.int32),
        "num_meta_nouns": np.zeros(size, np.int32),
        "num_t5_nouns": num_nouns.clip(max=T5_NOUNS),
        "nouns": nouns,
        "mean_logprob": -rng.random(size, np.float32),
        "min_logprob": -4 * rng.random(size, np.float32),
    }
    columns["caption_raw"] = columns["caption"]
    yield "captions", pa.table({name: columns[name] for name in CAPTIONS.names}, schema=CAPTIONS)
    yield "images", _images(rng, keys, run, first=images.start).select(IMAGES.names)
    found, count = np.unique(codes, return_counts=True)
    count_t5 = np.bincount(codes[place < T5_NOUNS], minlength=run.num_nouns)[found]
    with_noun = np.bincount(pairs // size, minlength=run.num_nouns)[found]
    counts = [["dense"] * len(found), _vocabulary(run.num_nouns).take(pa.array(found)), count, count_t5, with_noun]
    yield "noun_counts", pa.table(dict(zip(NOUN_COUNTS.names, counts, strict=True)), schema=NOUN_COUNTS)


def _images(rng: "np.random.Generator", keys: list[str], run: SyntheticRun, *, first: int) -> "pa.Table":
    import pyarrow as pa

    from foundry.images.index import IMAGES

    size = len(keys)
    known: dict[str, Any] = {
        "key": keys,
        "uri": ["s3://bucket/sa_000000.tar"] * size,
        "member": [f"{key}.jpg" for key in keys],
        "byte_offset": range(0, size * 400_000, 400_000),
        "byte_length": [400_000] * size,
        "content_hash": [hashlib.md5(key.encode(), usedforsecurity=False).hexdigest() for key in keys],
        "width": rng.integers(256, 2048, size),
        "height": rng.integers(256, 2048, size),
        "format": ["JPEG"] * size,
    }
    if run.images is not None:
        tar, ranges = run.images
        own = [ranges[number % len(ranges)] for number in range(first, first + size)]
        known |= {"uri": [tar] * size, "byte_offset": [one[0] for one in own], "byte_length": [one[1] for one in own]}
        known["content_hash"] = [_hash_of(tar, *one) for one in own]
    return pa.table({name: known.get(name, [None] * size) for name in IMAGES.names}, schema=IMAGES)


@lru_cache(maxsize=4096)
def _hash_of(path: str, offset: int, length: int) -> str:
    from foundry.images.reader import content_hash

    with Path(path).open("rb") as file:
        file.seek(offset)
        return content_hash(file.read(length))


def _texts(
    rng: "np.random.Generator", codes: "NDArray[np.intp]", num_nouns: "NDArray[np.int32]", vocabulary: int
) -> "pa.Array":
    """Captions of two other words and a noun, again and again, (captions,)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    others = _vocabulary(vocabulary + OTHER_WORDS)
    words = np.empty((len(codes), 3), dtype=np.int64)
    words[:, :2] = vocabulary + (OTHER_WORDS * rng.random((len(codes), 2)) ** 3).astype(np.int64)
    words[:, 2] = codes
    return pc.binary_join(pa.ListArray.from_arrays(_offsets(num_nouns * 3), others.take(pa.array(words.ravel()))), " ")


def _offsets(lengths: "NDArray[np.int32]") -> "NDArray[np.int32]":
    import numpy as np

    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


@lru_cache(maxsize=1)
def _cumulative(size: int) -> "NDArray[np.float64]":
    """The Zipf-Mandelbrot distribution over ranks, summed up."""
    import numpy as np

    weights = 1 / (np.arange(size) + 2.7)
    summed: NDArray[np.float64] = np.cumsum(weights) / weights.sum()
    return summed


@lru_cache(maxsize=2)
def _vocabulary(size: int) -> "pa.StringArray":
    import pyarrow as pa

    return pa.array([_word(number) for number in range(size)])


def _word(number: int) -> str:
    """Different letters for each number, at least three."""
    letters = ""
    while number or len(letters) < 3:
        number, digit = divmod(number, 26)
        letters = string.ascii_lowercase[digit] + letters
    return letters
