"""Works units off in this process, call by call as Ray does, for tests of what a job does and not of how it is spread."""

from collections.abc import Sequence
from typing import Any

from foundry.units.commits import Unit


def run_plainly(job: Any, units: Sequence[Unit], **_: Any) -> bool:
    """In place of foundry.units.run.run_job."""
    engine = job.load_engine()
    for unit in units:
        payload, facts = job.prepare(unit, range(unit.num_images))
        output = job.process(engine, payload, one_by_one=False)
        assert job.finish(unit, facts=facts, output=output, excluded={}) is not None
    return True
