"""The demonstration of edges: its scores count what is where the edges are, and its prompts leave places to them."""

from dataclasses import replace
from pathlib import Path

from examples.openmoji.composition import PLACES, render
from examples.openmoji.edges import EdgesConfig, steps
from examples.openmoji.edges_scenes import held_out_scenes, prompt_of, scores, write_scenes
from foundry.commands import COMMANDS


def test_scores_tell_what_is_in_its_box_from_what_is_elsewhere() -> None:
    scenes = [scene for scene in held_out_scenes(20) if len(scene.objects) == 1][:3]
    assert scores(scenes, [render(scene) for scene in scenes]) == {
        "objects in their box": 1.0,
        "objects drawn anywhere": 1.0,
        "images with the right background": 1.0,
    }
    moved = []
    for scene in scenes:
        (thing,) = scene.objects
        x_px = 0 if thing.x_px > 30 - thing.width_px // 2 else 64 - thing.width_px
        moved.append(replace(scene, objects=(replace(thing, x_px=x_px),), color="teal" if scene.color != "teal" else "red"))
    found = scores(scenes, [render(scene) for scene in moved])
    assert found["objects in their box"] < 0.5 and found["objects drawn anywhere"] == 1.0
    assert found["images with the right background"] == 0.0


def test_prompts_leave_places_to_the_edges() -> None:
    scenes = held_out_scenes(20)
    assert {scene.split for scene in scenes} == {"unseen"} and {len(scene.objects) for scene in scenes} == {1, 2, 3}
    for scene in scenes:
        words = prompt_of(scene).lower().replace(".", "").split()
        assert scene.color in words and not set(words) & {"left", "right", "top", "bottom", "center", "middle", "corner"}
    assert len(PLACES) == 9


def test_scenes_are_written_once_and_steps_are_commands(tmp_path: Path) -> None:
    write_scenes(tmp_path, 3)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    write_scenes(tmp_path, 4)
    assert len(times) == 6 and len(list(tmp_path.rglob("*.jpg"))) == 4
    assert all(path.stat().st_mtime_ns == at for path, at in times.items())
    modules = {command.module for command in COMMANDS.values()}
    assert all(step.module in modules for step in steps(EdgesConfig(out=str(tmp_path))))
