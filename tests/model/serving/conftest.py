"""A tiny checkpoint, its pipeline and engines on it, shared by the tests of the image server."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from model.formats.checkpoint import checkpoint_fingerprint
from model.generation.pipeline import Pipeline, open_pipeline
from model.generation.pipeline_parts import RuntimeConfig
from model.lora.adapter import Adapter, LayerAdapter
from model.lora.file import write_adapter
from model.lora.settings import LoraChoice
from model.serving.adapters import NamedAdapters
from model.serving.batch import Batch, Row
from model.serving.engine import Engine
from tests.model.tiny_parts import save_tiny_checkpoint

BATCH_SIZE = 4
MAX_WAITING = 12
NewEngine = Callable[[], Engine]


class Gate:
    """Notes how many images take each step, and lets only as many steps pass as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[int] = []
        self._allowed, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self._is_open = True
        step = Batch.step

        def gated(batch: Batch, rows: Sequence[Row]) -> None:
            self.steps.append(len(rows))
            if not self._is_open:
                self._arrived.release()
                assert self._allowed.acquire(timeout=30)
            step(batch, rows)

        monkeypatch.setattr(Batch, "step", gated)

    def close(self) -> None:
        """From now on a step waits to be let through."""
        self._is_open = False

    def arrival(self) -> None:
        """Returns when a step is about to begin."""
        assert self._arrived.acquire(timeout=30)

    def pass_one(self) -> None:
        """Lets a step through."""
        self._allowed.release()

    def open(self) -> None:
        """Lets all through, the one that waits too."""
        self._is_open = True
        self._allowed.release()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("served"), objective="rectified_flow")


@pytest.fixture(scope="session")
def lora(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the checkpoint that shows."""
    generator = torch.Generator().manual_seed(1)
    layers = {
        f"blocks.{block}.{name}": LayerAdapter(
            down=torch.randn(2, 48, generator=generator), up=torch.randn(rows, 2, generator=generator), alpha=0.5
        )
        for block in (0, 1)
        for name, rows in (("attn.qkv", 144), ("cross_attn.kv_linear", 96))
    }
    path = tmp_path_factory.mktemp("lora") / "owl.safetensors"
    write_adapter(path, Adapter(layers=layers, base=str(checkpoint), base_fingerprint=checkpoint_fingerprint(checkpoint)))
    return path


@pytest.fixture(scope="session")
def pipeline(checkpoint: Path) -> Pipeline:
    return open_pipeline(checkpoint, runtime=RuntimeConfig(dtype="float32", batch_size=BATCH_SIZE))


@pytest.fixture
def new_engine(pipeline: Pipeline, checkpoint: Path) -> Iterator[NewEngine]:
    """Engines that are closed after the test."""
    engines: list[Engine] = []

    def make() -> Engine:
        engines.append(Engine(pipeline, NamedAdapters({}, checkpoint), max_waiting=MAX_WAITING))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def lora_engine(checkpoint: Path, lora: Path) -> Iterator[Engine]:
    """An engine with the adapter `owl`, on a pipeline of its own, whose weights it changes."""
    pipeline = open_pipeline(checkpoint, runtime=RuntimeConfig(dtype="float32", batch_size=BATCH_SIZE))
    engine = Engine(pipeline, NamedAdapters({"owl": LoraChoice(str(lora))}, checkpoint), max_waiting=MAX_WAITING)
    yield engine
    engine.close()
