"""Training metrics: a log line and a row per interval, loss spikes with their sample keys, an error on a non-finite loss.

Losses stay on the device and are fetched one interval late, so that no step waits for its own values. Before a checkpoint all
remaining ones are fetched: only a state with finite losses is saved.
"""

import math
import resource
import shlex
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foundry.errors import NotFinite
from foundry.wording import duration
from trainer.config.running import WatchConfig
from trainer.distributed import Workers
from trainer.monitoring.losses import LossRecorder
from trainer.monitoring.run_folder import CONFIG, NOT_FINITE, RunFolder, newest_checkpoint

_REMEMBERED = 100
_NAMED_KEYS = 8
_WINDOW_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The facts of a step that need no value from the device."""

    step: int
    """Number of the step in the stage, from 1."""
    images_seen: int
    """Images of the stage after the step."""
    resolution: int
    """Resolution of its rung, in pixels."""
    images_left: int
    """Images until the end of the rung."""
    lr: float
    """Learning rate."""
    keys: list[str]
    """This worker's samples, in order."""
    flops: float
    """FLOPs of the whole batch, forward and backward."""
    batch_size: int
    """Images of all workers."""
    wait_s: float
    """Time that this worker waited for its data, in seconds."""
    read_bytes: int = 0
    """Bytes that this worker read for the step, see FeatureBatch."""


@dataclass(eq=False)
class _Interval:
    """Steps whose values are fetched together."""

    steps: list[StepRecord] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    technique_losses: list[Mapping[str, Tensor]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    ended: float = 0.0
    seconds: float = 0.0
    """Of the steps: without validation, samples and checkpoints."""
    fetched: Tensor | None = None
    """Norms, then the losses of all samples, then those of techniques; on the CPU when `ready` says so."""
    ready: Any = None

    def fetch(self) -> None:
        """Starts the copy to the CPU."""
        self.ended = time.perf_counter()
        self.seconds = self.ended - self.started
        values = torch.cat([torch.stack(self.norms).float(), *(losses.float() for losses in self._all_losses())])
        self.fetched = values.to("cpu", non_blocking=True)
        if values.is_cuda:
            self.ready = torch.cuda.Event()
            self.ready.record()

    def values(self) -> "_Values":
        """The fetched values; waits for the copy."""
        assert self.fetched is not None
        if self.ready is not None:
            self.ready.synchronize()
        norms, *losses = self.fetched.split([len(self.norms), *(len(losses) for losses in self._all_losses())])
        added = iter(losses[len(self.losses) :])
        return _Values(
            norms=norms.tolist(),
            losses=losses[: len(self.losses)],
            technique_losses=[{name: next(added) for name in own} for own in self.technique_losses],
        )

    def _all_losses(self) -> list[Tensor]:
        return [*self.losses, *(losses for own in self.technique_losses for losses in own.values())]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Values:
    """Values of an interval on the CPU, by step."""

    norms: list[float]
    losses: list[Tensor]
    """(B,) each."""
    technique_losses: list[dict[str, Tensor]]
    """(B,) each, of the techniques that acted in the step."""


@dataclass(eq=False)
class _Clock:
    """Speed by the clock, with all that happens between the steps, over the intervals of the last hour."""

    _marks: deque[tuple[float, int, float]] = field(default_factory=deque)
    """Time at the end of an interval, and images and FLOPs until then; the first one is at the beginning."""
    _num_intervals: int = 0
    _resolution: int = 0

    def advance(self, interval: _Interval, *, images: int, flops: float) -> tuple[float, float]:
        """Adds an interval; images and FLOPs per second.

        The first interval of a resolution, which compiles, counts only until there is another one.
        """
        if interval.steps[-1].resolution != self._resolution:
            self._resolution, self._num_intervals = interval.steps[-1].resolution, 0
            self._marks = deque([(interval.started, 0, 0.0)])
        self._num_intervals += 1
        _, images_before, flops_before = self._marks[-1]
        self._marks.append((interval.ended, images_before + images, flops_before + flops))
        while len(self._marks) > 2 and (self._num_intervals == 2 or interval.ended - self._marks[0][0] > _WINDOW_S):
            self._marks.popleft()
        (since, *before), (until, *now) = self._marks[0], self._marks[-1]
        return (now[0] - before[0]) / (until - since), (now[1] - before[1]) / (until - since)


class MetricsReporter:
    """The metrics of a training, reported by interval. All workers make the same calls at the same steps."""

    def __init__(
        self, run: RunFolder, config: WatchConfig, workers: Workers, *, peak_flops: float | None, skip: str | None = None
    ) -> None:
        """`skip`: the list of samples that are left out already, see DataConfig."""
        self._run = run
        self._skip = skip
        self._config = config
        self._workers = workers
        self._peak_flops = peak_flops
        self._losses = LossRecorder(run.path, rank=workers.rank, every_steps=config.record_losses_every_steps)
        self._now = _Interval()
        self._before: _Interval | None = None
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)
        self._clock = _Clock()

    def add(
        self,
        record: StepRecord,
        *,
        losses: Tensor,
        gradient_norm: Tensor,
        timesteps: Tensor | None = None,
        technique_losses: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Adds a step: the losses (B,) of this worker's samples, those of techniques by name, and the norm () before clipping.

        All are on the device. The techniques of a step are the same on all workers. With the `timesteps` (B,) its losses are
        recorded by sample, where the settings say so.

        Raises NotFinite if a loss of an earlier interval was not finite.
        """
        self._now.steps.append(record)
        self._now.losses.append(losses)
        self._now.norms.append(gradient_norm)
        self._now.technique_losses.append(technique_losses or {})
        if timesteps is not None:
            self._losses.add(
                step=record.step,
                images_seen=record.images_seen,
                resolution=record.resolution,
                keys=record.keys,
                timesteps=timesteps,
                losses=losses,
            )
        if record.step % self._config.every_steps == 0:
            self._rotate()

    def flush(self) -> None:
        """Reports all steps so far, and waits for their numbers. Raises NotFinite if one is not finite."""
        if self._now.steps:
            self._rotate()
        self._report()
        self._losses.flush()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside from the interval."""
        started = time.perf_counter()
        yield
        now = time.perf_counter()
        self._now.started = self._now.started + now - started if self._now.steps else now

    def _rotate(self) -> None:
        self._now.fetch()
        self._report()
        self._before, self._now = self._now, _Interval()

    def _report(self) -> None:
        """Writes the interval that was fetched before."""
        interval, self._before = self._before, None
        if interval is None:
            return
        values = interval.values()
        rows = [
            [float(own.double().sum()), step.wait_s, step.read_bytes]
            for step, own in zip(interval.steps, values.losses, strict=True)
        ]
        table = self._workers.sum(torch.tensor(rows, dtype=torch.float64))
        means = [float(total) / step.batch_size for total, step in zip(table[:, 0], interval.steps, strict=True)]
        self._check_finite(interval, values, means)
        self._name_spikes(interval, values.losses, means)
        added = self._technique_means(interval, values)
        wait_s, read_bytes = float(table[:, 1].sum()) / self._workers.num, float(table[:, 2].mean())
        self._write(interval, values.norms, means, added, wait_s=wait_s, read_bytes=read_bytes)

    def _technique_means(self, interval: _Interval, values: _Values) -> dict[str, float]:
        """The mean loss of each technique, over the steps in which it acted."""
        names = list(dict.fromkeys(name for own in values.technique_losses for name in own))
        if not names:
            return {}
        sums = torch.zeros(len(names), dtype=torch.float64)
        images = dict.fromkeys(names, 0)
        for step, own in zip(interval.steps, values.technique_losses, strict=True):
            for name, losses in own.items():
                sums[names.index(name)] += losses.double().sum()
                images[name] += step.batch_size
        return {name: float(total) / images[name] for name, total in zip(names, self._workers.sum(sums), strict=True)}

    def _write(
        self,
        interval: _Interval,
        norms: list[float],
        means: list[float],
        added: dict[str, float],
        *,
        wait_s: float,
        read_bytes: float,
    ) -> None:
        last = interval.steps[-1]
        images = sum(step.batch_size for step in interval.steps)
        speed, flops = self._clock.advance(interval, images=images, flops=sum(step.flops for step in interval.steps))
        row = {
            "kind": "train",
            "step": last.step,
            "images_seen": last.images_seen,
            "resolution": last.resolution,
            "num_steps": len(interval.steps),
            "loss": statistics.fmean(means),
            **({"technique_losses": added} if added else {}),
            "gradient_norm": statistics.fmean(norms),
            "lr": last.lr,
            "images_per_s": images / interval.seconds,
            "overall_images_per_s": speed,
            "data_wait": wait_s / interval.seconds,
            "read_bytes": read_bytes,
            "mfu": flops / self._workers.num / self._peak_flops if self._peak_flops else None,
            "memory_bytes": _peak_memory(self._workers.device),
            "eta_s": last.images_left / speed,
        }
        self._run.add_metrics(row, _line(row, added))

    def _check_finite(self, interval: _Interval, values: _Values, means: list[float]) -> None:
        steps = zip(interval.steps, values.norms, values.losses, values.technique_losses, means, strict=True)
        for step, norm, own, added, mean in steps:
            if math.isfinite(mean) and math.isfinite(norm):
                continue
            whole = sum(added.values(), start=own)  # NaN and infinity stay
            bad = [key for key, loss in zip(step.keys, whole.tolist(), strict=True) if not math.isfinite(loss)]
            keys = [key for part in self._workers.gather(bad) for key in part]
            last = newest_checkpoint(self._run.path)
            some = 0 < len(keys) < max(step.batch_size, 2)  # were it all samples, the weights would be to blame
            more = f" and {len(keys) - _NAMED_KEYS} more" if len(keys) > _NAMED_KEYS else ""
            where = (
                f"samples {', '.join(keys[:_NAMED_KEYS])}{more}" if keys else "no single sample: the gradient or the weights"
            )
            advice = self._leave_out(keys) if some else "lower optim.lr and run this again"
            raise NotFinite(
                f"the loss is not finite at step {step.step}, {step.images_seen} images (loss {mean}, gradient norm {norm}; "
                f"{where}); the last good checkpoint is {last or 'none'}; {advice}"
            )

    def _leave_out(self, keys: list[str]) -> str:
        """Writes the keys into the run's list of samples to leave out; the command that leaves them out."""
        path = self._run.path / NOT_FINITE
        self._run.add_not_finite(keys, skipped=self._skip)
        command = shlex.join(
            ["python", "-m", "trainer.fit", "--config", str(self._run.path / CONFIG), "--data.skip", str(path)]
        )
        return f"the same command would read these samples again; their keys are in {path}; to leave them out, run: {command}"

    def _name_spikes(self, interval: _Interval, losses: list[Tensor], means: list[float]) -> None:
        for step, own, mean in zip(interval.steps, losses, means, strict=True):
            usual = statistics.median(self._recent) if len(self._recent) == _REMEMBERED else math.inf
            if mean > self._config.spike_factor * usual:
                self._name_spike(step, own, mean, usual)
            self._recent.append(mean)

    def _name_spike(self, step: StepRecord, own: Tensor, mean: float, usual: float) -> None:
        pairs = sorted(zip(own.tolist(), step.keys, strict=True), reverse=True)[:_NAMED_KEYS]
        worst = sorted((pair for part in self._workers.gather(pairs) for pair in part), reverse=True)[:_NAMED_KEYS]
        keys = [key for _, key in worst]
        row = {"kind": "spike", "images_seen": step.images_seen, "loss": mean, "usual_loss": usual, "keys": keys}
        self._run.add_metrics(
            row | {"losses": [loss for loss, _ in worst]},
            f"a spike at step {step.step}, {step.images_seen} images: loss {mean:.4f}, usually {usual:.4f}; "
            f"samples {', '.join(keys)}",
        )


def _line(row: dict[str, Any], added: Mapping[str, float]) -> str:
    losses = "".join(f"  {name} {loss:.4f}" for name, loss in added.items())
    mfu = "" if row["mfu"] is None else f"  MFU {row['mfu']:.1%}"
    return (
        f"{row['resolution']} px  step {row['step']}  {_short(row['images_seen'])} images  loss {row['loss']:.4f}{losses}  "
        f"norm {row['gradient_norm']:.3g}  lr {row['lr']:.3g}  {row['images_per_s']:.4g} images/s  "
        f"{row['overall_images_per_s']:.4g} overall  wait {row['data_wait']:.1%}{mfu}  {row['memory_bytes'] / 1e9:.1f} GB  "
        f"{duration(row['eta_s'])} left"
    )


def _short(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return str(number)


def _peak_memory(device: torch.device) -> int:
    """Peak memory so far in bytes: of the GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
