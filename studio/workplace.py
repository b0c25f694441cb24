"""What a studio is opened on: runs, data sets, trainings and checkpoints, told apart by what their folders hold."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataset_builder.sql.dataset_files import is_dataset
from foundry.errors import UserError
from foundry.storage.run_record import is_run
from studio.captions.source import CaptionSource, open_sources


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What is open, and where the studio keeps what it writes."""

    sources: list[CaptionSource]
    trainings: list[Path]
    checkpoints: list[str]
    out: Path


@contextmanager
def open_workplace(opened: Sequence[str], *, checkpoints: Sequence[str], out: Path, cache: Path) -> Iterator[Workplace]:
    """Opens what is named. Raises UserError for a folder that is none of these, and where there is nothing to show."""
    captions, trainings = [], []
    for name in opened:
        if is_dataset(name) or is_run(name):
            captions.append(name)
        else:
            trainings += _trainings(name)
    with open_sources(captions, cache=cache) as sources:
        yield Workplace(sources=sources, trainings=trainings, checkpoints=list(checkpoints), out=out)


def _trainings(name: str) -> list[Path]:
    """The trainings in a folder: itself, or the stages below it."""
    folder = Path(name)
    found = [path.parent for pattern in ("metrics.jsonl", "*/metrics.jsonl") for path in sorted(folder.glob(pattern))]
    if not found:
        raise UserError(
            f"{name} is no captioning run (run.json), no data set (dataset.json) and no training (metrics.jsonl): "
            "give folders that t2i caption, t2i build or t2i fit wrote"
        )
    return found
