"""The small world: its scenes are what their seed says, their splits are apart, and every format tells the same."""

import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from examples.openmoji.composition import LAYOUTS, PLACES, Scene, draw_scene, render
from examples.openmoji.held_out import SPLITS, is_held_out
from examples.openmoji.kinds import KINDS
from examples.openmoji.scene_files import TRUTH_FILE, SceneSet, write_scenes
from foundry.errors import UserError


def _scenes(split: str, count: int = 400) -> list[Scene]:
    return [draw_scene(seed=3, index=index, split=split) for index in range(count)]


def _set(**changes: object) -> SceneSet:
    settings: dict[str, object] = {
        "count": 6,
        "seed": 4,
        "split": "train",
        "single_objects": False,
        "num_kinds": None,
        "format": "jpeg",
    }
    return SceneSet(**{**settings, **changes})  # type: ignore[arg-type]


def _combinations(scene: Scene) -> set[tuple[str, str, str, str]]:
    return {(thing.kind, thing.place, scene.color, scene.pattern) for thing in scene.objects}


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    again = draw_scene(seed=3, index=7, split="train")
    assert again == _scenes("train", 8)[7]
    assert np.array_equal(render(again), render(_scenes("train", 8)[7]))
    assert draw_scene(seed=4, index=7) != again
    assert draw_scene(seed=3, index=8) != again


def test_the_world_does_not_drift() -> None:
    # Shipped checkpoints were trained on exactly this hold-out and these scenes.
    held_out = [(kind.name, place) for kind in KINDS for place in PLACES if is_held_out(kind.name, place, "pink", "striped")]
    assert held_out[:4] == [("owl", "top left"), ("owl", "bottom right"), ("apple", "right"), ("tree", "left")]
    scene = draw_scene(seed=0, index=0)
    assert [(thing.kind, thing.place, thing.size_px) for thing in scene.objects] == [("penguin", "bottom left", 33)]


def test_train_and_unseen_share_no_combination() -> None:
    train, unseen = ({c for scene in _scenes(split) for c in _combinations(scene)} for split in SPLITS)
    assert train and unseen
    assert not train & unseen
    assert all(is_held_out(*combination) for combination in unseen)
    assert not any(is_held_out(*combination) for combination in train)


def test_about_a_tenth_of_all_combinations_is_held_out() -> None:
    every = [
        is_held_out(kind.name, place, color, pattern)
        for kind in KINDS
        for place in PLACES
        for color in ("white", "teal", "blue")
        for pattern in ("plain", "dotted")
    ]
    assert 0.08 < np.mean(every) < 0.12


@pytest.mark.parametrize("split", SPLITS)
def test_objects_lie_inside_the_image_and_never_overlap(split: str) -> None:
    for scene in _scenes(split):
        covered = np.zeros((64, 64), dtype=int)
        for thing in scene.objects:
            assert thing.x_px >= 0 and thing.y_px >= 0
            assert thing.x_px + thing.width_px <= 64 and thing.y_px + thing.height_px <= 64
            assert max(thing.width_px, thing.height_px) == thing.size_px
            covered[thing.y_px : thing.y_px + thing.height_px, thing.x_px : thing.x_px + thing.width_px] += 1
        assert covered.max() == 1, scene


def test_an_object_is_where_its_place_says() -> None:
    for scene in _scenes("train"):
        for thing in scene.objects:
            row, column = PLACES[thing.place]
            center = (thing.y_px + thing.height_px / 2, thing.x_px + thing.width_px / 2)
            assert (round((center[0] - 16) / 16), round((center[1] - 16) / 16)) == (row, column), (scene, thing)


def test_scenes_vary() -> None:
    scenes = _scenes("train", 1500)
    assert {len(scene.objects) for scene in scenes} == set(LAYOUTS)
    assert {thing.kind for scene in scenes for thing in scene.objects} == {kind.name for kind in KINDS}
    assert len({(scene.color, scene.pattern) for scene in scenes}) == 40
    assert any(len({thing.kind for thing in scene.objects}) < len(scene.objects) for scene in scenes)
    assert {scene.relation.relation for scene in scenes if scene.relation} == {"left of", "right of", "above", "below"}


def test_every_format_holds_the_same_images_and_texts(tmp_path: Path) -> None:
    for name in ("jpeg", "tar", "parquet"):
        assert write_scenes(_set(format=name), tmp_path / name)
    loose = {path.stem: path.read_bytes() for path in (tmp_path / "jpeg").rglob("*.jpg")}
    texts = {path.stem: path.read_text() for path in (tmp_path / "jpeg" / "00000").glob("*.txt")}
    with tarfile.open(tmp_path / "tar" / "scenes-00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    rows = pq.read_table(tmp_path / "parquet" / "scenes-00000.parquet").to_pylist()
    assert len(loose) == 6
    assert {name.removesuffix(".jpg"): content for name, content in members.items() if name.endswith(".jpg")} == loose
    assert {name.removesuffix(".txt"): c.decode() for name, c in members.items() if name.endswith(".txt")} == texts
    assert {Path(row["image"]["path"]).stem: row["image"]["bytes"] for row in rows} == loose
    assert {Path(row["image"]["path"]).stem: row["alt_text"] for row in rows} == texts
    truths = [pq.read_table(tmp_path / name / TRUTH_FILE).to_pylist() for name in ("jpeg", "tar", "parquet")]
    assert truths[0] == truths[1] == truths[2]
    assert {row["key"]: row["alt_text"] for row in truths[0]} == texts


def test_a_larger_count_only_adds(tmp_path: Path) -> None:
    write_scenes(_set(), tmp_path / "few")
    write_scenes(_set(count=9), tmp_path / "more")
    few, more = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.jpg")} for name in ("few", "more"))
    assert few.items() <= more.items() and len(more) == 9


def test_a_jpeg_shows_the_scene_of_the_truth(tmp_path: Path) -> None:
    write_scenes(_set(), tmp_path / "out")
    for row in pq.read_table(tmp_path / "out" / TRUTH_FILE).to_pylist():
        with Image.open(tmp_path / "out" / "00000" / f"{row['key']}.jpg") as image:
            decoded = np.asarray(image, dtype=float)
        drawn = render(draw_scene(seed=4, index=row["index"])).astype(float)
        assert np.abs(decoded - drawn).mean() < 3


def test_single_objects_carry_their_class(tmp_path: Path) -> None:
    for name in ("jpeg", "tar", "parquet"):
        write_scenes(_set(format=name, single_objects=True, num_kinds=8), tmp_path / name)
    truth = pq.read_table(tmp_path / "jpeg" / TRUTH_FILE).to_pylist()
    labels = {row["key"]: row["class_label"] for row in truth}
    assert {path.stem: path.parent.name for path in (tmp_path / "jpeg").rglob("*.jpg")} == labels
    with tarfile.open(tmp_path / "tar" / "scenes-00000.tar") as tar:
        classes = {m.name: tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".cls")}  # type: ignore[union-attr]
    assert {name.removesuffix(".cls"): label for name, label in classes.items()} == labels
    assert pq.read_table(tmp_path / "parquet" / "scenes-00000.parquet")["class_label"].to_pylist() == list(labels.values())
    assert all(len(row["objects"]) == 1 and row["objects"][0]["kind"] == row["class_label"] for row in truth)
    assert set(labels.values()) <= {kind.name for kind in KINDS[:8]}


def test_the_same_command_again_finds_its_work_done_and_another_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert write_scenes(_set(), out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not write_scenes(_set(), out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(UserError, match="name another folder"):
        write_scenes(_set(count=7), out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        write_scenes(_set(), tmp_path / "other")


def test_a_sprite_does_not_glow() -> None:
    """Premultiplied colours never exceed alpha, so that composing cannot overflow."""
    from examples.openmoji.sprites import sprite

    for kind in KINDS:
        drawing = sprite(kind.name, 22).astype(int)
        assert (drawing[..., :3] <= drawing[..., 3:]).all(), kind.name
        assert max(drawing.shape[:2]) == 22
