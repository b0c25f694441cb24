"""Workplace of a studio: the runs, data sets, trainings and checkpoints that it is opened on, told apart by their files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataset_builder.sql.dataset_files import is_dataset
from foundry.errors import UserError
from foundry.storage.run_record import is_run
from model.formats.checkpoint import find_checkpoint, read_transformer_config
from model.rewriting.config import RewriteConfig
from studio.captions.source import CaptionSource, open_sources
from studio.captions.sql_box import SqlBox
from studio.drawing.painter import Painter
from trainer.monitoring.tracking.rows import METRICS


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What is open, and where the studio keeps what it writes."""

    sources: list[CaptionSource]
    trainings: list[Path]
    painter: Painter
    sql: SqlBox
    out: Path

    def close(self) -> None:
        """Stops drawings and queries that are under way."""
        self.painter.close()
        self.sql.close()


@contextmanager
def open_workplace(
    opened: Sequence[str],
    *,
    checkpoints: Sequence[str] = (),
    loras: Sequence[str] = (),
    rewrite: RewriteConfig | None = None,
    device: str = "auto",
    out: Path,
    cache: Path,
    sql_limit_s: float = 60.0,
) -> Iterator[Workplace]:
    """Opens what is named. Raises UserError for a folder that is nothing of it; checkpoints are looked for when they draw."""
    captions, trainings = [], []
    for name in opened:
        if is_dataset(name) or is_run(name):
            captions.append(name)
        else:
            trainings += _trainings(name)
    drawing = [*checkpoints, *(str(folder) for folder in trainings if _can_draw(folder))]
    painter = Painter(list(dict.fromkeys(drawing)), loras=loras, rewrite=rewrite, device=device)
    with open_sources(captions, cache=cache) as sources:
        yield Workplace(
            sources=sources, trainings=trainings, painter=painter, sql=SqlBox(sources, limit_s=sql_limit_s), out=out
        )


def _trainings(name: str) -> list[Path]:
    """The trainings in a folder: itself, or the stages below it."""
    folder = Path(name)
    found = [path.parent for pattern in (METRICS, f"*/{METRICS}") for path in sorted(folder.glob(pattern))]
    if not found:
        raise UserError(
            f"{name} is no captioning run (run.json), no data set (dataset.json) and no training ({METRICS}): "
            "give a folder that captioner.run, dataset_builder.build or trainer.fit wrote"
        )
    return found


def _can_draw(folder: Path) -> bool:
    """Whether a training has a checkpoint that draws prompts: those of the pixel stage draw classes."""
    try:
        return read_transformer_config(find_checkpoint(folder)).conditioning == "text"
    except UserError:
        return False
