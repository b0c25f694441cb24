"""Notebooks run from the first cell to the last: on a run like the demo's, and on a training of seconds."""

import json
import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from dataset_builder.storage import Folder
from tests.dataset_builder.small_run import SmallRun

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


@pytest.mark.slow
def test_the_notebook_of_caption_density_runs_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SmallRun().write(Folder(str(tmp_path / "run")))
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    outputs = _outputs("caption_density.ipynb", timeout_s=240)
    assert _num_pictures(outputs) >= 5
    assert any("of the nouns are cut off" in output.get("text", "") for output in outputs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_of_staged_training_goes_through_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network that is too small to draw anything."""
    recipe = {"network": {"width": 48, "depth": 2, "num_heads": 2}, "objective": {"name": "rectified_flow"}, "compile": False}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    settings = {"FOLDER": tmp_path / "stages", "RECIPE": tmp_path / "recipe.yaml", "SCENES": 240, "PROMPTS_PER_CATEGORY": 1}
    images = {"PIXEL_IMAGES": 32, "ALIGNMENT_IMAGES": 32, "AESTHETIC_IMAGES": 16}
    for name, value in {**settings, **images}.items():
        monkeypatch.setenv(name, str(value))
    outputs = _outputs("staged_training.ipynb", timeout_s=600)
    assert _num_pictures(outputs) >= 11
    text = "".join(output.get("text", "") for output in outputs)
    for stage, seen in (("pixel", 32), ("alignment", 32), ("aesthetic", 16)):
        assert f"{stage}: done; {seen} images seen" in text
    assert re.search(r"after the aesthetic stage: \d+% of 16 images", text)


def _outputs(name: str, *, timeout_s: int) -> list[Any]:
    """Of all code cells, run in the notebook's folder."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)  # type: ignore[no-untyped-call]
    client = nbclient.NotebookClient(notebook, timeout=timeout_s, resources={"metadata": {"path": str(NOTEBOOKS)}})
    client.execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def _num_pictures(outputs: list[Any]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)
