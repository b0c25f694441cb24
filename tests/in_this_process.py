"""Commands in the process of the test, without the seconds that each takes to start in its own."""

import io
import runpy
from contextlib import redirect_stdout
from unittest.mock import patch

import pytest


def run_here(module: str, *arguments: str) -> str:
    """As `python -m module arguments`; returns its output."""
    said = io.StringIO()
    with patch("sys.argv", [module, *arguments]), redirect_stdout(said), pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert end.value.code == 0, said.getvalue()
    return said.getvalue()
