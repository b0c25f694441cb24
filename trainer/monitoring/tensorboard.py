"""TensorBoard events of a run, written from its metrics and samples into RUN/tensorboard."""

from pathlib import Path

from foundry.errors import UserError
from foundry.reporting.lines import say
from trainer.monitoring.run_folder import METRICS, read_metrics
from trainer.monitoring.tracking.clients import EVENTS, TensorBoardTracker
from trainer.monitoring.tracking.rows import RunRows, TrackerState


class RunReader:
    """Copies a run's metrics and samples into events, each once; starts again where the run went back to a checkpoint."""

    def __init__(self, run: Path) -> None:
        if not (run / METRICS).is_file():
            raise UserError(f"expected a run's folder with {METRICS}, found none in {run}: give RUNS/<stage>")
        self._run = run
        self._before: list[dict[str, object]] = []
        self._rows = RunRows(run)
        self._writer: TensorBoardTracker | None = None

    def read(self) -> None:
        """Adds what is new. Raises UserError where a training writes the events itself."""
        with TrackerState(self._run, EVENTS).held(wait=False) as held:
            if not held:
                raise UserError(f"the training of {self._run} writes {self._run / EVENTS} itself (watch.tracker tensorboard)")
            self._read()

    def _read(self) -> None:
        whole = read_metrics(self._run)
        if self._writer is None or whole[: len(self._before)] != self._before:
            self._rows, self._writer = RunRows(self._run), TensorBoardTracker(self._run)
        self._before = whole
        new = self._rows.new()
        for row in new:
            self._writer.log(row, 0)
        self._writer.flush()
        say(f"{self._run}: {sum(row.image is None for row in new)} new rows in {self._run / EVENTS}")
