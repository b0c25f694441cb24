"""The sum of both recipes: crossings by hand, compute as the planner counts it, trainings that resume, a table of the rest."""

import json
import math
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks import cheap_recipe, staged_judgement, staged_world
from benchmarks.recipes import compute
from benchmarks.recipes.compute import mean_caption_tokens, training_flops
from benchmarks.recipes.config import CheapRecipeConfig
from benchmarks.recipes.measures import held_out_scores
from benchmarks.recipes.outcome import LOSS, METRICS, Measured, compute_to_reach, outcome, ratios, worst
from benchmarks.recipes.trainings import train_cheap, train_paper
from benchmarks.results_folder import claim
from benchmarks.staged_world import features_folder
from foundry.errors import UserError
from model.formats.checkpoint import PartConfig, load_checkpoint, read_transformer_config
from tests.in_this_process import commands_here
from tests.model.tiny_parts import save_tiny_vae
from tests.trainer.tiny_techniques import save_tiny_teacher
from tests.trainer.tiny_training import acting_after_step, tiny_config, write_store
from trainer import fit
from trainer.config.techniques import RepaConfig
from trainer.features.store import FeatureStore, SampleRequest
from trainer.features.teacher.store import TeacherInfo
from trainer.monitoring.run_folder import LOG, list_checkpoints
from trainer.planning.config import PlanConfig
from trainer.planning.estimate import plan
from trainer.planning.techniques import technique_costs


def test_a_curve_reaches_a_target_between_two_points_on_the_logarithm_of_compute() -> None:
    points = [(1.0, 0.2), (4.0, 0.6), (16.0, 0.8)]
    assert compute_to_reach(points, 0.4, falling=False) == pytest.approx(2.0)
    assert compute_to_reach(points, 0.7, falling=False) == pytest.approx(8.0)
    assert compute_to_reach(points, 0.8, falling=False) == pytest.approx(16.0)
    assert compute_to_reach(points, 0.81, falling=False) is None
    assert compute_to_reach(points, 0.1, falling=False) == 1.0
    falls = [(compute, 1 - value) for compute, value in points]
    assert compute_to_reach(falls, 0.6, falling=True) == pytest.approx(2.0)
    assert compute_to_reach(falls, 0.1, falling=True) is None


def test_a_target_counts_as_reached_where_the_curve_stays_there() -> None:
    points = [(1.0, 0.5), (4.0, 0.2), (16.0, 0.6)]
    assert compute_to_reach(points, 0.4, falling=False) == pytest.approx(8.0)
    assert compute_to_reach([*points, (64.0, 0.3)], 0.4, falling=False) is None


def _measured(flops: float, loss: float, found: float) -> Measured:
    scores = {
        f"{metric}, {judge}": found + more for metric in METRICS for judge, more in (("sprites", 0.0), ("llava-mini", 0.1))
    }
    return Measured(flops=flops, measures={LOSS: loss, **scores})


PAPER = [_measured(100, 0.30, 0.7), _measured(100, 0.20, 0.9)]
CURVES = [[_measured(10, 0.4, 0.6), _measured(40, 0.2, 0.8)], [_measured(10, 0.4, 0.6), _measured(40, 0.1, 1.0)]]


def test_the_headline_is_the_worst_ratio_of_means_over_seeds() -> None:
    found = ratios(PAPER, CURVES, falling=(LOSS,))
    assert found[LOSS] == pytest.approx(0.1 * 4 ** (0.15 / 0.25))
    assert found["object, sprites"] == pytest.approx(0.1 * 4 ** (0.2 / 0.3))
    assert worst(found) == max(value for value in found.values() if value is not None)
    assert worst({**found, "all, sprites": None}) is None


def test_the_table_and_the_figures_say_what_was_found() -> None:
    markdown, figures = outcome(PAPER, CURVES)
    assert figures["compute_ratio"] == pytest.approx(0.252, abs=0.001) and figures["seeds"] == 2
    expected = {"loss_paper": 0.25, "loss_cheap": 0.15, "object_paper": 0.85, "object_cheap": 0.95}
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["object_sprites_paper"] == pytest.approx(0.8) and figures["flops_cheap"] == 40
    rows = markdown.splitlines()
    assert rows[0].startswith("| measure | paper | cheap at 0.10 of its compute | cheap at 0.40 of its compute |")
    assert rows[2].startswith("| denoising loss | 0.2500 ± 0.0707 | 0.4000 ± 0.0000 |") and "| 0.230 |" in rows[2]
    short = [[points[0]] for points in CURVES]
    markdown, figures = outcome(PAPER, short)
    assert figures["compute_ratio"] is None and "| not reached | not reached, not reached |" in markdown


def test_scores_are_of_generated_images_of_held_out_prompts(tmp_path: Path) -> None:
    rows = [
        {"images": images, "held_out": held_out, "metric": metric, "judge": "sprites", "value": value}
        for images, held_out, metric, value in [
            ("generated", True, "object", 1.0),
            ("generated", True, "object", 0.0),
            ("generated", False, "object", 1.0),
            ("true", True, "object", 1.0),
            ("generated", True, "all", 0.0),
            ("generated", True, "place", 1.0),
        ]
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "results.parquet")
    assert held_out_scores(tmp_path) == {"object, sprites": 0.5, "all, sprites": 0.0}


TINY = {"network": {"width": 48, "depth": 5, "num_heads": 2}, "optim": {"lr": 1e-3, "warmup_steps": 2}, "compile": False}


def _config(tmp_path: Path, **settings: object) -> CheapRecipeConfig:
    """Networks of some ten thousand parameters."""
    for recipe in ("paper", "cheap"):
        own = {"repa": {"teacher": None}} if recipe == "cheap" else {}
        (tmp_path / f"{recipe}.yaml").write_text(yaml.safe_dump(TINY | {"recipe": recipe, "device": "cpu"} | own))
    chosen = {
        "out": str(tmp_path / "out"),
        "paper": str(tmp_path / "paper.yaml"),
        "cheap": str(tmp_path / "cheap.yaml"),
        "pixel_images": 8,
        "images": 32,
        "points": 2,
        "batch_size": 4,
        "num_seeds": 1,
        "prompts_per_category": 1,
    }
    return CheapRecipeConfig(**{**chosen, **settings})  # type: ignore[arg-type]


@pytest.fixture
def in_this_process() -> Iterator[None]:
    with commands_here(staged_judgement, staged_world):
        yield


def test_both_recipes_are_trained_to_whole_trainings_and_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _config(tmp_path)
    for stage in ("pixel", "alignment", "aesthetic"):
        write_store(features_folder(config), stage=stage, resolution=64, shapes=((16, 16),))
    paper, cheap = train_paper(1, config), train_cheap(1, config)
    assert list(paper.runs.values()) == [8, 32, 8]
    assert [list(point.runs.values()) for point in cheap] == [[16, 4], [32, 8]]
    runs = config.folder / "trainings" / "cheap" / "1"
    assert [path.name for path in list_checkpoints(runs / "alignment")] == ["000000000016", "000000000032"]
    assert f"starts from {runs}/alignment/checkpoints/000000000016" in (runs / "16" / "aesthetic" / "log.txt").read_text()
    _, pipeline = load_checkpoint(cheap[0].checkpoint)
    network, of_paper = load_checkpoint(paper.checkpoint)
    assert (pipeline.objective, of_paper.objective) == (
        "rectified_flow",
        "diffusion",
    ) and network.config.text_adapter_blocks == 0
    assert capsys.readouterr().out.count("training ") == 6
    assert (train_paper(1, config), train_cheap(1, config)) == (paper, cheap)
    assert "training" not in capsys.readouterr().out
    _check_compute(paper.runs, cheap[0].runs, cheap[1].runs)


def _check_compute(paper: Mapping[Path, int], half: Mapping[Path, int], whole: Mapping[Path, int]) -> None:
    """Of the tiny trainings: the planner's sum at the end, half of it in the middle, and Muon's steps in it."""
    store = FeatureStore.open(str(next(iter(whole)).parents[3] / "world" / "features" / "alignment" / "64"))
    tokens = mean_caption_tokens(store, {})
    captions = store.read(_all_captions(store)).captions
    assert captions is not None and tokens == pytest.approx(float(captions.lengths.float().mean()))
    alignment = next(iter(whole))
    config = PlanConfig(
        fit_config=str(alignment / "config.yaml"),
        num_gpus=1,
        caption_tokens=tokens,
        caption_width=store.info.caption_width,
        downsampling=store.info.downsampling,
    )
    (rung,) = plan(config)
    assert rung.optimizer_flops > 0
    assert training_flops({alignment: 32}) == pytest.approx(rung.flops)
    assert training_flops({alignment: 16}) == pytest.approx(rung.flops / 2)
    assert training_flops(half) < training_flops(whole) and training_flops(paper) > 0


def _all_captions(store: FeatureStore) -> list[SampleRequest]:
    units = [unit for units in store.samples("train").values() for unit in units]
    return [
        SampleRequest(unit=unit.unit, row=row, caption=caption)
        for unit in units
        for row in range(unit.rows)
        for caption in (0, 1)
    ]


def test_what_a_teacher_saw_before_is_counted_once_for_each_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 12 samples: what the planner counts for an image in training by a teacher, less what it counts for stored features."""
    save_tiny_vae(tmp_path / "vae")
    save_tiny_teacher(tmp_path / "teacher")
    write_store(tmp_path / "features", vae=PartConfig(name=str(tmp_path / "vae"), fingerprint="v"))
    config = tiny_config(tmp_path, images=8)
    assert fit.main(config) == 0
    run = Path(config.run_folder)
    plain = training_flops({run: 8})
    where = str(tmp_path / "teacher")
    seen = TeacherInfo(name=where, revision=None, fingerprint="f", width=16, patch_px=4, features="x")
    monkeypatch.setattr("benchmarks.recipes.compute.read_teacher_info", lambda _: seen)
    costs = {}
    for teacher in ("stored", seen.name):
        settings = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(
            yaml.safe_dump(settings | {"repa": {"teacher": teacher}, "vae": str(tmp_path / "vae")})
        )
        compute._stage_flops.cache_clear()
        costs[teacher] = training_flops({run: 8})
    network = read_transformer_config(list_checkpoints(run)[-1])
    stored = replace(config, repa=RepaConfig(teacher="stored"))
    (cost,) = technique_costs(stored, config.ladder[0], network, stored_width=16)
    once = (costs[seen.name] - plain) / 8 - cost.flops_per_image
    assert once > 0 and costs["stored"] == pytest.approx(plain + 8 * cost.flops_per_image + 12 * once)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images must be a multiple of 2 batches of 4"):
        _config(tmp_path, images=36)
    with pytest.raises(ValueError, match="num_seeds must be 1 or more"):
        _config(tmp_path, num_seeds=0)
    config = _config(tmp_path)
    claim(config.folder, config.identity())
    claim(config.folder, replace(config, num_seeds=9).identity())
    with pytest.raises(UserError, match="was started with another images"):
        claim(config.folder, replace(config, images=64).identity())


def test_a_training_that_is_stopped_stops_the_sum_and_resumes(tmp_path: Path) -> None:
    config = _config(tmp_path)
    for stage in ("pixel", "alignment", "aesthetic"):
        write_store(features_folder(config), stage=stage, resolution=64, shapes=((16, 16),))
    run = config.folder / "trainings" / "paper" / "0" / "alignment"
    with acting_after_step(run, 3, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(KeyboardInterrupt):
        train_paper(0, config)
    trained = train_paper(0, config)
    assert trained.checkpoint.is_dir()
    log = (run / LOG).read_text()
    assert "alignment: stopped" in log and "alignment: resumes" in log
    with pytest.raises(UserError, match="ended with exit code 2"):
        train_paper(0, replace(config, out=str(tmp_path / "without features")))


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_the_whole_sum_ends_in_its_figures_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _config(tmp_path, scenes=160, num_kinds=4)
    assert cheap_recipe.main(config) == 0
    first = capsys.readouterr().out
    found = json.loads(first.splitlines()[-1])
    keys = {"compute_ratio", "loss_paper", "loss_cheap", "object_paper", "object_cheap", "all_paper", "all_cheap", "seeds"}
    assert keys <= found.keys() and math.isfinite(found["loss_paper"])
    assert (config.folder / "cheap_recipe.md").read_text() in first
    assert first.count("training ") == 6 and first.count("judging ") == 3
    assert cheap_recipe.main(config) == 0
    again = capsys.readouterr().out
    assert json.loads(again.splitlines()[-1]) == found and "training " not in again and "judging " not in again
