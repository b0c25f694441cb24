"""The runner of units on a real local Ray: nothing is lost, and only the guilty image is left out, whatever dies."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from dataset_builder import schema
from dataset_builder.cluster import RaySettings
from dataset_builder.command_line import UserError
from dataset_builder.ray_units import run_units, start_ray
from dataset_builder.storage import Folder
from dataset_builder.units import Commit, Failure, Unit, commit_unit, read_commits

SETTINGS = RaySettings(num_replicas=2, units_in_flight=2)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    start_ray(SETTINGS)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class FakeJob:
    """Writes one caption per image. `trouble` maps (unit, position) to what happens when the model sees the image."""

    folder: str
    trouble: dict[tuple[int, int], str]

    def prepare(self, unit: Unit, positions: Sequence[int]) -> tuple[Any, Any]:
        if "dies in prepare" in (self.trouble.get((unit.number, position)) for position in positions):
            os._exit(1)
        return [(unit.number, position) for position in positions], list(positions)

    def warm_up(self) -> None:
        pass

    def load_engine(self) -> str:
        if (0, -1) in self.trouble:
            raise OSError("no such weights")
        return "engine"

    def process(self, engine: str, payload: Any, *, one_by_one: bool) -> Any:
        for image in payload:
            self._suffer(image)
        return [f"{engine} saw {position} of {unit}" for unit, position in payload]

    def _suffer(self, image: tuple[int, int]) -> None:
        trouble = self.trouble.get(image)
        marker = Path(self.folder, f"{image[0]}-{image[1]}.died")
        if trouble == "dies" or (trouble == "dies once" and not marker.exists()):
            marker.touch()
            os._exit(1)
        if trouble == "raises":
            raise ValueError("this image is not to be")
        if trouble == "hangs once" and not marker.exists():
            marker.touch()
            time.sleep(600)

    def finish(self, unit: Unit, *, facts: Any, output: Any, excluded: dict[int, Failure]) -> Commit | None:
        if (unit.number, -2) in self.trouble:
            raise OSError("no space left on device")
        rows = [
            {"prompt": text, "noun": str(position), "count": 1, "count_t5": 1, "num_captions": 1}
            for position, text in zip(facts, output, strict=True)
        ]
        rejected = dict(Counter(failure.reason for failure in excluded.values()))
        tables = {"noun_counts": pa.Table.from_pylist(rows, schema=schema.NOUN_COUNTS)}
        return commit_unit(Folder(self.folder), run_id="r", unit=unit, tables=tables, rejected=rejected)


def run(folder: Path, trouble: dict[tuple[int, int], str], *, units: int = 4, settings: RaySettings = SETTINGS) -> list[Commit]:
    plan = [Unit(number=number, part="", row_group=0, num_images=4) for number in range(units)]
    seen: list[Commit | None] = []
    run_units(FakeJob(str(folder), trouble), plan, settings=settings, on_start=lambda: None, on_commit=seen.append)
    assert len(seen) == units
    return read_commits(Folder(str(folder)))


def digests(commits: list[Commit]) -> list[str]:
    return [commit.files["noun_counts"].sha256 for commit in commits]


def test_every_unit_is_committed_once(tmp_path: Path) -> None:
    commits = run(tmp_path, {}, units=9)
    assert [commit.unit for commit in commits] == list(range(9))
    assert sum(commit.completed for commit in commits) == 36


def test_a_worker_that_dies_once_changes_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", {})
    (tmp_path / "hurt").mkdir()
    assert digests(run(tmp_path / "hurt", {(1, 2): "dies once"})) == digests(whole)


@pytest.mark.parametrize(
    ("trouble", "reason"), [("dies", "worker_died"), ("raises", "model_error"), ("dies in prepare", "worker_died")]
)
def test_only_the_guilty_image_is_rejected(tmp_path: Path, trouble: str, reason: str) -> None:
    commits = run(tmp_path, {(1, 2): trouble}, units=3)
    assert [commit.rejected for commit in commits] == [{}, {reason: 1}, {}]
    assert [commit.completed for commit in commits] == [4, 3, 4]


def test_two_guilty_images_of_one_unit_are_both_found(tmp_path: Path) -> None:
    commits = run(tmp_path, {(0, 0): "raises", (0, 3): "raises"}, units=1)
    assert commits[0].rejected == {"model_error": 2}


def test_a_model_that_hangs_is_stopped_and_tried_again(tmp_path: Path) -> None:
    settings = RaySettings(num_replicas=1, units_in_flight=1, unit_timeout_s=3)
    assert [commit.rejected for commit in run(tmp_path, {(0, 1): "hangs once"}, units=1, settings=settings)] == [{}]


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model could not be loaded: .*no such weights"):
        run(tmp_path, {(0, -1): ""})


def test_a_full_disk_stops_the_run_and_rejects_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unit 1 failed in finish: OSError: no space left on device"):
        run(tmp_path, {(1, -2): ""}, settings=RaySettings(num_replicas=1))
    assert all(not commit.rejected for commit in read_commits(Folder(str(tmp_path))))


def test_an_address_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(UserError, match="no Ray answers at 127.0.0.1:9"):
        start_ray(RaySettings(address="127.0.0.1:9"))
