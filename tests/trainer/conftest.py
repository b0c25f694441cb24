"""Compiled blocks: each test begins with nothing compiled, and most of them leave out the slow part, C++."""

from collections.abc import Iterator
from functools import partialmethod

import pytest
import torch
from torch._dynamo.utils import counters


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """Forgets compiled graphs and their counts, before and after."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def traced(nothing_compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks compile to forward and backward graphs that run as they were traced; no C++ is made of them, which takes most of
    the time. tests/trainer/training/test_compiled.py makes it."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
