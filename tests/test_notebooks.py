"""Notebooks run from the first cell to the last on a run like the demo's."""

from pathlib import Path

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
    notebook = nbformat.read(NOTEBOOKS / "caption_density.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(NOTEBOOKS)}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 5
    assert any("of the nouns are cut off" in output.get("text", "") for output in outputs)
