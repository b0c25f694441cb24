"""The runner of units on a real local Ray: nothing is lost, and only the guilty image is left out, whatever dies or hangs."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from dataset_builder.schema import NOUN_COUNTS
from foundry.errors import Unavailable, UserError
from foundry.images.index import REJECTED
from foundry.storage.folder import Folder
from foundry.units.cluster import RaySettings
from foundry.units.commits import Commit, Unit, commit_unit, read_commits
from foundry.units.ray_driver import run_units
from foundry.units.ray_session import check_visible, start_ray
from foundry.units.rejection import Failure

SETTINGS = RaySettings(num_replicas=2, units_in_flight=2)
SINGLE = RaySettings(num_replicas=1, units_in_flight=2)
Trouble = dict[tuple[int, int] | str, str]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
        start_ray(SETTINGS)
        yield
        ray.shutdown()


class Unpicklable(Exception):
    """As libraries raise them: it cannot be made from what it is pickled to."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{reason} {status}")


@dataclass(frozen=True)
class FakeJob:
    """Writes one caption per image. `trouble` says what happens by stage, or as the model sees an image: (unit, position)."""

    folder: str
    trouble: Trouble

    def prepare(self, unit: Unit, positions: Sequence[int]) -> tuple[Any, Any]:
        if "dies in prepare" in (self.trouble.get((unit.number, position)) for position in positions):
            os._exit(1)
        self._suffer(f"prepare {unit.number}")
        return [(unit.number, position) for position in positions], list(positions)

    def warm_up(self) -> None:
        self._suffer("warm_up")

    def load_engine(self) -> str:
        Path(self.folder, f"load-{time.monotonic_ns()}").touch()
        self._suffer("load")
        if self.loads() > 1:
            self._suffer("reload")
        return "engine"

    def loads(self) -> int:
        return len(list(Path(self.folder).glob("load-*")))

    def check(self, engine: str) -> None:
        self._suffer("check")
        if Path(self.folder, "broken").exists():
            Path(self.folder, "broken").unlink()
            raise RuntimeError("the device is lost")

    def process(self, engine: str, payload: Any, *, one_by_one: bool) -> Any:
        for image in payload:
            self._suffer(image)
        return [f"{engine} saw {position} of {unit}" for unit, position in payload]

    def finish(self, unit: Unit, *, facts: Any, output: Any, excluded: dict[int, Failure]) -> Commit | None:
        self._suffer(f"finish {unit.number}")
        rows = [
            {"prompt": text, "noun": str(position), "count": 1, "count_t5": 1, "num_captions": 1}
            for position, text in zip(facts, output, strict=True)
        ]
        rejected = [{"key": str(position), "uri": "", **asdict(failure)} for position, failure in excluded.items()]
        tables = {
            "noun_counts": pa.Table.from_pylist(rows, schema=NOUN_COUNTS),
            "rejected": pa.Table.from_pylist(rejected, schema=REJECTED),
        }
        return commit_unit(Folder(self.folder), run_id="r", unit=unit, tables=tables)

    def _suffer(self, where: tuple[int, int] | str) -> None:
        """`once` at the end of a trouble: the first time only."""
        trouble = self.trouble.get(where, "")
        if trouble.endswith("once"):
            marker = Path(self.folder, f"suffered {where}")
            if marker.exists():
                return
            marker.touch()
        if trouble.startswith("dies"):
            os._exit(1)
        if trouble.startswith("hangs"):
            time.sleep(600)
        if trouble.startswith("is slow"):
            time.sleep(2)
        if trouble.startswith("waits for the next load"):
            deadline = time.monotonic() + 120
            while self.loads() < 2:
                assert time.monotonic() < deadline, "no replica was loaded meanwhile"
                time.sleep(0.05)
        if trouble.startswith("breaks the device"):
            Path(self.folder, "broken").touch()
        if trouble.startswith("is unavailable"):
            raise Unavailable("the server does not answer", setting="endpoint.url")
        if trouble.startswith(("raises", "breaks")):
            raise Unpicklable(404, "this is not to be")


def run(
    folder: Path,
    trouble: Trouble,
    *,
    units: int = 4,
    settings: RaySettings = SETTINGS,
    on_reject: Callable[[int], None] | None = None,
) -> list[Commit]:
    folder.mkdir(exist_ok=True)
    plan = [Unit(number=number, part="", row_group=0, num_images=4) for number in range(units)]
    seen: list[Commit | None] = []
    run_units(
        FakeJob(str(folder), trouble),
        plan,
        settings=settings,
        on_start=lambda: None,
        on_commit=seen.append,
        on_reject=on_reject,
    )
    assert len(seen) == units
    return read_commits(Folder(str(folder)))


def digests(commits: list[Commit]) -> list[str]:
    return [commit.files["noun_counts"].sha256 for commit in commits]


def test_every_unit_is_committed_once(tmp_path: Path) -> None:
    commits = run(tmp_path, {}, units=9)
    assert [commit.unit for commit in commits] == list(range(9))
    assert sum(commit.completed for commit in commits) == 36


def test_a_worker_that_dies_once_changes_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", {}, settings=SINGLE)
    assert digests(run(tmp_path / "hurt", {(1, 2): "dies once"})) == digests(whole)


@pytest.mark.parametrize(
    ("trouble", "reason"), [("dies", "worker_died"), ("raises", "model_error"), ("dies in prepare", "worker_died")]
)
def test_only_the_guilty_image_is_rejected(tmp_path: Path, trouble: str, reason: str) -> None:
    commits = run(tmp_path, {(1, 2): trouble}, units=3, settings=SINGLE)
    assert [commit.rejected for commit in commits] == [{}, {reason: 1}, {}]
    assert [commit.completed for commit in commits] == [4, 3, 4]


def test_a_slow_image_next_to_a_guilty_one_gets_the_time_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its share of the time, 1.5 s, would not do, and nothing was committed that says how long an image may take."""
    monkeypatch.setattr("foundry.units.ray_driver.LEAST_LIMIT_S", 0.1)
    settings = RaySettings(num_replicas=1, unit_timeout_s=6)
    (commit,) = run(tmp_path, {(0, 0): "is slow", (0, 1): "raises"}, units=1, settings=settings)
    assert commit.rejected == {"model_error": 1}


def test_two_guilty_images_are_both_found_without_loading_the_model_again(tmp_path: Path) -> None:
    commits = run(tmp_path, {(0, 0): "raises", (0, 3): "raises"}, units=1, settings=RaySettings(num_replicas=1))
    assert commits[0].rejected == {"model_error": 2}
    assert FakeJob(str(tmp_path), {}).loads() == 1


def test_a_broken_device_gets_a_new_replica_and_nobody_else_is_blamed(tmp_path: Path) -> None:
    settings = RaySettings(num_replicas=1, units_in_flight=3)
    commits = run(tmp_path, {(0, 1): "breaks the device once", "reload": "raises once"}, units=3, settings=settings)
    assert [commit.rejected for commit in commits] == [{}, {}, {}]
    assert FakeJob(str(tmp_path), {}).loads() == 3, "the first load of the replacement failed, the second did not"


@pytest.mark.parametrize("where", [(0, 1), "prepare 0", "prepare 1", "finish 0", "load", "warm_up"])
def test_what_hangs_is_stopped_and_tried_again(tmp_path: Path, where: tuple[int, int] | str) -> None:
    if where == "warm_up":
        with pytest.raises(UserError, match=r"the workers cannot be made ready: .*ray.load_timeout_s is 4"):
            run(tmp_path, {where: "hangs"}, units=2, settings=RaySettings(num_replicas=1, load_timeout_s=4))
        return
    settings = RaySettings(num_replicas=1, units_in_flight=2, unit_timeout_s=4, load_timeout_s=4)
    assert [commit.rejected for commit in run(tmp_path, {where: "hangs once"}, units=2, settings=settings)] == [{}, {}]


def test_a_replica_that_dies_does_not_wait_for_the_commits_that_are_running(tmp_path: Path) -> None:
    """Unit 0 commits when the replica is loaded that follows the one that unit 1 killed: that load must not wait for it."""
    commits = run(tmp_path, {"finish 0": "waits for the next load", (1, 0): "dies once"}, units=2, settings=SINGLE)
    assert [commit.rejected for commit in commits] == [{}, {}]
    assert len(list(tmp_path.glob("load-*"))) == 2


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ({"load": "raises"}, "the model could not be loaded: Unpicklable: this is not to be 404"),
        ({"load": "dies"}, "the model could not be loaded: ActorDiedError"),
        ({"check": "raises"}, "the model could not be loaded: its check failed: Unpicklable: this is not to be 404"),
        ({"warm_up": "raises"}, "the workers cannot be made ready: Unpicklable: this is not to be 404"),
        ({"finish 1": "raises"}, "unit 1 failed in finish: Unpicklable: this is not to be 404"),
        ({"prepare 1": "raises"}, "unit 1 failed in prepare: Unpicklable: this is not to be 404"),
    ],
)
def test_what_ends_the_run_is_one_line_and_rejects_nothing(tmp_path: Path, trouble: Trouble, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, trouble, settings=RaySettings(num_replicas=1))
    assert all(not commit.rejected for commit in read_commits(Folder(str(tmp_path))))


def test_a_service_that_is_away_ends_the_run_and_no_unit_is_searched(tmp_path: Path) -> None:
    """Also where it is back at once: answers that were paid for are not asked for again by parts of the unit."""
    with pytest.raises(UserError, match="the server does not answer") as raised:
        run(tmp_path, {(1, 2): "is unavailable once"}, settings=RaySettings(num_replicas=1))
    assert raised.value.setting == "endpoint.url"
    assert len(list(tmp_path.glob("load-*"))) == 1
    assert all(not commit.rejected for commit in read_commits(Folder(str(tmp_path))))


def test_the_search_for_culprits_ends_with_the_budget(tmp_path: Path) -> None:
    counts: list[int] = []

    def stop_at_two(num_uncommitted: int) -> None:
        counts.append(num_uncommitted)
        if num_uncommitted == 2:
            raise UserError("enough")

    trouble: Trouble = {(0, position): "raises" for position in range(4)}
    with pytest.raises(UserError, match="enough"):
        run(tmp_path, trouble, units=1, on_reject=stop_at_two)
    assert counts == [1, 2]


def test_wishes_that_no_node_can_meet_are_one_line_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ray.cpus_per_task 4096: the largest node has"):
        run(tmp_path, {}, settings=RaySettings(cpus_per_task=4096))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "http://127.0.0.1:8265"])
def test_an_address_that_is_no_ray_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", bool)
    with pytest.raises(UserError, match=address):
        start_ray(RaySettings(address=address))


def test_a_path_that_a_node_does_not_see_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("run 1")
    check_visible({str(tmp_path / "run.json"): "run 1"})
    with pytest.raises(UserError, match=r"run.json: not visible on node .*; use a folder that all nodes share"):
        check_visible({str(tmp_path / "run.json"): "run 2"})
