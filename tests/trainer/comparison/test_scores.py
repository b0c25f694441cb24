"""Scores of a benchmark are those of trainer.evaluate, taken once for each training, and checked before anything is trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from foundry.errors import UserError
from model.formats.checkpoint import PartConfig
from tests.model.tiny_parts import save_tiny_t5, save_tiny_vae, tiny_text_encoder, tiny_vae
from tests.trainer import toy_benchmark
from tests.trainer.comparison.tiny_comparison import tiny_comparison
from tests.trainer.tiny_training import write_store
from trainer.comparison.comparing import compare
from trainer.comparison.config import CompareConfig
from trainer.comparison.table import markdown

BENCHMARK = "tests.trainer.toy_benchmark"
FEW_STEPS = {"sampling": {"num_inference_steps": 2}, "runtime": {"dtype": "float32"}}


@pytest.fixture
def config(tmp_path: Path) -> CompareConfig:
    """Features whose encoders are there, so that trained networks can draw."""
    vae, t5 = save_tiny_vae(tmp_path / "vae"), save_tiny_t5(tmp_path / "t5")
    encoder = tiny_text_encoder(t5)
    write_store(
        tmp_path / "features",
        encoder=encoder,
        vae=PartConfig(name=str(vae), fingerprint=tiny_vae(vae).fingerprint()),
        text_encoder=PartConfig(name=str(t5), fingerprint=encoder.fingerprint()),
        text_encoder_dtype="float32",
        caption_width=encoder.width,
        max_caption_tokens=20,
        scaling_factor=tiny_vae(vae).own_scale.scaling_factor,
    )
    return tiny_comparison(tmp_path / "features", tmp_path / "out", "layersync", seeds=2)


def test_a_benchmark_scores_each_training_once_and_can_be_added_later(
    config: CompareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not compare(config).scores
    scored = replace(config, benchmark=BENCHMARK, evaluation=FEW_STEPS)
    toy_benchmark.asked.clear()
    found = compare(scored)
    asked = len(toy_benchmark.asked)
    assert asked >= 4 * len(toy_benchmark.PROMPTS), "two arms and two seeds"
    assert compare(scored).scores == found.scores and len(toy_benchmark.asked) == asked
    rows = pq.read_table(found.folder / "scores.parquet").to_pylist()
    assert {(row["arm"], row["seed"]) for row in rows} == {(arm, seed) for arm in ("base", "layersync") for seed in (0, 1)}
    figure = next(one for one in found.figures if one.name == "bright: brightness by brightness")
    by_seed = {row["seed"]: row["value"] for row in rows if (row["arm"], row["category"]) == ("layersync", "bright")}
    assert dict(figure.estimates["layersync"].values) == by_seed
    assert figure.estimates["layersync"].difference is not None
    text = markdown(found)
    assert "Prompt scores at the end:" in text and "all prompts: brightness by brightness" in text
    page = (found.folder / "page.html").read_text(encoding="utf-8")
    assert "Prompt scores" in page and "bright: brightness by brightness" in page
    with pytest.raises(UserError, match="another comparison .*evaluation .* then, .* now"):
        compare(replace(scored, evaluation={}))
    assert capsys.readouterr().out.count("images drawn") == 0, "what evaluations print is left out"


def test_a_benchmark_that_is_not_there_is_refused_before_training(config: CompareConfig) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"benchmark": "nothing"}, "benchmark must be one of t2i_compbench, .* found nothing"),
        ({"benchmark": "no.such.module"}, "the benchmark no.such.module needs no"),
        ({"evaluation": {"judges": ["nobody"]}}, "toy has no judge nobody: it has brightness"),
        ({"evaluation": {"judgs": ["nobody"]}}, "unknown option judgs; did you mean --judges"),
        ({"evaluation": {"checkpoint": "mini"}}, "checkpoint: the comparison gives it itself"),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=message):
            compare(replace(config, **{"benchmark": BENCHMARK, **changes}))
    assert not Path(config.run_dir).exists()
