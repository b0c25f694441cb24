"""Notebooks run from the first cell to the last: on scenes of the small world, and on a training of seconds."""

import json
import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from dataset_builder.convert import ConvertConfig
from dataset_builder.convert import main as convert
from examples.openmoji.scene_files import SceneSet, sample, write_scenes
from tests.dataset_builder.small_run import MINI_T5
from tests.foundry.images.containers import tar_bytes, write
from tests.foundry.units.plain_loop import run_plainly

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
IN_ITS_PROCESS = """
from tests.in_this_process import commands_here

_without_ray = commands_here()
_without_ray.__enter__()
"""


@pytest.mark.slow
def test_the_notebook_of_caption_density_runs_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)
    monkeypatch.setenv("RUN", described_scenes(tmp_path, count=60))
    outputs = _outputs("caption_density.ipynb", timeout_s=240)
    assert _num_pictures(outputs) == 5
    assert any("0.0% of the nouns are cut off" in output.get("text", "") for output in outputs)
    shown = "".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    assert re.search(r"dense +written +60 ", shown)
    assert "object" in shown


def described_scenes(folder: Path, *, count: int) -> str:
    """A run of scenes with their alt texts, and their true descriptions as captions."""
    scenes = SceneSet(count=count, seed=5, split="train", single_objects=False, num_kinds=None, format="jpeg")
    write_scenes(scenes, folder / "scenes")
    described = [sample(scenes, index) for index in range(count)]
    archive = write(folder / "dense.tar", tar_bytes((f"{one.key}.txt", one.texts.dense.encode()) for one in described))
    run, images = str(folder / "run"), (str(folder / "scenes"),)
    config = ConvertConfig(
        input=str(archive), out=run, source="sam-llava", target="run", images=images, prompt="dense", t5=MINI_T5
    )
    assert convert(config) == 0
    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_of_staged_training_goes_through_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network that is too small to draw anything. Units are worked off in the notebook's process."""
    recipe = {"network": {"width": 48, "depth": 2, "num_heads": 2}, "objective": {"name": "rectified_flow"}, "compile": False}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    settings = {
        "FOLDER": tmp_path / "stages",
        "RECIPE": tmp_path / "recipe.yaml",
        "SCENES": 240,
        "PROMPTS_PER_CATEGORY": 1,
        "IMAGES_PER_PROMPT": 1,
    }
    images = {"PIXEL_IMAGES": 32, "ALIGNMENT_IMAGES": 32, "AESTHETIC_IMAGES": 16}
    for name, value in {**settings, **images}.items():
        monkeypatch.setenv(name, str(value))
    outputs = _outputs("staged_training.ipynb", timeout_s=600, before=IN_ITS_PROCESS)
    assert _num_pictures(outputs) >= 11
    text = "".join(output.get("text", "") for output in outputs)
    for stage, seen in (("pixel", 32), ("alignment", 32), ("aesthetic", 16)):
        assert f"{stage}: done; {seen} images seen" in text
    assert re.search(r"after the aesthetic stage: \d+% of 16 images", text)


def _outputs(name: str, *, timeout_s: int, before: str = "") -> list[Any]:
    """Of all code cells, run in the notebook's folder. Code to run `before` follows the first cell, which sets paths."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)  # type: ignore[no-untyped-call]
    first = next(number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(before))  # type: ignore[no-untyped-call]
    client = nbclient.NotebookClient(notebook, timeout=timeout_s, resources={"metadata": {"path": str(NOTEBOOKS)}})
    client.execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def _num_pictures(outputs: list[Any]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)
