"""Progress of work whose pieces are counted: a bar on a terminal or in a notebook, elsewhere a line now and then, or JSON."""

import html
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from foundry.reporting.lines import OUTPUT, report, say
from foundry.wording import counted, duration

LINE_EVERY_S = 10.0
NOTEBOOK_EVERY_S = 0.5
ItemT = TypeVar("ItemT")


@dataclass
class Counted:
    """What a bar shows."""

    what: str
    """Name of the work."""
    unit: str
    """Noun of a piece, whose plural ends in s."""
    total: int | None
    """Number of pieces; None: unknown."""
    done: int = 0
    """Number of pieces that are done now; the speed is theirs."""
    before: int = 0
    """Number of pieces that an earlier start has done."""
    started: float = field(default_factory=time.perf_counter)
    """When the speed began to count, by time.perf_counter()."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Other figures by name; `_per_s` at its end is a speed."""

    @property
    def reached(self) -> int:
        """Number of pieces that are done."""
        return self.before + self.done

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return max(time.perf_counter() - self.started, 1e-9)

    @property
    def per_s(self) -> float:
        """Pieces per second."""
        return self.done / self.seconds

    @property
    def left_s(self) -> float | None:
        """Seconds until all are done at this speed; None where that is unknown."""
        return None if self.total is None or not self.done else max(0, self.total - self.reached) / self.per_s

    def words(self) -> str:
        """`512 of 2000 images, 48.1 images/s, 31 s left, 3168 tokens/s, 2 rejected`."""
        of = counted(self.reached, self.unit) if self.total is None else f"{self.reached} of {counted(self.total, self.unit)}"
        parts = [of, f"{self.per_s:.3g} {self.unit}s/s"]
        if self.left_s is not None and self.reached != self.total:
            parts.append(f"{duration(self.left_s)} left")
        for name, value in self.numbers.items():
            speed = name.removesuffix("_per_s")
            parts.append(f"{value:.0f} {speed}{'/s' if speed != name else ''}".replace("_", " "))
        return ", ".join(parts)

    def facts(self) -> dict[str, Any]:
        """The same for a program."""
        left_s = None if self.left_s is None else round(self.left_s, 1)
        own = {"what": self.what, "unit": self.unit, "done": self.reached, "total": self.total}
        return own | {"seconds": round(self.seconds, 3), "per_s": round(self.per_s, 3), "left_s": left_s} | self.numbers


class Bar:
    """Progress of some work, while it is open. `soon_s`: work that takes less is not shown; `shown` false shows nothing."""

    def __init__(
        self,
        what: str,
        *,
        total: int | None = None,
        unit: str = "image",
        before: int = 0,
        soon_s: float = 0.0,
        shown: bool = True,
    ) -> None:
        """`before`: pieces of the total that an earlier start has done."""
        self.counted = Counted(what=what, unit=unit, total=total, before=before)
        self._opened = time.perf_counter()
        self._soon_s = soon_s
        self._shown = shown
        self._view: _View | None = None

    def __enter__(self) -> Self:
        self._opened = self.counted.started = time.perf_counter()
        self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._view is not None:
            self._view.close(self.counted, is_done=kind is None)
            self._view = None

    def restart(self) -> None:
        """Counts from zero again, and the speed from now: what came before was no work on the pieces."""
        self.counted.done, self.counted.started = 0, time.perf_counter()
        self._show()

    def advance(self, count: int = 1, **numbers: float) -> None:
        """So many pieces more are done; `numbers` are other figures, as they are now."""
        self.counted.done += count
        self.counted.numbers |= numbers
        self._show()

    def _show(self) -> None:
        if self._view is None and self._shown and time.perf_counter() - self._opened >= self._soon_s:
            self._view = _view(self.counted)
        if self._view is not None:
            self._view.show(self.counted)


def tracked(items: Iterable[ItemT], what: str, *, total: int | None = None, unit: str = "image") -> Iterator[ItemT]:
    """The items; how many were taken is shown, where that takes longer than a second."""
    with Bar(what, total=total, unit=unit, soon_s=1.0) as bar:
        for item in items:
            yield item
            bar.advance()


def shows_bars() -> bool:
    """Whether progress is a bar here: on a terminal or in a notebook, and not lines or JSON."""
    return OUTPUT.format == "auto" and (_is_notebook() or sys.stderr.isatty())


class _View(Protocol):
    def show(self, counted: Counted) -> None: ...
    def close(self, counted: Counted, *, is_done: bool) -> None: ...


def _view(counted: Counted) -> _View:
    if OUTPUT.format == "json":
        return _Json()
    if OUTPUT.format == "plain":
        return _Lines()
    if _is_notebook():
        return _Notebook()
    return _Terminal(counted) if sys.stderr.isatty() else _Lines()


class _Lines:
    """A line every ten seconds; the last one only where there were others."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._any = False

    def show(self, counted: Counted) -> None:
        if time.perf_counter() - self._last >= LINE_EVERY_S:
            self._last, self._any = time.perf_counter(), True
            self._say(counted)

    def close(self, counted: Counted, *, is_done: bool) -> None:
        if self._any and is_done:
            self._say(counted)

    def _say(self, counted: Counted) -> None:
        say(f"{counted.what}: {counted.words()}", err=True)


class _Json:
    """An event every ten seconds, and one at the end, which says whether all was done."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def show(self, counted: Counted) -> None:
        if time.perf_counter() - self._last >= LINE_EVERY_S:
            self._last = time.perf_counter()
            report("progress", err=True, **counted.facts())

    def close(self, counted: Counted, *, is_done: bool) -> None:
        report("progress_end", err=True, **counted.facts(), is_done=is_done)


class _Terminal:
    """A bar of rich, on stderr, so that stdout stays the command's answer."""

    def __init__(self, counted: Counted) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[words]}"))
        console = Console(stderr=True)
        # Prints of libraries go above the bar too, unless stdout is a file.
        self._progress = Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty())
        self._task = self._progress.add_task(counted.what, total=counted.total, words=counted.words())
        self._progress.start()
        OUTPUT.consoles.append(self._progress.console)

    def show(self, counted: Counted) -> None:
        self._progress.update(self._task, completed=counted.reached, words=counted.words())

    def close(self, counted: Counted, *, is_done: bool) -> None:  # noqa: ARG002
        self.show(counted)
        self._progress.stop()
        OUTPUT.consoles.pop()


class _Notebook:
    """A bar of the browser, in the output of the cell; its words where no HTML is shown."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle: Any = display({"text/plain": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        self._last = 0.0

    def show(self, counted: Counted) -> None:
        if time.perf_counter() - self._last >= NOTEBOOK_EVERY_S:
            self._update(counted)

    def close(self, counted: Counted, *, is_done: bool) -> None:  # noqa: ARG002
        self._update(counted)

    def _update(self, counted: Counted) -> None:
        self._last = time.perf_counter()
        text = f"{counted.what}: {counted.words()}"
        share = "" if counted.total is None else f' value="{counted.reached}" max="{max(1, counted.total)}"'
        bar = f"<label>{html.escape(counted.what)} <progress{share}></progress> {html.escape(counted.words())}</label>"
        self._handle.update({"text/html": bar, "text/plain": text}, raw=True)


def _is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")
