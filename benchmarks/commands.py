"""Commands of the foundry, each run in its own process, as users run them."""

import os
import subprocess
import sys
from collections.abc import Mapping

from foundry.errors import UserError


def run_module(module: str, *arguments: str, environment: Mapping[str, str] | None = None, python: str = sys.executable) -> str:
    """`python -m module arguments`; returns its output. Raises UserError, with its last line, where it fails."""
    command = [python, "-m", module, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        raise UserError(f"python -m {module} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return done.stdout
