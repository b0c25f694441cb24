"""The experiments of the recipe: arms are settings that trainer.fit takes, figures are read by name, and each can be run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from benchmarks import recipe_experiments, staged_world
from benchmarks.recipe_experiments import RecipeExperimentsConfig
from benchmarks.recipes import rewriting, structured_world
from benchmarks.recipes.comparison import figures, read_comparison, write_settings
from benchmarks.recipes.compute import mean_caption_tokens
from benchmarks.recipes.experiments import COMPACT, COMPARISONS, PROSE, QUICK, STRUCTURED, Name
from benchmarks.recipes.rewriting import compare_rewriting
from benchmarks.recipes.structured_world import make_structured_features
from benchmarks.staged_world import features_folder
from examples.openmoji.scene_files import SceneSet, write_scenes
from tests.in_this_process import commands_here
from tests.trainer.tiny_training import write_store
from trainer.comparison.arms import make_arms
from trainer.features.store import FeatureStore


def test_there_is_an_experiment_for_each_name() -> None:
    assert {*COMPARISONS, "T5"} == {*get_args(Name)}
    counts = {name: len(experiment.arms) for name, experiment in COMPARISONS.items()}
    assert counts == {"T1": 8, "T2": 4, "T3": 2, "T4": 2, "T6": 3, "T7": 17}  # besides base


@pytest.mark.parametrize(("name", "quick"), [*((name, False) for name in COMPARISONS), ("T6", True)])
def test_trainer_compare_takes_the_settings_of_each_experiment(tmp_path: Path, name: Name, quick: bool) -> None:
    """Every arm differs from base and from the others, and all that it changes is what its file says."""
    experiment = COMPARISONS[name]
    path = write_settings(experiment, tmp_path, features=tmp_path / "features", num_seeds=2, quick=quick)
    config = read_comparison(path)
    assert (config.seeds, config.run_dir) == (2, str(tmp_path / "comparison"))
    assert config.ladder[0].images == (128 if quick else 25_600)
    base, *arms = make_arms(config, config.ladder[0])
    assert [arm.name for arm in arms] == list(experiment.arms)
    for arm in arms:
        assert {changed.split(".")[0] for changed in arm.changes} <= experiment.arms[arm.name].keys()
    if name == "T6":
        assert base.config.data.caption_weights == {"structured_prose": 1.0, "compact": 0.0, "structured": 0.0}
    if name == "T7":
        assert config.equal == "images" and {arm.config.network.width for arm in arms} == {128, 256, 384}


def test_figures_are_those_over_all_timesteps_and_all_prompts() -> None:
    difference = {"mean": -0.1, "half_width": 0.05}
    arms = {
        "base": {"mean": 0.5, "difference": None},
        "muon_3e-3": {"mean": 0.4, "difference": difference},
        "muon": {"mean": 0.3, "difference": {"mean": -0.2, "half_width": None}},
    }
    shown = [
        ("loss", "all"),
        ("loss", "0-250"),
        ("score", "all prompts: object by llava-mini"),
        ("score", "size: size by sprites"),
    ]
    found = figures({"figures": [{"kind": kind, "name": name, "arms": arms} for kind, name in shown]})
    assert found["muon_3e_3_loss"] == 0.4 and found["muon_3e_3_loss_half_width"] == 0.05
    assert found["base_object_by_llava_mini"] == 0.5 and found["muon_loss_minus_base"] == -0.2
    assert not [name for name in found if "size" in name or "250" in name or name.startswith("base_loss_")]
    assert "muon_loss_half_width" not in found


def test_the_rewriter_is_compared_seed_by_seed_and_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def run(module: str, *arguments: str) -> str:
        calls.append((module, *arguments))
        if module == "trainer.evaluate":
            given = dict(word.removeprefix("--").split("=", 1) for word in arguments if "=" in word)
            seed = int(given["seed"]) / 1_000_000
            value = 0.5 + 0.1 * seed + (0.2 if "--rewrite.model" in arguments else 0.0)
            scores = [
                {"category": category, "metric": "all", "judge": "sprites", "value": value} for category in ("count", "size")
            ]
            Path(given["out"]).mkdir(parents=True)
            (Path(given["out"]) / "summary.json").write_text(json.dumps({"scores": scores}))
        return ""

    monkeypatch.setattr(rewriting, "run_module", run)
    text, found = compare_rewriting(tmp_path, checkpoint="mini", num_seeds=2, quick=True)
    assert "| count: all, sprites | 0.550 ± 0.071 | 0.750 ± 0.071 | +0.200 ± 0.000 |" in text and "size" not in text
    assert found["T5_rewritten_count_all_sprites_minus_as_written"] == pytest.approx(0.2)
    fits = [call for call in calls if call[0] == "trainer.fit_rewriter"]
    assert [call[call.index("--seed") + 1] for call in fits] == ["0", "1"]
    num_evaluations = len([call for call in calls if call[0] == "trainer.evaluate"])
    assert num_evaluations == 4
    compare_rewriting(tmp_path, checkpoint="mini", num_seeds=2, quick=True)
    assert len([call for call in calls if call[0] == "trainer.evaluate"]) == num_evaluations


@pytest.fixture
def in_this_process() -> Iterator[None]:
    with commands_here(staged_world, structured_world):
        yield


@pytest.mark.slow
def test_an_experiment_trains_tells_and_finds_its_work_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """T4 on the features of a tiny world, without the evaluators: they are those of the benchmark."""
    config = RecipeExperimentsConfig(only=("T4",), out=str(tmp_path / "out"), num_seeds=1, quick=True)
    write_store(features_folder(config), resolution=64, shapes=((16, 16),), rows=16)
    monkeypatch.setattr("benchmarks.staged_world.make_world", lambda *_, **__: None)
    monkeypatch.setattr("benchmarks.recipes.comparison.BASE_FILE", str(_without_benchmark(tmp_path)))
    without = {name: value for name, value in QUICK.items() if name != "evaluation"}
    monkeypatch.setattr("benchmarks.recipes.comparison.QUICK", without)
    assert recipe_experiments.main(config) == 0
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-1])
    assert {"T4_base_loss", "T4_adapter1_loss", "T4_adapter2_loss_minus_base"} <= found.keys()
    markdown = (tmp_path / "out" / "T4.md").read_text()
    assert markdown.startswith("### T4. Text adapter\n") and "adapter2" in markdown
    runs = sorted((tmp_path / "out" / "T4" / "comparison").rglob("metrics.jsonl"))
    assert len(runs) == 3
    changed = [path.stat().st_mtime_ns for path in runs]
    assert recipe_experiments.main(config) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert [path.stat().st_mtime_ns for path in runs] == changed


def _without_benchmark(tmp_path: Path) -> Path:
    settings = yaml.safe_load(Path("benchmarks/recipes/experiments.yaml").read_text())
    for name in ("benchmark", "evaluation"):
        settings.pop(name)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "base.yaml"


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_structured_captions_and_their_prose_are_features_of_the_same_scenes(tmp_path: Path) -> None:
    world = tmp_path / "world"
    write_scenes(SceneSet(count=60, seed=11, split="train", single_objects=True, num_kinds=4, format="tar"), world / "scenes")
    features = make_structured_features(world)
    store = FeatureStore.open(str(features / "alignment" / "64"))
    (unit, *_), *_ = store.samples("train").values()
    assert {PROSE, STRUCTURED, COMPACT} <= {*store.caption_names(unit.unit, 0)}
    assert store.info.max_caption_tokens == structured_world.MAX_TOKENS
    tokens = {name: mean_caption_tokens(store, {name: 1.0}) for name in (PROSE, STRUCTURED, COMPACT)}
    assert tokens[STRUCTURED] > 240 and abs(tokens[COMPACT] - tokens[PROSE]) < 12
