"""The plan of features: units of all of the source, each part of a container in one window; the same for the same seed."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry.storage.folder import Folder
from foundry.units.commits import read_unit
from trainer.features import plan as planning
from trainer.features.plan import FeaturePlan, PlanSettings, extend_feature_plan
from trainer.features.sources import SAMPLE

BUCKETS = ((32, 32), (48, 24))
BYTES = 2 << 20


@dataclass(frozen=True)
class Containers:
    """Tars (or Parquet files) with so many samples each, by their locations."""

    sizes: Mapping[str, int]
    rows: bool = False
    url: str = "containers"
    licence: str = ""
    gaps: Mapping[int, int] = field(default_factory=dict)
    """Bytes before the samples with these numbers in a tar."""

    def tables(self) -> Iterator[pa.Table]:
        for uri, size in self.sizes.items():
            yield pa.Table.from_pylist(list(self._samples(uri, size)), schema=SAMPLE)

    def findings(self) -> Iterator[str]:
        yield from ()

    def _samples(self, uri: str, size: int) -> Iterator[dict[str, Any]]:
        end = 0
        for number in range(size):
            start = end + 512 + self.gaps.get(number, 0)
            end = start + BYTES
            place = {"row": number} if self.rows else {"byte_offset": start, "byte_length": BYTES}
            sides = {"width": 24, "height": 48} if number % 8 == 5 else {"width": 32, "height": 32}
            yield {"key": f"{uri}/{number}", "uri": uri, "member": "image", "captions": [], "split": "train", **place, **sides}


def plan_of(folder: Path, source: Containers, *, seed: int = 0) -> tuple[FeaturePlan, list[list[dict[str, Any]]]]:
    """A plan and the rows of its units."""
    settings = PlanSettings(tables={32: BUCKETS}, seed=seed, unit_size=32, validation_share=0, min_validation=0)
    plan = extend_feature_plan([Folder(str(folder))], source, settings)
    return plan, [read_unit(Folder(str(folder)), unit) for unit in plan.units]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a source of a thousand times the samples."""
    monkeypatch.setattr(planning, "BLOCK_SAMPLES", 8)
    monkeypatch.setattr(planning, "PLACES", 8)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("sizes", "least"), [([1000, 1000], 2), ([1600, 200, 200], 2), ([50] * 40, 6)])
def test_no_unit_is_of_one_source(tmp_path: Path, sizes: list[int], least: int) -> None:
    plan, units = plan_of(tmp_path, Containers({f"s3://b/{number:02}.tar": size for number, size in enumerate(sizes)}))
    assert plan.num_samples == sum(sizes) and len({unit.window for unit in plan.units}) > 10
    assert sorted(row["key"] for rows in units for row in rows) == sorted(plan_keys(sizes))
    for rows in (rows for rows in units if len(rows) == 32):
        sources = Counter(row["uri"] for row in rows)
        assert len(sources) >= least
        assert max(sources.values()) / len(rows) <= max(sizes) / sum(sizes) + 0.25
        blocks = {(row["uri"], int(row["key"].rsplit("/", 1)[1]) // 8) for row in rows}
        assert len(blocks) >= 6, "from all over the source, not from neighbours"


def plan_keys(sizes: list[int]) -> Iterator[str]:
    for number, size in enumerate(sizes):
        yield from (f"s3://b/{number:02}.tar/{sample}" for sample in range(size))


@pytest.mark.usefixtures("small_blocks")
def test_each_range_of_a_tar_belongs_to_one_window(tmp_path: Path) -> None:
    plan, units = plan_of(tmp_path, Containers({f"{number:02}.tar": 100 for number in range(20)}))
    windows: dict[tuple[str, int], set[int]] = defaultdict(set)
    for unit, rows in zip(plan.units, units, strict=True):
        assert unit.window is not None
        for row in rows:
            assert row["extent_start"] <= row["byte_offset"]
            assert row["byte_offset"] + row["byte_length"] <= row["extent_start"] + row["extent_length"]
            assert row["extent_length"] <= planning._MAX_SPAN_BYTES + BYTES
            if unit.buckets[32] == (32, 32):
                windows[row["uri"], row["extent_start"]].add(unit.window)
    assert len(windows) == 20 * 13
    assert all(max(found) - min(found) <= 1 for found in windows.values()), "a unit fills up from the next window"
    numbers = [unit.window for unit in plan.units if unit.window is not None]
    assert numbers == sorted(numbers)


def test_ranges_with_a_gap_between_them_are_fetched_apart(tmp_path: Path) -> None:
    gaps = {3: planning._MAX_GAP_BYTES + 1, 5: planning._MAX_GAP_BYTES - 600, 9: 10**6}
    _, units = plan_of(tmp_path, Containers({"x.tar": 10}, gaps=gaps))
    rows = sorted((row for rows in units for row in rows), key=lambda row: row["byte_offset"])
    starts = [row["extent_start"] for row in rows]
    assert starts == [rows[0]["byte_offset"]] * 3 + [rows[3]["byte_offset"]] * 6 + [None]
    assert rows[8]["byte_offset"] + BYTES == starts[8] + rows[8]["extent_length"]


@pytest.mark.usefixtures("small_blocks")
def test_row_groups_stay_whole(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.parquet" for number in range(8)]
    for path in paths:
        pq.write_table(pa.table({"image": [b"1"] * 90}), path, row_group_size=20)
    paths[0].write_bytes(b"no Parquet")
    plan, units = plan_of(tmp_path / "store", Containers({str(path): 90 for path in paths}, rows=True))
    windows = defaultdict(set)
    for unit, rows in zip(plan.units, units, strict=True):
        for row in rows:
            if row["uri"] == str(paths[0]):
                assert row["extent_start"] is None and row["extent_length"] is None
                continue
            assert (row["extent_start"], row["extent_length"]) == (row["row"] // 20 * 20, min(20, 90 - row["row"] // 20 * 20))
            windows[row["uri"], row["extent_start"]].add(unit.window)
    assert len(windows) == 7 * 5 and plan.num_samples == 8 * 90


@pytest.mark.usefixtures("small_blocks")
def test_the_seed_alone_decides(tmp_path: Path) -> None:
    source = Containers({f"{number}.tar": 100 for number in range(8)})
    (_, first), (_, again), (_, other) = (
        plan_of(tmp_path / str(index), source, seed=seed) for index, seed in enumerate((0, 0, 1))
    )
    assert first == again != other


def test_what_is_one_window_is_shuffled_as_a_whole(tmp_path: Path) -> None:
    """Plans of small sources are what they were before there were windows."""
    _, units = plan_of(tmp_path, Containers({"x.tar": 100}))
    keys = [row["key"] for rows in units for row in rows if row["width"] == 32]
    assert keys == sorted(keys, key=lambda key: hashlib.md5(f"{key}/0".encode(), usedforsecurity=False).digest()[:7:-1])
