"""The plan gives each image one key and one unit, and only ever grows."""

from pathlib import Path

import pytest
from PIL import Image

from dataset_builder.runs.plan import Plan, discard_plan, extend_plan, read_plan
from foundry.errors import UserError
from foundry.images.sources import find_sources
from foundry.images.tar import walk_tar
from foundry.storage.file_kinds import PassedOver
from foundry.storage.folder import Folder
from foundry.units.commits import read_unit
from tests.foundry.images.containers import tar_bytes


def save(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(folder / name)
    return folder


def plan_images(run: Folder, *images: Path, unit_size: int = 3) -> Plan:
    return extend_plan(run, find_sources([str(path) for path in images]), unit_size=unit_size)


def keys(run: Folder, plan: Plan) -> list[list[str]]:
    return [[row["key"] for row in read_unit(run, unit)] for unit in plan.units()]


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "run"))


def test_the_stem_is_the_key_where_it_is_unique_else_the_path(run: Folder, tmp_path: Path) -> None:
    images = save(tmp_path / "images", "a/x.jpg", "a/y.jpg", "b/x.jpg", "z.png")
    plan = plan_images(run, images)
    assert keys(run, plan) == [["z", "a/x.jpg", "y"], ["b/x.jpg"]]
    assert [unit.num_images for unit in plan.units()] == [3, 1]


def test_two_roots_with_the_same_paths_keep_all_images_apart(run: Folder, tmp_path: Path) -> None:
    one, two = save(tmp_path / "one", "a/x.jpg", "b/x.jpg"), save(tmp_path / "two", "a/x.jpg")
    found = [key for unit in keys(run, plan_images(run, one, two)) for key in unit]
    assert found == [str(one / "a/x.jpg"), "b/x.jpg", str(two / "a/x.jpg")]


def test_the_same_sources_change_nothing(run: Folder, tmp_path: Path) -> None:
    images = save(tmp_path / "images", "a.jpg", "b.jpg")
    first = plan_images(run, images)
    assert plan_images(run, images) == first == read_plan(run, unit_size=3)
    assert first.num_plans == 1


def test_sources_that_have_grown_append_units_and_keep_the_old_keys(run: Folder, tmp_path: Path) -> None:
    images = save(tmp_path / "images", "x.jpg", "y.jpg")
    before = keys(run, plan_images(run, images))
    save(images, "a/x.jpg", "w.jpg")
    plan = plan_images(run, images)
    assert keys(run, plan) == [*before, ["w", "a/x.jpg"]]
    assert [unit.number for unit in plan.units()] == [0, 1]


def test_an_image_that_two_lists_name_is_planned_once(run: Folder, tmp_path: Path) -> None:
    images = save(tmp_path / "images", "x.jpg", "y.jpg")
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text(f"path,text\n{images / 'x.jpg'},{name}\n{images / 'y.jpg'},{name}\n")
    plan = plan_images(run, tmp_path / "one.csv", tmp_path / "two.csv")
    assert keys(run, plan) == [["x", "y"]]
    assert plan.num_repeated == 2
    assert [row["alt_text"] for row in read_unit(run, plan.units()[0])] == ["one", "one"], "the first place counts"


def test_what_is_planned_is_not_opened_again(run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.tar").write_bytes(
            tar_bytes([(f"{name}.jpg", b"1"), (f"{name}.json", f'{{"{name}": 1}}'.encode())])
        )
    first = plan_images(run, tmp_path / "a.tar")
    opened: list[str] = []

    def spy(uri: str, *, passed_over: PassedOver) -> object:
        opened.append(Path(uri).name)
        return walk_tar(uri, passed_over=passed_over)

    monkeypatch.setattr("foundry.images.tar.walk_tar", spy)
    assert plan_images(run, tmp_path / "a.tar") == first and not opened
    plan = plan_images(run, tmp_path / "a.tar", tmp_path / "b.tar")
    assert opened == ["b.tar"], "once, also for the columns that it carries"
    assert plan.carried == {"a": "BIGINT", "b": "BIGINT"} and first.carried == {"a": "BIGINT"}


def test_a_plan_that_is_thrown_away_leaves_nothing(run: Folder, tmp_path: Path) -> None:
    images = save(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    plan_images(run, images)
    save(images, "d.jpg")
    plan_images(run, images)
    discard_plan(run)
    assert run.names("images") == run.names("plans") == []
    assert [len(unit) for unit in keys(run, plan_images(run, images, unit_size=2))] == [2, 2]


def test_long_indexing_is_counted_and_short_one_is_not(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_images(run, save(tmp_path / "short", "a.jpg"))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("dataset_builder.runs.plan._SOON_S", 0.0)
    monkeypatch.setattr("foundry.reporting.progress.LINE_EVERY_S", 0.0)
    plan_images(run, save(tmp_path / "long", "b.jpg", "c.jpg"))
    assert "indexing: 2 images" in capsys.readouterr().err


def test_a_tar_that_has_changed_is_refused(run: Folder, tmp_path: Path) -> None:
    data = (save(tmp_path / "images", "x.jpg") / "x.jpg").read_bytes()
    tar = tmp_path / "shard.tar"
    tar.write_bytes(tar_bytes([("x.jpg", data)]))
    plan_images(run, tar)
    tar.write_bytes(tar_bytes([("w.jpg", data), ("x.jpg", data)]))
    with pytest.raises(UserError, match=r"shard.tar has changed since it was planned"):
        plan_images(run, tar)


def test_a_limit_takes_the_first_units(run: Folder, tmp_path: Path) -> None:
    plan = plan_images(run, save(tmp_path / "images", *(f"{number}.jpg" for number in range(8))))
    assert [unit.num_images for unit in plan.units()] == [3, 3, 2]
    assert plan.units(limit=3) == plan.units()[:1]
    assert plan.units(limit=4) == plan.units()[:2]
    assert plan.units(limit=100) == plan.units()


def test_index_files_hold_a_row_group_for_each_unit(run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset_builder.runs.plan.UNITS_PER_PART", 2)
    plan = plan_images(run, save(tmp_path / "images", *(f"{number:02d}.jpg" for number in range(14))))
    assert [(part.first_unit, part.units, part.rows) for part in plan.parts] == [(0, 2, 6), (2, 2, 6), (4, 1, 2)]
    assert [key for unit in keys(run, plan) for key in unit] == [f"{number:02d}" for number in range(14)]
