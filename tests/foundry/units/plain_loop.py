"""Works units off in this process, call by call as Ray does, for tests of what a job does and not of how it is spread."""

from collections.abc import Callable, Sequence
from typing import Any

from foundry.units.commits import Commit, Unit


def run_plainly(
    job: Any, units: Sequence[Unit], *, on_commit: Callable[[Commit], None] = lambda _commit: None, **_: Any
) -> bool:
    """In place of foundry.units.run.run_job."""
    engine = job.load_engine()
    for unit in units:
        payload, facts = job.prepare(unit, range(unit.num_images))
        output = job.process(engine, payload, one_by_one=False)
        commit = job.finish(unit, facts=facts, output=output, excluded={})
        assert commit is not None
        on_commit(commit)
    return True
