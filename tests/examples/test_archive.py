"""The picture archive: its pictures are made anew byte by byte, and the shipped captions are what llava-mini writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from captioner.prompt_sets import load_prompts
from dataset_builder.sql.dataset_files import open_stored
from examples.openmoji.archive import LIST, RUNS, steps, write_pictures
from foundry.images.decoding import DecodeLimits, decode_image
from foundry.images.reader import content_hash

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = ROOT / "examples" / "archive"
NUM_PICTURES = 300
NUM_BROKEN = 10


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("archive")
    write_pictures(out)
    return out


def test_the_pictures_are_those_of_the_shipped_runs(pictures: Path) -> None:
    assert (pictures / LIST).read_text() == (ARCHIVE / LIST).read_text()
    rows = [json.loads(line) for line in (pictures / LIST).read_text().splitlines()]
    assert len(rows) == NUM_PICTURES
    made = {content_hash((pictures / row["path"]).read_bytes()) for row in rows if (pictures / row["path"]).exists()}
    for name in RUNS:
        with open_stored(str(ARCHIVE / "runs" / name)) as run:
            images = run.fetch("SELECT uri, content_hash FROM images").to_pylist()
            rejected = run.fetch("SELECT key FROM rejected").to_pylist()
        assert (len(images), len(rejected)) == (NUM_PICTURES - NUM_BROKEN, NUM_BROKEN)
        assert {image["content_hash"] for image in images} <= made
        assert all(image["uri"].startswith("/srv/archive/") for image in images), "no folder of one machine"


def test_each_step_writes_what_is_shipped() -> None:
    for step in steps(Path("archive")):
        assert step.output is not None
        assert (ARCHIVE / step.output.relative_to("archive")).exists()


def test_the_shipped_captions_are_those_of_the_model(pictures: Path) -> None:
    from captioner.engines.generation import GenerationSettings
    from captioner.engines.model_source import resolve_model
    from captioner.engines.transformers_engine import TransformersEngine

    with open_stored(str(ARCHIVE / "runs" / "greedy")) as run:
        written = run.fetch(
            "SELECT key, uri, prompt, caption_raw FROM captions JOIN images USING (key) "
            "WHERE key IN (SELECT key FROM images ORDER BY md5(key) LIMIT 8) ORDER BY key"
        ).to_pylist()
    engine = TransformersEngine(resolve_model("mini"), GenerationSettings(dtype="float32"))
    for prompt in load_prompts("ladder").prompts:
        rows = [row for row in written if row["prompt"] == prompt.name]
        images = [_pixels(pictures / row["uri"].removeprefix("/srv/archive/")) for row in rows]
        said = engine.caption(images, [prompt.text] * len(rows), [row["key"] for row in rows])
        assert [one.text for one in said] == [row["caption_raw"] for row in rows]


def _pixels(path: Path) -> np.ndarray:
    return decode_image(path.read_bytes(), limits=DecodeLimits()).pixels


def test_the_archive_can_be_copied(tmp_path: Path) -> None:
    shutil.copytree(ARCHIVE, tmp_path / "archive")
    for folder in ("runs/greedy", "runs/sampled", "data"):
        with open_stored(str(tmp_path / "archive" / folder)) as stored:
            (row,) = stored.fetch("SELECT count(*) AS captions FROM captions").to_pylist()
        assert row["captions"] > NUM_PICTURES / 2
