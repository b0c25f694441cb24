"""Commands in the process of the test, without the seconds that each takes to start in its own."""

import io
import runpy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import cache
from types import ModuleType
from unittest.mock import patch

import pytest

from examples.openmoji import demo_steps
from foundry.hardware import auto_dtype
from foundry.units.cluster import Node
from foundry.units.commits import Commit, Unit
from foundry.units.workers import UnitJob
from tests.foundry.units.plain_loop import run_plainly
from trainer.features.job import EncoderFacts, Encoders


def run_here(module: str, *arguments: str) -> str:
    """As `python -m module arguments`; returns its output."""
    said = io.StringIO()
    with patch("sys.argv", [module, *arguments]), redirect_stdout(said), pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert end.value.code == 0, said.getvalue()
    return said.getvalue()


@cache
def help_of(module: str) -> str:
    """What `python -m module --help` prints."""
    return run_here(module, "--help")


@contextmanager
def commands_here(*modules: ModuleType) -> Iterator[None]:
    """The commands that these modules start run in this process, and their units in a plain loop in place of Ray's workers."""
    session, this_node = "foundry.units.ray_session", Node(node_id="here", name="here", cpus=1, gpus=0)
    replaced: dict[str, Callable[..., object]] = {
        "foundry.units.ray_driver.run_units": _run_units,
        f"{session}.start_ray": lambda _: None,
        f"{session}.check_visible": lambda _: None,
        f"{session}.cluster_nodes": lambda: [this_node],
        f"{session}.replicas_use_gpus": lambda _: False,
        f"{session}.dtype_of_replicas": lambda _: auto_dtype("cpu"),
        "trainer.features.ray_encoders.start_and_describe": _describe,
    }
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(patch.object(module, "run_module", run_here))
        for name, replacement in replaced.items():
            stack.enter_context(patch(name, replacement))
        yield


@contextmanager
def steps_here() -> Iterator[None]:
    """The steps of a demo run in this process, but for those that run in parallel to others."""
    in_its_own = demo_steps._call

    def call(step: demo_steps.Step, *, is_captured: bool = False) -> demo_steps._Ended:
        if is_captured:
            return in_its_own(step, is_captured=True)
        started = time.perf_counter()
        printed = run_here(step.module, *step.arguments)
        return demo_steps._Ended(code=0, seconds=time.perf_counter() - started, printed=printed.rstrip())

    with patch.object(demo_steps, "_call", call):
        yield


def _run_units(
    job: UnitJob, units: Sequence[Unit], *, on_start: Callable[[], None], on_commit: Callable[[Commit], None], **_: object
) -> None:
    on_start()
    run_plainly(job, units, on_commit=on_commit)


def _describe(encoders: Encoders, _: object, *, visible: Mapping[str, str]) -> EncoderFacts:
    return encoders.in_dtype(auto_dtype("cpu")).describe()
