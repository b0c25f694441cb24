"""What a person is told of a run."""

import pytest

from captioner.status import RunStatus
from dataset_builder.cluster import RaySettings
from dataset_builder.progress import BudgetExceeded, Progress
from dataset_builder.rejection import allowed_rejections
from dataset_builder.units import Commit


def commit(*, planned: int = 8, rejected: int = 0) -> Commit:
    reasons = {"broken": rejected} if rejected else {}
    return Commit(run_id="r", unit=0, planned=planned, completed=planned - rejected, rejected=reasons, files={}, num_tokens=80)


def test_a_line_adds_up_and_tells_when_it_ends() -> None:
    status = RunStatus(
        planned=100,
        captioned=50,
        rejected=10,
        rejected_by_reason={"empty": 4, "broken": 6},
        units=10,
        units_committed=6,
        images_per_s=0.5,
    )
    assert status.line() == (
        "100 planned = 50 captioned + 10 rejected (broken 6, empty 4) + 40 to do; 6 of 10 units; 0.5 images/s, 1 min 20 s to go"
    )


def test_progress_counts_and_stops_past_the_budget() -> None:
    progress = Progress(planned=32, budget=2)
    with progress:
        progress.start()
        progress.update(commit(rejected=2))
        progress.update(None)
        assert (progress.images, progress.rejected, progress.tokens) == (8, 2, 80)
        with pytest.raises(BudgetExceeded, match="3 of the 16 images done just now are rejected, 2 more were allowed"):
            progress.update(commit(rejected=1))


@pytest.mark.parametrize(("share", "images", "allowed"), [(0.1, 24, 100), (0.1, 5000, 500), (0.0, 10**6, 100)])
def test_a_small_run_may_always_reject_a_hundred(share: float, images: int, allowed: int) -> None:
    assert allowed_rejections(share, images) == allowed


def test_replicas_follow_the_gpus_else_the_cores() -> None:
    gpus = {"CPU": 64.0, "GPU": 8.0}
    assert RaySettings().count_replicas(gpus) == 8
    assert RaySettings(gpus_per_replica=0.5).count_replicas(gpus) == 16
    assert RaySettings(gpus_per_replica=0).count_replicas({"CPU": 64.0}) == 64
    assert RaySettings(cpus_per_replica=4).count_replicas({"CPU": 64.0}) == 16
    assert RaySettings(num_replicas=3).count_replicas(gpus) == 3
    assert RaySettings().count_replicas({"CPU": 1.0}) == 1
