"""The recipe cheap is what its table says, is chosen by name, file or folder, and trains its two stages in a row."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from model.flops import dit_flops, total
from model.formats.checkpoint import load_checkpoint
from tests.trainer.tiny_training import write_store
from trainer import compare, fit
from trainer.config.train import TrainConfig
from trainer.stages import RECIPES, STAGES, stages_of

CHEAP = RECIPES["cheap"]
TINY = {
    "device": "cpu",
    "compile": False,
    "precision": "float32",
    "network": {"width": 24, "depth": 5, "num_heads": 2, "text_adapter_blocks": 1},
    "watch": {"sample_every_images": 0, "validate_every_images": 0},
    "stages": {
        "alignment": {"ladder": [{"resolution": 16, "images": 8, "batch_size": 4}]},
        "aesthetic": {
            "ladder": [{"resolution": 16, "images": 4, "batch_size": 4}, {"resolution": 32, "images": 4, "batch_size": 4}]
        },
    },
}


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert fit.run([*arguments, "--print_config"]) == 0
    values: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return values


def _flops(train: TrainConfig) -> float:
    """Of the network alone, at the paper's latents and 120 tokens of a caption."""
    found = 0.0
    for index, rung in enumerate(train.ladder):
        config = train.network.dit_config(
            conditioning=train.conditioning,
            sample_size=rung.resolution // 8,
            in_channels=4,
            learned_variance=train.objective.learned_variance,
        )
        grid = (config.base_grid, config.base_grid)
        routed_images = train.routing.routed_images(train.ladder, index, num_tokens=config.base_grid**2)
        for images, blocks in ((routed_images, train.routing.blocks), (rung.images_seen - routed_images, None)):
            found += images * total(dit_flops(config, grid=grid, caption_tokens=120, routed=blocks)).training
    return found


def test_the_recipe_cheap_is_what_its_table_says() -> None:
    alignment, aesthetic = CHEAP["alignment"](), CHEAP["aesthetic"]()
    assert [(rung.resolution, rung.num_steps, rung.batch_size) for rung in (*alignment.ladder, *aesthetic.ladder)] == [
        (256, 200_000, 1024),
        (512, 50_000, 1024),
        (1024, 10_000, 512),
    ]
    for stage in (alignment, aesthetic):
        assert (stage.optim.name, stage.optim.muon_split, stage.objective.name) == ("muon", True, "rectified_flow")
        assert stage.network.text_adapter_blocks == 1 and stage.recipe == "cheap"
    assert (alignment.init_from, alignment.follows, aesthetic.follows) == ("scratch", None, "alignment")
    assert alignment.repa.is_on and alignment.repa.stop_share == 0.3 and not aesthetic.repa.is_on
    shifts = [
        stage.objective.settings_at(rung.resolution)["shift"] for stage in (alignment, aesthetic) for rung in stage.ladder
    ]
    assert shifts == [1.0, 2.0, 4.0]


def test_tread_is_on_at_1024_tokens_for_the_first_85_percent_and_off_at_the_last_resolution() -> None:
    aesthetic = CHEAP["aesthetic"]()
    routed = [aesthetic.routing.routed_images(aesthetic.ladder, index, num_tokens=1024 * 4**index) for index in (0, 1)]
    assert routed == [0.85 * 50_000 * 1024, 0]
    assert not CHEAP["alignment"]().routing.is_on


def test_the_recipe_cheap_takes_a_ninth_of_the_papers_operations() -> None:
    paper, cheap = (sum(_flops(stage()) for stage in stages.values()) for stages in (STAGES, CHEAP))
    assert 8.5 < paper / cheap < 9.5


def test_a_recipe_is_named_by_flag_file_or_the_folder_of_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(tmp_path / "runs")
    assert _printed(capsys, "--stage", "alignment", "--run_dir", runs)["recipe"] == "paper"
    chosen = _printed(capsys, "--stage", "alignment", "--run_dir", runs, "--recipe", "cheap", "--optim.lr", "0.5")
    assert (chosen["recipe"], chosen["optim"]["name"], chosen["optim"]["lr"]) == ("cheap", "muon", 0.5)
    assert chosen["repa"]["teacher"] == "stored" and chosen["ladder"][0]["images"] == 204_800_000
    file = tmp_path / "fit.yaml"
    file.write_text("recipe: cheap\nstage: aesthetic\n")
    assert _printed(capsys, "--config", str(file))["routing"]["kind"] == "tread"
    assert _printed(capsys, "--config", str(file), "--recipe", "paper")["routing"]["kind"] == "off"
    (tmp_path / "runs" / "alignment").mkdir(parents=True)
    (tmp_path / "runs" / "alignment" / "config.yaml").write_text("recipe: cheap\n")
    assert stages_of(["--run_dir", runs, "--stage", "aesthetic"]) is CHEAP
    assert stages_of(["--run_dir", runs]) is CHEAP and stages_of(["--run_dir", runs, "--recipe=paper"]) is STAGES


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stage", "alignment", "--recipe", "cheep"], "--recipe: expected"),
        (["--stage", "pixel", "--recipe", "cheap"], "the recipe cheap has no stage pixel, only alignment, aesthetic"),
        (["--stage", "all", "--recipe", "cheap", "--init_from", "x"], "by `stages: {alignment: {init_from: …}}`"),
        (["--stage"], "stage"),
        (["--config"], "config"),
    ],
)
def test_what_names_no_stage_is_refused_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit.run(arguments) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1


def test_a_comparison_refuses_a_recipe_whose_settings_it_would_not_take(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--features", "features", "--try", "muon", "--images", "64", "--run_dir", "nowhere"]
    assert compare.run([*arguments, "--recipe", "cheap"]) == 2
    assert "recipe must be paper, since arms start from the defaults here" in capsys.readouterr().err


def test_the_stages_of_the_recipe_cheap_in_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a teacher's features the first stage says what to type; null trains without; a resumed run keeps the recipe."""
    features, runs, file = tmp_path / "features", tmp_path / "runs", tmp_path / "fit.yaml"
    for stage, resolution in [("alignment", 16), ("aesthetic", 16), ("aesthetic", 32)]:
        write_store(features, stage=stage, resolution=resolution)
    file.write_text(yaml.safe_dump(TINY | {"features": str(features), "run_dir": str(runs)}))
    arguments = ["--stage", "all", "--recipe", "cheap", "--config", str(file)]
    assert fit.run(arguments) == 2
    said = capsys.readouterr().err
    assert "holds no features of a teacher" in said and "or give null to train without REPA" in said
    assert said.rstrip().endswith("(--repa.teacher)") and len(said.strip().splitlines()) == 1
    assert fit.run([*arguments, "--repa.teacher", "null"]) == 0
    output = capsys.readouterr().out
    assert "alignment: starts from nothing" in output and "aesthetic: starts from" in output and "pixel" not in output
    assert yaml.safe_load((runs / "aesthetic" / "config.yaml").read_text())["recipe"] == "cheap"
    _, pipeline = load_checkpoint(runs / "aesthetic" / "checkpoints" / "000000000008")
    assert (pipeline.objective, pipeline.resolution) == ("rectified_flow", 32)
    assert fit.run(["--stage", "aesthetic", "--config", str(file)]) == 0
    assert "all 8 images are seen" in capsys.readouterr().out
    assert fit.run(["--stage", "aesthetic", "--config", str(file), "--recipe", "paper"]) == 2
    assert (
        "was started with the recipe cheap, and paper is asked for: give that one, or another run_dir"
        in capsys.readouterr().err
    )
