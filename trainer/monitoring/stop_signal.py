"""Ending a training in good order: SIGTERM, Ctrl-C or a file STOP in its folder; all workers stop at the same step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from trainer.distributed import Workers
from trainer.monitoring.run_folder import RunFolder

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Takes the signals while it is open. A second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Ray's workers train in another, and get no signals
            self._before = {kind: signal.signal(kind, self._receive) for kind in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for received, handler in self._before.items():
            signal.signal(received, handler)

    def _receive(self, received: int, _frame: FrameType | None) -> None:
        if self.received and received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


class StopSignal(StopSignals):
    """What a worker asks after each step."""

    def __init__(self, run: RunFolder, workers: Workers) -> None:
        super().__init__()
        self._run = run
        self._workers = workers

    def stops(self, *, look: bool) -> bool:
        """Whether to stop after this step. One process knows at once; several ask each other, and the folder, where `look`."""
        if look:
            return self._workers.any(self.received or (self._workers.is_first and self._run.asked_to_stop()))
        return self.received and self._workers.num == 1
