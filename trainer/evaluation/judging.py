"""Verdicts of every judge on every image, and on true images of the same prompts; and distances between the two sets.

DIR/verdicts/<judge>.jsonl has a line for each image, written as the judge gives it: an interrupted run resumes there.
An image that has changed, or a judge of another version, is judged again.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from foundry.hardware import Halving
from foundry.reporting.progress import Bar, tracked
from foundry.storage.json_lines import open_rows
from trainer.evaluation.benchmark import ALL, Benchmark, Embedding, Judge, JudgeSource, Prompt, Score, Verdict
from trainer.evaluation.frechet import frechet_distance
from trainer.evaluation.images import DrawnImage

VERDICTS = "verdicts"
GENERATED, TRUE = "generated", "true"
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The verdict of one judge on one image."""

    images: str
    """GENERATED or TRUE."""
    prompt: Prompt
    seed: int | None
    """None for a true image."""
    path: Path | None
    """Likewise."""
    judge: str
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """An image to be judged."""

    images: str
    prompt: Prompt
    seed: int | None
    path: Path | None
    read: Callable[[], npt.NDArray[np.uint8]]


_Asked = tuple[str, _Subject, npt.NDArray[np.uint8]]
"""An image that is judged: the key of its verdict, what it is, and its pixels."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A Fréchet distance between the generated and the true images."""

    embedding: str
    value: float
    between_true: float
    """Distance of as many true images of other prompts; a network that follows its prompts is below it."""
    num_images: int


def judge_all(out: Path, benchmark: Benchmark, drawn: Sequence[DrawnImage], *, batch_size: int) -> list[Judged]:
    """Every verdict, those of derived judges last; those that are kept already are not asked for again."""
    subjects = list(_subjects(benchmark, drawn))
    found: list[dict[str, Verdict]] = [{} for _ in subjects]
    for name, source in benchmark.judges.items():
        indices = [index for index, one in enumerate(subjects) if _is_judged(source, one.prompt)]
        own = [subjects[index] for index in indices]
        verdicts = _verdicts(out / VERDICTS / f"{name}.jsonl", name, source, own, batch_size=batch_size)
        for index, verdict in zip(indices, verdicts, strict=True):
            found[index][name] = verdict
    for name, derive in benchmark.derived.items():
        for one, by_judge in zip(subjects, found, strict=True):
            if (derived := derive(one.prompt, by_judge)) is not None:
                by_judge[name] = derived
    return [
        Judged(images=one.images, prompt=one.prompt, seed=one.seed, path=one.path, judge=name, verdict=by_judge[name])
        for name in (*benchmark.judges, *benchmark.derived)
        for one, by_judge in zip(subjects, found, strict=True)
        if name in by_judge
    ]


def set_scores(benchmark: Benchmark, drawn: Sequence[DrawnImage]) -> list[Score]:
    """Scores by each metric of the benchmark that scores all images together; an image that several prompts share counts
    once."""
    images = list({image.path: image for image in drawn}.values())
    return [
        Score(
            category=ALL,
            judge=name,
            metric=name,
            num_images=len(images),
            value=metric.measure(image.pixels() for image in tracked(images, name, total=len(images))),
        )
        for name, metric in benchmark.set_metrics.items()
    ]


def distances(benchmark: Benchmark, drawn: Sequence[DrawnImage]) -> list[Distance]:
    """Distances by each embedding of the benchmark; none without true images, or for a single image."""
    if benchmark.true_images is None or len(drawn) < 2:
        return []
    prompts = [image.prompt for image in drawn]
    found = []
    for name, load in benchmark.embeddings.items():
        embed = load()
        true = _features(embed, map(benchmark.true_images.of, prompts))
        others = _features(embed, map(benchmark.true_images.others, prompts))
        generated = _features(embed, (image.pixels() for image in drawn))
        value, between_true = frechet_distance(generated, true), frechet_distance(others, true)
        found.append(Distance(embedding=name, value=value, between_true=between_true, num_images=len(drawn)))
    return found


def _is_judged(source: JudgeSource, prompt: Prompt) -> bool:
    return source.categories is None or prompt.category in source.categories


def _features(embed: Embedding, images: Iterator[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
    read, batches = iter(lambda: list(itertools.islice(images, _BATCH)), []), Halving()
    return np.concatenate([features for batch in read for features in batches.run(batch, embed)])


def _subjects(benchmark: Benchmark, drawn: Sequence[DrawnImage]) -> Iterator[_Subject]:
    for image in drawn:
        yield _Subject(images=GENERATED, prompt=image.prompt, seed=image.seed, path=image.path, read=image.pixels)
    if benchmark.true_images is not None:
        for prompt in benchmark.prompts:
            read = _reader(benchmark.true_images.of, prompt)
            yield _Subject(images=TRUE, prompt=prompt, seed=None, path=None, read=read)


def _reader(of: Callable[[Prompt], npt.NDArray[np.uint8]], prompt: Prompt) -> Callable[[], npt.NDArray[np.uint8]]:
    return lambda: of(prompt)


def _verdicts(path: Path, name: str, source: JudgeSource, subjects: Sequence[_Subject], *, batch_size: int) -> list[Verdict]:
    """A verdict for each subject, from the file as far as it has them."""
    kept, verdicts, batches = _read(path), list[Verdict](), Halving()
    load = cache(source.load)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, Bar(name, total=len(subjects), soon_s=1.0) as bar:
        for start in range(0, len(subjects), batch_size):
            batch = subjects[start : start + batch_size]
            images = [subject.read() for subject in batch]
            keys = [_key(source.version, subject.prompt, image) for subject, image in zip(batch, images, strict=True)]
            new = [one for one in zip(keys, batch, images, strict=True) if one[0] not in kept]
            batches.run(new, partial(_ask, load, kept, file))
            verdicts += [kept[key] for key in keys]
            bar.advance(len(batch))
    return verdicts


def _ask(load: Callable[[], Judge], kept: dict[str, Verdict], file: TextIO, asked: Sequence[_Asked]) -> None:
    """Keeps each verdict as it comes; those that came before memory ran out are not asked for again."""
    left = [one for one in asked if one[0] not in kept]
    found = load()([image for _, _, image in left], [subject.prompt for _, subject, _ in left]) if left else ()
    for (key, subject, _), verdict in zip(left, found, strict=True):
        kept[key] = verdict
        file.write(_line(key, subject, verdict))
        file.flush()


def _key(version: str, prompt: Prompt, image: npt.NDArray[np.uint8]) -> str:
    digest = hashlib.blake2b(image.tobytes(), digest_size=12)
    digest.update(json.dumps([version, prompt.category, prompt.text, dict(prompt.data), image.shape]).encode())
    return digest.hexdigest()


def _line(key: str, subject: _Subject, verdict: Verdict) -> str:
    row = {"key": key, "images": subject.images, "prompt": subject.prompt.text, "seed": subject.seed}
    return json.dumps(row | {"values": dict(verdict.values), "seen": verdict.seen}, ensure_ascii=False) + "\n"


def _read(path: Path) -> dict[str, Verdict]:
    return {row["key"]: Verdict(values=row["values"], seen=row["seen"]) for row in open_rows(path)}
