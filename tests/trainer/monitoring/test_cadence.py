"""What is due by minutes costs below one percent at any speed, is due on all workers alike, and changes no weight."""

import pytest

from trainer.config.running import CheckpointConfig, WatchConfig
from trainer.distributed import Workers
from trainer.monitoring.cadence import MOST_SHARE, Cadence, Due, Schedule


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def cadence(clock: Clock, **changes: float | None) -> Cadence:
    settings: dict[str, float | None] = {"every_images": None, "every_minutes": None, "default_minutes": 15.0, **changes}
    return Cadence(**settings, clock=clock)  # type: ignore[arg-type]


@pytest.mark.parametrize("cost_s", [0.1, 2.0, 60.0, 3600.0])
def test_by_default_it_costs_below_its_share_at_any_cost(cost_s: float) -> None:
    clock = Clock()
    due, spent, times = cadence(clock), 0.0, 0
    while clock.now < 40 * max(900.0, cost_s / MOST_SHARE):
        clock.now += 30
        if due.by_time():
            with due.doing():
                clock.now += cost_s
            spent, times = spent + cost_s, times + 1
    assert times >= 38
    assert spent / clock.now <= MOST_SHARE * (1 + 2 / times), "the first one comes before its cost is known"


def test_minutes_and_images_as_they_are_set() -> None:
    clock = Clock()
    by_images, by_minutes = cadence(clock, every_images=100), cadence(clock, every_minutes=2)
    both = cadence(clock, every_images=100, every_minutes=2)
    clock.now = 119
    assert not by_minutes.by_time()
    clock.now = 1e9
    assert [one.by_time() for one in (by_images, by_minutes, both)] == [False, True, True]
    reached = [images for images in range(30, 420, 30) if by_images.by_images(images, batch_size=30)]
    assert reached == [120, 210, 300] and both.by_images(120, batch_size=30)
    assert not by_minutes.by_images(120, batch_size=30) and not cadence(clock, every_images=0).by_images(100, batch_size=30)


def test_the_time_counts_from_the_end_and_a_set_interval_stays() -> None:
    clock = Clock()
    due = cadence(clock, every_minutes=1)
    with due.doing():
        clock.now += 1000
    clock.now += 59
    assert not due.by_time()
    clock.now += 1
    assert due.by_time()


def test_several_workers_ask_the_first_one_where_they_look() -> None:
    asked = []

    class Two(Workers):
        def from_first(self, value: object) -> object:
            asked.append(value)
            return [True, False, False]

    schedule = Schedule(CheckpointConfig(every_images=8), WatchConfig(sample_every_images=0), Two(rank=1, num=2))
    assert schedule.due(8, batch_size=4, look=False) == Due(validation=False, samples=False, checkpoint=True)
    assert not asked
    assert schedule.due(12, batch_size=4, look=True) == Due(validation=True, samples=False, checkpoint=False)
    assert asked == [[False, False, False]], "this worker's own clock does not count"


def test_settings_out_of_bounds_are_named() -> None:
    wrong = WatchConfig(validate_every_minutes=0, sample_every_images=-1).checks() + CheckpointConfig(every_minutes=-1).checks()
    assert [name for name, _, holds in wrong if not holds] == [
        "sample_every_images",
        "validate_every_minutes",
        "every_minutes",
    ]
    assert not WatchConfig(validate_every_images=0).is_validated
    assert WatchConfig(validate_every_images=0, validate_every_minutes=1).is_validated and WatchConfig().is_sampled
