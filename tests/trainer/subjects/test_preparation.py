"""DreamBooth's data set: images with captions that name the subject, what the network drew itself, and the weights of both."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foundry.command_line import run_command
from foundry.images.sources import find_sources, index_source
from tests.model.tiny_parts import save_tiny_checkpoint
from trainer.data.weights import read_weights
from trainer.dreambooth import main
from trainer.subjects.config import SubjectConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("subject"), objective="rectified_flow")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images, one of which says what it shows."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.fromarray(np.full((40, 32, 3), 40 * number, dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "2.txt").write_text("a small sks owl\n on the left")
    return folder


def _run(photos: Path, checkpoint: Path, out: Path, *arguments: str) -> int:
    argv = [f"--images={photos}", f"--checkpoint={checkpoint}", f"--out={out}", "--trigger_word=sks owl"]
    argv += ["--sampling.num_inference_steps=1", *arguments]
    return run_command(SubjectConfig, main, prog="python -m trainer.dreambooth", example="", argv=argv)


PRIOR = ("--class_prompt=an owl", "--num_prior_images=8", "--prior_weight=0.5")


def test_images_captions_and_weights_are_there_and_the_commands_that_follow(
    photos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _run(photos, checkpoint, out, *PRIOR) == 0
    printed = capsys.readouterr().out
    assert "5 images of sks owl, 8 that" in printed
    for command in ("dataset_builder.convert --source image-txt --target run", "trainer.precompute", "trainer.fit --config"):
        assert f"python -m {command}" in printed
    assert f"--init_from {checkpoint}" in printed and "--lora.trigger_word 'sks owl'" in printed
    subject = {path.stem: path.read_text().strip() for path in (out / "images" / "subject").glob("*.txt")}
    assert subject == dict.fromkeys("0134", "a photo of sks owl") | {"2": "a small sks owl on the left"}
    assert (out / "images" / "subject" / "3.png").read_bytes() == (photos / "3.png").read_bytes()
    prior = {path.stem: path.read_text().strip() for path in (out / "images" / "prior").glob("*.txt")}
    assert len(prior) == 8 and set(prior.values()) == {"an owl"}
    table = read_weights(str(out / "weights.parquet"))
    assert table is not None
    weights = dict(zip(table["key"].to_pylist(), table["weight"].to_pylist(), strict=True))
    assert weights.keys() == subject.keys() | prior.keys()
    own = sum(weights[key] for key in subject)
    assert sum(weights[key] for key in prior) == pytest.approx(0.5 * own) and max(weights.values()) == 1
    sources = find_sources([str(out / "images")])
    assert {row["stem"] for source in sources for table in index_source(source) for row in table.to_pylist()} == set(weights)


def test_the_same_command_draws_nothing_again(
    photos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(photos, checkpoint, tmp_path / "out", *PRIOR) == 0
    next((tmp_path / "out" / "images" / "prior").glob("*.png")).unlink()
    assert _run(photos, checkpoint, tmp_path / "out", *PRIOR) == 0
    assert "1 images of what" in capsys.readouterr().out


def test_prompts_of_a_file_are_kept_and_without_any_there_are_none(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red owl\na key\n")
    prompts = (f"--prior_prompts={tmp_path / 'prompts.txt'}", "--num_prior_images=4")
    assert _run(photos, checkpoint, tmp_path / "out", *prompts) == 0
    texts = [path.read_text().strip() for path in (tmp_path / "out" / "images" / "prior").glob("*.txt")]
    assert sorted(texts) == ["a key"] * 2 + ["a red owl"] * 2
    assert _run(photos, checkpoint, tmp_path / "alone", "--num_prior_images=0") == 0
    table = read_weights(str(tmp_path / "alone" / "weights.parquet"))
    assert table is not None and set(table["weight"].to_pylist()) == {1.0} and len(table) == 5


def test_what_cannot_be_learned_from_is_refused_in_a_line(
    photos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def refused(words: str, *arguments: str, folder: Path = photos) -> None:
        assert _run(folder, checkpoint, out, *arguments) == 2
        found = capsys.readouterr().err
        assert words in found and found.count("\n") == 1, found
        assert not (out / "weights.parquet").exists()

    refused("give either class_prompt or prior_prompts", "--num_prior_images=8")
    refused("template must have {word} once", *PRIOR, "--template=a photo")
    (tmp_path / "empty").mkdir()
    refused("holds no images: give a folder of 5 to 50 (--images)", *PRIOR, folder=tmp_path / "empty")
    refused("expected a folder of images, found nothing (--images)", *PRIOR, folder=tmp_path / "nowhere")
    (photos / "2.txt").write_text("a small owl")
    refused("2.txt: expected a caption with the trigger word 'sks owl', found 'a small owl'", *PRIOR)
    (photos / "2.txt").unlink()
    (photos / "2.png").write_bytes(b"no image")
    refused("2.png cannot be read as an image", *PRIOR)
    shutil.copyfile(photos / "1.png", photos / "2.png")
    Image.open(photos / "1.png").convert("RGB").save(photos / "1.jpg")
    refused("1.jpg and 1.png share a name: rename one of them (--images)", *PRIOR)
