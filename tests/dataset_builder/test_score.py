"""Scores: each figure against another way to get it, and what a user sees when something does not fit."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dataset_builder.convert import ConvertConfig
from dataset_builder.convert import main as convert
from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig, DedupConfig
from dataset_builder.score import main
from dataset_builder.scores.aesthetic import AestheticPredictor
from dataset_builder.scores.clip import resolve_clip, sentence_tokens
from dataset_builder.scores.config import ScoreConfig
from dataset_builder.scores.image_quality import sharpness
from dataset_builder.scores.job import ScoreJob
from dataset_builder.sql.dataset_files import open_stored
from dataset_builder.sql.run_files import open_run
from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits
from tests.dataset_builder.small_run import MINI_T5
from tests.dataset_builder.tiny_clip import WIDTH, picture, write_tiny_clip, write_tiny_predictor
from tests.foundry.images.containers import encode, write
from tests.foundry.units.plain_loop import run_plainly

TEXTS = {
    "a": "An owl sits on a tree. The sky is blue!",
    "b": "A very long sentence about a house with a red door and a green roof and a blue wall and a garden. A dog.",
    "c": "",
}


_JOB = ScoreJob(
    scored="", out="", score_id="", is_run=True, clip=None, aesthetic=None, batch_size=1, limits=DecodeLimits(), dtype="float32"
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of three smooth images of 90 x 60."""
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)
    monkeypatch.setattr("foundry.units.ray_session.start_ray", lambda _settings: None)
    monkeypatch.setattr("foundry.units.ray_session.dtype_of_replicas", lambda _settings: "float32")  # as open_clip computes
    for number, (key, text) in enumerate(TEXTS.items()):
        write(tmp_path / "photos" / f"{key}.png", encode(picture(number), "PNG"))
        write(tmp_path / "photos" / f"{key}.txt", text)
    config = ConvertConfig(
        input=str(tmp_path / "photos"), out=str(tmp_path / "run"), source="image-txt", target="run", t5=MINI_T5
    )
    assert convert(config) == 0
    return tmp_path / "run"


def _rows(run: Path, sql: str) -> list[dict[str, Any]]:
    with open_run(str(run)) as database:
        rows: list[dict[str, Any]] = database.fetch(sql).to_pylist()
    return rows


def test_scores_are_those_of_open_clip_and_of_the_predictor(run: Path, clip: Path, tmp_path: Path) -> None:
    import open_clip

    predictor = write_tiny_predictor(tmp_path / "aesthetic.safetensors")
    assert main(ScoreConfig(source=str(run), clip=str(clip), aesthetic=str(predictor), batch_size=2)) == 0
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    said = {row["key"]: row for row in _rows(run, "SELECT * FROM caption_scores")}
    scores = {row["key"]: row for row in _rows(run, "SELECT * FROM scores")}
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip}")
    for number, key in enumerate("ab"):
        with torch.inference_mode():
            image = model.eval().encode_image(transform(picture(number))[None], normalize=True)
            texts = model.encode_text(tokenizer(said[key]["sentences"]), normalize=True)
        expected = (texts @ image[0]).tolist()
        assert said[key]["sentence_scores"] == pytest.approx(expected, abs=2e-3)  # pixels travel as 8 bits
        assert said[key]["clip_mean"] == pytest.approx(np.mean(said[key]["sentence_scores"]), abs=1e-6)
        assert said[key]["clip_least"] == scores[key]["clip_least"] == min(said[key]["sentence_scores"])
        weights = load_file(predictor)
        hidden = image
        for place in (0, 2, 4, 6, 7):
            hidden = hidden @ weights[f"layers.{place}.weight"].T + weights[f"layers.{place}.bias"]
        assert scores[key]["aesthetic"] == pytest.approx(hidden.item(), abs=2e-2)
        assert scores[key]["sharpness"] == pytest.approx(sharpness(np.array(picture(number))), rel=1e-5)
    assert len(said) == 2
    assert scores["c"] | {"clip_mean": None, "clip_least": None} == scores["c"]


def test_scoring_resumes_where_it_ended_and_shows_the_newest(run: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (str(clip), "none"):
        assert main(ScoreConfig(source=str(run), clip=name)) == 0
    assert [row["clip_mean"] for row in _rows(run, "SELECT clip_mean FROM scores")] == [None] * 3
    capsys.readouterr()
    assert main(ScoreConfig(source=str(run), clip="none")) == 0
    assert "0 of 1 unit to do" in capsys.readouterr().out
    assert len(list((run / "scores").glob("*.json"))) == 2


def test_an_image_that_has_changed_or_gone_is_rejected_by_name(run: Path) -> None:
    photos = run.parent / "photos"
    (photos / "a.png").write_bytes(encode(picture(9), "PNG"))
    (photos / "b.png").unlink()
    assert main(ScoreConfig(source=str(run), clip="none")) == 0
    assert [row["key"] for row in _rows(run, "SELECT key FROM scores")] == ["c"]


def _nan_clip(folder: Path, *, word: str = "", everywhere: bool = False) -> Path:
    """A CLIP that computes NaN for texts with a word, or for everything."""
    file = write_tiny_clip(folder) / "open_clip_model.safetensors"
    weights = load_file(file)
    if everywhere:
        weights["visual.conv1.weight"][:] = torch.nan
    if word:
        weights["token_embedding.weight"][sentence_tokens([word], resolve_clip(str(folder)))[0, 1]] = torch.nan
    save_file(weights, file)
    return folder


def test_an_image_whose_scores_are_nan_is_rejected_and_not_scored(run: Path, tmp_path: Path) -> None:
    assert main(ScoreConfig(source=str(run), clip=str(_nan_clip(tmp_path / "nan", word="owl")))) == 0  # of picture a alone
    assert [row["key"] for row in _rows(run, "SELECT key FROM scores WHERE clip_mean IS NOT NULL")] == ["b"]
    assert [row["key"] for row in _rows(run, "SELECT key FROM scores ORDER BY key")] == ["b", "c"]
    assert [row["key"] for row in _rows(run, "SELECT key FROM embeddings ORDER BY key")] == ["b", "c"]
    assert _rows(run, "SELECT min(clip_mean) AS least FROM caption_scores WHERE isnan(clip_mean)") == [{"least": None}]


def test_scores_of_what_is_left_are_those_without_the_rejected_image(run: Path, clip: Path, tmp_path: Path) -> None:
    assert main(ScoreConfig(source=str(run), clip=str(clip))) == 0
    expected = _rows(run, "SELECT prompt, sentences, sentence_scores FROM caption_scores WHERE key = 'b'")
    assert main(ScoreConfig(source=str(run), clip=str(_nan_clip(tmp_path / "nan", word="owl")))) == 0
    assert _rows(run, "SELECT prompt, sentences, sentence_scores FROM caption_scores WHERE key = 'b'") == expected


def test_a_clip_that_computes_nan_for_a_grey_image_is_one_line(tmp_path: Path) -> None:
    source = resolve_clip(str(_nan_clip(tmp_path, everywhere=True)))
    job = replace(_JOB, clip=source)
    with pytest.raises(UserError, match="computed NaN or infinity for a grey image: fetch CLIP"):
        job.check(job.load_engine())


def test_what_cannot_be_used_is_one_line(clip: Path, run: Path, tmp_path: Path) -> None:
    pickled = write(tmp_path / "sac+logos+ava1-l14-linearMSE.pth", b"\x80\x02}q\x00.")
    with pytest.raises(UserError, match="save the published .pth as safetensors"):
        AestheticPredictor(str(pickled))
    save_file({"layers.0.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is not LAION's aesthetic predictor"):
        AestheticPredictor(str(tmp_path / "other.safetensors"))
    wide = write_tiny_predictor(tmp_path / "wide.safetensors", width=768)
    with pytest.raises(UserError, match=f"width 768, .* gives {WIDTH}"):
        main(ScoreConfig(source=str(run), clip=str(clip), aesthetic=str(wide)))
    with pytest.raises(UserError, match="did you mean .*ViT-L-14:openai"):
        resolve_clip("ViT-L-14:opnai")
    with pytest.raises(UserError, match="needs open_clip_config.json and weights in safetensors"):
        resolve_clip(str(tmp_path))
    with pytest.raises(UserError, match="neither a captioning run nor a data set"):
        main(ScoreConfig(source=str(tmp_path), clip="none"))
    with pytest.raises(ValueError, match="name a CLIP"):
        ScoreConfig(source="run", clip="none", aesthetic="a.safetensors")


@pytest.mark.parametrize("embed", [False, True])
def test_a_data_set_scores_as_its_run_did(run: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, *, embed: bool) -> None:
    monkeypatch.setattr("dataset_builder.scores.plan.UNIT_IMAGES", 2)
    dataset = run.parent / "data"
    build_dataset(BuildConfig(captions=(str(run),), out=str(dataset), embed=embed))
    for source in (run, dataset):
        assert main(ScoreConfig(source=str(source), clip=str(clip))) == 0
    kept = "SELECT * FROM {view} WHERE key IN ('a', 'b') ORDER BY key"  # "c" has no caption, so it is not in the data set
    for view in ("scores", "caption_scores"):
        with open_stored(str(dataset)) as found:
            scored = found.fetch(kept.format(view=view)).to_pylist()
        # The run's batches hold "c" too, and matrix products round by the number of rows: a few units in the last place.
        for row, expected in zip(scored, _rows(run, kept.format(view=view)), strict=True):
            floats = [name for name, value in expected.items() if isinstance(value, float) or name == "sentence_scores"]
            assert [row.pop(name) for name in floats] == [pytest.approx(expected.pop(name), rel=1e-6) for name in floats]
            assert row == expected


def test_build_finds_what_looks_the_same_to_the_clip_and_counts_what_was_not_scored(run: Path, clip: Path) -> None:
    """`again` is "a" at another size and in another format: other bytes, nearly the same embedding."""
    photos = run.parent / "photos"
    write(photos / "again.jpg", encode(picture(0).resize((180, 120), Image.Resampling.BICUBIC), "JPEG", quality=95))
    write(photos / "again.txt", "An owl.")
    config = ConvertConfig(input=str(photos), out=str(run.parent / "four"), source="image-txt", target="run", t5=MINI_T5)
    assert convert(config) == 0
    recipe = BuildConfig(captions=(config.out,), out=str(run.parent / "data"), dedup=DedupConfig(min_cosine=0.999))
    assert any("3 images have no embedding to compare" in note for note in build_dataset(replace(recipe, dry_run=True)).notes)
    assert main(ScoreConfig(source=config.out, clip=str(clip))) == 0
    rows = _rows(Path(config.out), "SELECT key, embedding FROM embeddings WHERE key <> 'c' ORDER BY key")
    vectors = np.array([row["embedding"] for row in rows])
    assert [row["key"] for row in rows] == ["a", "again", "b"]
    near = vectors @ vectors.T >= 0.999
    assert near.tolist() == [[True, True, False], [True, True, False], [False, False, True]], vectors @ vectors.T
    assert not any("embedding" in note for note in build_dataset(recipe).notes)
    with open_stored(recipe.out) as found:
        kept = "SELECT key, near_group, is_copy, is_kept FROM groups ORDER BY key"
        assert [tuple(row.values()) for row in found.fetch(kept).to_pylist()] == [
            ("a", 0, False, False),
            ("again", 0, False, True),
        ]
        assert found.fetch("SELECT key FROM samples ORDER BY key")["key"].to_pylist() == ["again", "b"]
        dropped = found.fetch("SELECT key, reason FROM dropped WHERE step = 'dedup'").to_pylist()
    assert dropped == [{"key": "a", "reason": "nearly the same as another image"}]


def test_runs_that_were_scored_by_different_models_are_not_compared(run: Path, clip: Path) -> None:
    assert main(ScoreConfig(source=str(run), clip=str(clip))) == 0
    shutil.copytree(run, run.parent / "other")
    runs = BuildConfig(captions=(str(run), str(run.parent / "other")), out=str(run.parent / "data"), dry_run=True)
    build_dataset(runs)
    record = next((run.parent / "other" / "scores").glob("*.json"))
    record.write_text(re.sub(r'"fingerprint": "\w+"', '"fingerprint": "another"', record.read_text()))
    with pytest.raises(UserError, match=r"run and other were not scored by the same model \(clip\): score them again"):
        build_dataset(runs)


def test_the_record_of_a_data_set_is_read_once(run: Path, tmp_path: Path, file_reads: list[str]) -> None:
    dataset = str(tmp_path / "dataset")
    build_dataset(BuildConfig(captions=(str(run),), out=dataset, splits={"train": 1.0}))
    file_reads.clear()
    assert main(ScoreConfig(source=dataset, clip="none")) == 0
    assert file_reads.count("dataset.json") == 1
    file_reads.clear()
    with open_stored(dataset):
        assert file_reads.count("dataset.json") == 1
    file_reads.clear()
    with open_stored(str(run)):
        assert file_reads.count("run.json") == 1


def test_of_a_structured_caption_the_words_are_scored(clip: Path) -> None:
    job = replace(_JOB, clip=resolve_clip(str(clip)), structured=("json",))
    said = [{"prompt": "json", "caption": '{"a":"A red owl","c":"#FF0000"}'}, {"prompt": "prose", "caption": "A red owl."}]
    measured = job._measure(np.array(picture(0)), {"key": "a", "captions": said})
    assert measured.sentences == {"json": ["A red owl."], "prose": ["A red owl."]}
