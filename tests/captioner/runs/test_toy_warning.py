"""No toy by accident: a model must be named, and mini says so where it is shown photographs."""

from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from captioner.config import REAL_MODEL, CaptionConfig
from captioner.engines.model_source import MINI, resolve_model
from captioner.run import main
from captioner.runs.toy_warning import ToyWarning
from foundry.command_line import run_command
from foundry.images.index import IMAGES, REJECTED
from foundry.storage.folder import Folder
from foundry.units.commits import Commit, Unit, commit_unit
from tests.captioner.conftest import caption_plainly, run_arguments

SCENE, PHOTOGRAPH, BANNER = (64, 64), (400, 300), (2000, 256)


def commit(run: Folder, number: int, sizes: list[tuple[int, int]]) -> Commit:
    """A unit of images of these sizes, as the captioner commits it."""
    rows = [
        {"key": f"{number}-{index}", "uri": "x", "content_hash": "0", "width": width, "height": height}
        for index, (width, height) in enumerate(sizes)
    ]
    unit = Unit(number=number, num_images=max(1, len(rows)), part="", row_group=0)
    rejected = [] if rows else [{"key": f"{number}", "uri": "x", "reason": "broken", "message": ""}]
    tables = {
        "images": pa.Table.from_pylist(rows, schema=IMAGES),
        "rejected": pa.Table.from_pylist(rejected, schema=REJECTED),
    }
    done = commit_unit(run, run_id="r", unit=unit, tables=tables, num_tokens=0)
    assert done is not None
    return done


def test_without_a_model_it_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--images", "photos", "--out", "run"]
    assert run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments) == 2
    assert capsys.readouterr().err == (
        "error: --model is missing: type --model llava-hf/llava-1.5-7b-hf for a real model, or --model mini for the toy, "
        "which only understands 64-pixel emoji scenes\n"
    )


def test_large_images_are_said_once_and_as_soon_as_there_are_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Folder(str(tmp_path))
    warning = ToyWarning(run)
    for number, sizes in enumerate([[SCENE, BANNER], [], [SCENE, (256, 256)]]):
        warning.look(commit(run, number, sizes))
    assert capsys.readouterr() == ("", "")
    for number in (3, 4):
        warning.look(commit(run, number, [SCENE, PHOTOGRAPH, (257, 257)]))
    assert capsys.readouterr().err == (
        "warning: mini only understands 64-pixel emoji scenes, and 2 of the 7 images so far are larger than 256 px on both "
        f"sides: its captions of photographs will be wrong; give another model, such as {REAL_MODEL}\n"
    )


def test_the_toy_is_known_by_its_folder_too(tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MINI.parent)
    assert [resolve_model(name).is_mini for name in ("mini", str(MINI), "llava-mini", str(tiny_llava))] == [True] * 3 + [False]


def test_a_run_of_the_toy_on_photographs_warns_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index, size in enumerate((SCENE, PHOTOGRAPH, BANNER, PHOTOGRAPH)):
        Image.new("RGB", size, "green").save(tmp_path / "images" / f"{index}.png")
    code, output = caption_plainly(run_arguments(tmp_path / "images", tmp_path / "run", Path("mini"), "--unit_size", "2"))
    assert code == 0 and "4 planned = 4 captioned + 0 rejected" in output, output
    (line,) = [line for line in output.splitlines() if "warning: mini" in line]
    assert "1 of the 2 images so far are larger than 256 px on both sides" in line and REAL_MODEL in line
