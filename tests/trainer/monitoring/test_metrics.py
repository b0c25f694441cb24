"""Training metrics: a spike with its keys, the time that is spent waiting for data, MFU."""

import itertools
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainer.config.running import WatchConfig
from trainer.distributed import Workers
from trainer.monitoring.metrics import MetricsReporter, StepRecord
from trainer.monitoring.run_folder import RunFolder, read_metrics

SETTINGS = WatchConfig(every_steps=5, spike_factor=3.0)


def _record(step: int) -> StepRecord:
    return StepRecord(
        step=step,
        images_seen=2 * step,
        resolution=16,
        images_left=1000 - 2 * step,
        lr=1e-3,
        keys=[f"left_{step}", f"right_{step}"],
        flops=1e6,
        batch_size=2,
        wait_s=0.01,
        read_bytes=1000 * step,
    )


def _add(reporter: MetricsReporter, step: int, *losses: float) -> None:
    reporter.add(_record(step), losses=torch.tensor(losses), gradient_norm=torch.tensor(0.5))


def test_a_spike_is_written_down_with_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = MetricsReporter(RunFolder(tmp_path, Workers()), SETTINGS, Workers(), peak_flops=None)
    losses = itertools.chain([(9.0, 9.0)], itertools.repeat((1.0, 1.0), 120), [(1.0, 8.0)], [(1.0, 2.0)])
    for step, values in enumerate(losses, start=1):
        _add(reporter, step, *values)
    reporter.flush()
    (spike,) = [row for row in read_metrics(tmp_path) if row["kind"] == "spike"]  # the first step had nothing to compare with
    assert spike["keys"] == ["right_122", "left_122"] and spike["losses"] == [8.0, 1.0]
    assert (spike["loss"], spike["usual_loss"], spike["images_seen"]) == (4.5, 1.0, 244)
    assert (
        "a spike at step 122, 244 images: loss 4.5000, usually 1.0000; samples right_122, left_122" in capsys.readouterr().out
    )


def test_the_figures_of_an_interval_fit_each_other(tmp_path: Path) -> None:
    reporter = MetricsReporter(RunFolder(tmp_path, Workers()), SETTINGS, Workers(), peak_flops=1e8)
    for step in range(1, 6):
        _add(reporter, step, 1.0, 3.0)
    reporter.flush()
    (row,) = read_metrics(tmp_path)
    assert (row["step"], row["images_seen"], row["num_steps"], row["loss"]) == (5, 10, 5, 2.0)
    seconds = 10 / row["images_per_s"]
    assert seconds > 0 and row["eta_s"] == pytest.approx(990 * seconds / 10)
    assert row["read_bytes"] == 3000, "of a step, on average"
    assert row["data_wait"] == pytest.approx(5 * 0.01 / seconds) and row["mfu"] == pytest.approx(5e6 / seconds / 1e8)


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_memory_is_in_bytes_on_each_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, unit: int) -> None:
    reporter = MetricsReporter(RunFolder(tmp_path, Workers()), SETTINGS, Workers(), peak_flops=None)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=7_000_000))
    for step in range(1, 6):
        _add(reporter, step, 1.0, 3.0)
    reporter.flush()
    (row,) = read_metrics(tmp_path)
    assert row["memory_bytes"] == 7_000_000 * unit
