"""Options of the fault tests, their seed, and the count of what they tried.

`make test-all` runs a sample of each kind; tests marked `faults` run with --all_faults, as `make faults` does.
"""

import json
import platform
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.faults.table import FAULTS

_SEED = pytest.StashKey[int]()
_COUNTS = pytest.StashKey[Counter[str]]()
_OUTCOMES = pytest.StashKey[Counter[str]]()
_COMMIT = pytest.StashKey[str]()
_SKIPPED = pytest.StashKey[list[str]]()
Tally = Callable[[str, int], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--seed", type=int, help="seed of random faults; default: a random one, which is printed")
    group.addoption("--all_faults", action="store_true", help="run all fault tests, not a sample of each kind")
    group.addoption("--faults_file", help="JSON file for the counts of what was tried; see tests/faults/table.py")


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("seed", None)
    config.stash[_SEED] = random.SystemRandom().randrange(10**6) if given is None else int(given)
    config.stash[_COMMIT] = _first_line("git", "describe", "--always", "--dirty=+")
    config.stash[_COUNTS], config.stash[_OUTCOMES], config.stash[_SKIPPED] = Counter(), Counter(), []


def pytest_report_header(config: pytest.Config) -> str:
    return f"faults: --seed {config.stash[_SEED]}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("all_faults", False):
        return
    left_out = [item for item in items if item.get_closest_marker("faults")]
    items[:] = [item for item in items if not item.get_closest_marker("faults")]
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        item.config.stash[_SKIPPED].append(f"{item.nodeid}: {reason}")
    if report.when == "call" or not report.passed:
        item.config.stash[_OUTCOMES][report.outcome] += 1
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if (file := config.getoption("faults_file", None)) is None:
        return
    found = {
        "seed": config.stash[_SEED],
        "date": datetime.now(UTC).date().isoformat(),
        "commit": config.stash[_COMMIT],
        "processor": _processor(),
        "outcomes": config.stash[_OUTCOMES],
        "skipped": config.stash[_SKIPPED],
        "counts": config.stash[_COUNTS],
    }
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


@pytest.fixture(scope="session")
def fault_seed(pytestconfig: pytest.Config) -> int:
    return pytestconfig.stash[_SEED]


@pytest.fixture
def rng(request: pytest.FixtureRequest, fault_seed: int) -> random.Random:
    """Random numbers of this test, which depend on the seed and its name."""
    print(f"--seed {fault_seed}")  # pytest shows it with a failure
    return random.Random(f"{fault_seed}/{request.node.name}")


@pytest.fixture
def tally(pytestconfig: pytest.Config) -> Tally:
    """tally(name, count) counts faults that were tried; the name is one of table.FAULTS."""

    def add(name: str, count: int) -> None:
        assert name in FAULTS, f"add {name} to FAULTS in tests/faults/table.py"
        pytestconfig.stash[_COUNTS][name] += count

    return add


def _processor() -> str:
    named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{named[0].partition(': ')[2]}, {len(named)} cores" if named else platform.machine()


def _first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent).stdout.strip()
