"""A plan agrees with the paper's Table 4, with the stages, with the stores, and refuses what training would refuse."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry.command_line import run_command
from foundry.errors import UserError
from tests.trainer.tiny_training import write_store
from trainer.config.train import StageName
from trainer.monitoring.gpus import GPUS, PAPER_A100_PRICE
from trainer.plan import main
from trainer.planning.config import DatasetSize, PlanConfig
from trainer.planning.estimate import plan, stage_configs
from trainer.planning.paper import (
    PAPER_A100_DAYS,
    PAPER_DOLLARS,
    PAPER_ROWS,
    paper_a100_days,
    paper_dollars_per_a100_hour,
)

SMALL = {"ladder": [{"resolution": 64, "images": 6400, "batch_size": 64}], "network": {"width": 48, "depth": 2, "num_heads": 4}}


def _small(tmp_path: Path, **settings: object) -> Path:
    """Settings of a fit that is planned in no time."""
    path = tmp_path / "fit.yaml"
    path.write_text(json.dumps(SMALL | settings))  # JSON is YAML
    return path


def _config(tmp_path: Path, *, stage: StageName = "alignment", num_gpus: int = 4) -> PlanConfig:
    return PlanConfig(stage=stage, num_gpus=num_gpus, fit_config=str(_small(tmp_path)))


def test_the_stages_see_the_images_of_the_papers_table() -> None:
    rungs = [(train.stage, rung) for train in stage_configs(PlanConfig()) for rung in train.ladder]
    table = [(row.stage, row.resolution, row.images_seen, row.batch_size, row.num_steps) for row in PAPER_ROWS]
    assert [(stage, rung.resolution, rung.images_seen, rung.batch_size, rung.num_steps) for stage, rung in rungs] == table
    assert [round(row.images_seen / 1e6, 1) for row in PAPER_ROWS] == [307.2, 1708.8, 1025.3, 256.0, 6.1]


def test_the_papers_sum_follows_from_its_rows_and_factors() -> None:
    assert sum(row.v100_days for row in PAPER_ROWS) == 1656
    assert round(paper_a100_days()) == PAPER_A100_DAYS
    assert round(paper_dollars_per_a100_hour(), 2) == PAPER_A100_PRICE
    assert paper_a100_days() * 24 * PAPER_A100_PRICE == pytest.approx(PAPER_DOLLARS, rel=0.002)


def test_the_papers_rows_imply_a_utilisation_that_a_v100_can_have() -> None:
    used = {(row.stage, row.resolution): row.utilisation for row in PAPER_ROWS}
    assert all(0.15 < share < 0.35 for (_, resolution), share in used.items() if resolution < 1024)
    assert used["aesthetic", 1024] == pytest.approx(0.069, abs=0.001)  # 16K steps of 384 took as long as twice the work


def test_at_the_utilisation_of_a_row_the_plan_gives_the_papers_days(monkeypatch: pytest.MonkeyPatch) -> None:
    # The memory of XL takes its time.
    monkeypatch.setattr("trainer.planning.estimate._memory_plans", lambda *_args, **_settings: ())
    row = next(row for row in PAPER_ROWS if row.stage == "alignment")
    (rung,) = plan(PlanConfig(stage="alignment", gpu="v100", utilisation=row.utilisation))
    assert rung.gpu_days == pytest.approx(row.v100_days)
    assert rung.cost == pytest.approx(24 * row.v100_days * (GPUS["v100"].price or 0))


def test_days_and_money_scale_as_they_should(tmp_path: Path) -> None:
    config = _config(tmp_path)
    (once,) = plan(config)
    (half,) = plan(dataclasses.replace(config, utilisation=config.utilisation / 2, price=1.0))
    assert half.gpu_days == pytest.approx(2 * once.gpu_days)
    assert half.cost == pytest.approx(24 * half.gpu_days)
    (again,) = plan(dataclasses.replace(config, gradient_checkpointing=True))
    assert 1 < again.gpu_days / once.gpu_days < 4 / 3
    (unpriced,) = plan(dataclasses.replace(config, gpu="mi300x"))
    assert unpriced.cost is None


def test_an_adapter_and_routing_cost_what_they_compute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"width": 48, "depth": 5, "num_heads": 4}

    def planned(**settings: object) -> PlanConfig:
        path = _small(tmp_path, **{"network": sizes, **settings})
        return PlanConfig(stage="alignment", num_gpus=4, fit_config=str(path), caption_width=32)

    (deep,), (adapted,) = (plan(planned(network=sizes | more)) for more in ({}, {"text_adapter_blocks": 2}))
    assert deep.flops_per_image < adapted.flops_per_image < 3 * deep.flops_per_image
    few, many = deep.memory_as_set.memory, adapted.memory_as_set.memory
    assert many.weights > few.weights and many.activations_per_image > few.activations_per_image
    routed = planned(routing={"kind": "tread", "min_tokens": 1})
    (found,) = plan(routed)
    assert found.flops_per_image < deep.flops_per_image and found.routed == 0.85
    assert found.memory == deep.memory  # that of the last steps, without routing
    assert main(routed) == 0
    told = capsys.readouterr().out
    assert "alignment 64 px: 85% of the images with token routing" in told
    assert "warning: alignment 64 px: tread at 16 tokens an image does not pay: leave routing.min_tokens at 1024" in told
    usual = planned(routing={"kind": "tread"})
    assert plan(usual)[0].flops_per_image == deep.flops_per_image
    assert main(usual) == 0
    assert "alignment 64 px: no token routing at 16 tokens an image, where it does not pay" in capsys.readouterr().out
    with pytest.raises(UserError, match="found a depth of 2"):
        plan(planned(network=sizes | {"depth": 2}, routing={"kind": "tread"}))


def test_disk_is_what_a_store_writes(tmp_path: Path) -> None:
    config = dataclasses.replace(_config(tmp_path), num_images=1000, caption_tokens=80, caption_variants=2)
    disk = plan(config)[0].disk
    assert disk.captions_bf16 == 1000 * 2 * (80 * 4096 * 2 + 64)
    assert disk.captions_int8 == 1000 * 2 * (80 * (4096 + 4) + 64)
    assert 1000 * 2 * 2 * 4 * 8 * 8 < disk.latents < 1000 * (2 * 2 * 4 * 8 * 8 + 200)
    assert 0 < disk.texts < disk.captions_int8 / 100
    classes = plan(dataclasses.replace(config, stage="pixel"))[0].disk
    assert classes.captions_bf16 == classes.texts == 0


def test_what_is_read_is_what_is_stored_at_the_speed_of_training(tmp_path: Path) -> None:
    config = dataclasses.replace(_config(tmp_path), num_images=1000, caption_tokens=80)
    (rung,) = plan(config)
    seconds = rung.gpu_days * 86_400 / config.num_gpus
    assert rung.images_per_s * seconds == pytest.approx(rung.images_seen)
    images = rung.images_per_s / 1000  # of the data set, a second
    assert rung.reading.bf16 == pytest.approx(images * (rung.disk.latents + rung.disk.captions_bf16))
    assert rung.reading.int8 == pytest.approx(images * (rung.disk.latents + rung.disk.captions_int8))
    (twice,) = plan(dataclasses.replace(config, caption_variants=2))
    assert twice.reading == rung.reading  # one caption is read, however many there are
    (classes,) = plan(dataclasses.replace(config, stage="pixel"))
    assert classes.reading.bf16 == classes.reading.online


def test_the_settings_of_a_fit_are_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _small(tmp_path, device_tokens=64)
    config = PlanConfig(stage="alignment", num_gpus=4, fit_config=str(path), num_images=1600, json=True)
    assert main(config) == 0
    (rung,) = json.loads(capsys.readouterr().out)["rungs"]
    assert (rung["resolution"], rung["images_seen"], rung["num_steps"], rung["patches"]) == (64, 6400, 100, 16)
    assert (rung["passes"], rung["dataset"]) == (4.0, {"num_images": 1600, "source": "--num_images", "weighed": None})
    assert {part["num_images"] for part in rung["memory"]} == {4}  # 64 tokens: 4 images, not a quarter of 64
    path.write_text("batch: 3")
    with pytest.raises(UserError, match=r"would not start"):
        plan(config)


def test_a_file_says_which_stage_it_is_for_and_can_have_sections_for_stages(tmp_path: Path) -> None:
    config = PlanConfig(num_gpus=4, fit_config=str(_small(tmp_path, stage="alignment")))
    assert [train.stage for train in stage_configs(config)] == ["alignment"]
    assert [train.stage for train in stage_configs(dataclasses.replace(config, stage="pixel"))] == ["pixel"]
    sections = {"pixel": {"ladder": [{"resolution": 64, "images": 128, "batch_size": 32}]}}
    every = stage_configs(PlanConfig(fit_config=str(_small(tmp_path, stages=sections))))
    assert [(train.stage, train.images) for train in every] == [("pixel", 128), ("alignment", 6400), ("aesthetic", 6400)]


def test_passes_are_of_the_images_given_else_of_the_features_else_of_the_papers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PlanConfig(
        stage="alignment", num_gpus=4, fit_config=str(_small(tmp_path, features=str(tmp_path / "features"))), num_images=800
    )
    assert (plan(config)[0].passes, plan(config)[0].dataset.source) == (8.0, "--num_images")
    uncounted = dataclasses.replace(config, num_images=None)
    assert (plan(uncounted)[0].passes, plan(uncounted)[0].dataset.source) == (0.00064, "as in the paper")
    folder = write_store(tmp_path / "features", resolution=64)
    assert (plan(uncounted)[0].passes, plan(uncounted)[0].dataset.source) == (6400 / 12, str(folder))
    assert main(uncounted) == 0
    output = capsys.readouterr().out
    assert f"passes: how often each image is seen. Data sets: alignment 12 images ({folder})" in output
    assert "each image is seen 533 times in alignment" in output
    assert output.splitlines()[-1].startswith("warning: alignment sees each of its 12 images 533 times: ")


def test_the_way_of_the_settings_is_marked_and_counted(tmp_path: Path) -> None:
    (plain,) = plan(_config(tmp_path))
    assert [part.as_set for part in plain.memory] == [True, False, False, False]
    path = _small(tmp_path, gradient_checkpointing=True, distributed={"sharding": "fsdp"})
    config = PlanConfig(stage="alignment", num_gpus=4, fit_config=str(path))
    (chosen,) = plan(config)
    assert [part.as_set for part in chosen.memory] == [False, False, False, True]
    assert chosen.memory_as_set == chosen.memory[-1] and chosen.gpu_days > plain.gpu_days
    (alone,) = plan(dataclasses.replace(config, num_gpus=1))  # one GPU shares with nobody, whatever the settings say
    assert [(part.sharding, part.as_set) for part in alone.memory] == [("ddp", False), ("ddp", True)]


def test_every_stage_fits_an_80_gb_gpu_as_it_is() -> None:
    rungs = plan(PlanConfig(num_gpus=1, gpu="h100"))
    kept = [(one, part) for one in rungs for part in one.memory if not part.gradient_checkpointing]
    needed = {(one.stage, one.resolution): part.memory.total(part.num_images) for one, part in kept}
    assert len(needed) == len(PAPER_ROWS)
    assert max(needed.values()) < GPUS["h100"].memory_bytes, needed


def test_a_batch_that_the_gpus_cannot_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="24 GPUs do not share the batches of 64 evenly: try 16"):
        plan(_config(tmp_path, num_gpus=24))


def test_sizes_that_make_no_network_are_refused(tmp_path: Path) -> None:
    config = PlanConfig(stage="pixel", fit_config=str(_small(tmp_path, network={"width": 50, "num_heads": 4})))
    with pytest.raises(UserError, match=r"fit\.yaml: pixel at 64 px: .*width"):
        plan(config)


def test_the_table_shows_what_fits_and_what_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(_config(tmp_path, num_gpus=1), caption_width=32)
    keeps, recomputes = (part.memory.total(part.num_images) for part in plan(config)[0].memory)
    between = str((keeps + recomputes) / 2e9)
    arguments = ["--stage", "alignment", "--num_gpus", "1", "--fit_config", str(config.fit_config), "--memory_gb", between]
    arguments += ["--caption_width", "32"]
    assert run_command(PlanConfig, main, prog="plan", example="plan", argv=arguments) == 0
    table = capsys.readouterr().out
    marks = ["!" in line for line in table.splitlines() if " ddp" in line]
    assert marks == [True, False]
    assert "fsdp  " not in table.split("recompute:")[0]  # one GPU shares with nobody
    assert "1656 V100-days / 2.2 = 753 A100-days" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h1000"], "gpu: expected one of v100"),
        (["--utilisation", "1.5"], "utilisation: expected more than 0 and at most 1"),
        (["--num_gpus", "0"], "num_gpus: expected a positive number"),
        (["--price", "-1"], "price: expected a positive number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(PlanConfig, main, prog="plan", example="plan", argv=arguments) == 2
    assert message in capsys.readouterr().err


def test_disk_follows_the_latents_and_the_captions() -> None:
    """AutoencoderDC at 512 px: 16 x 16 means of 32 channels, no log-variance; 300 tokens of Qwen3-0.6B."""
    settings = {"latent_channels": 32, "downsampling": 32, "caption_tokens": 300, "caption_width": 1024, "num_images": 1000}
    deterministic, with_variance = (
        plan(PlanConfig(stage="aesthetic", latent_variance=variance, **settings))  # type: ignore[arg-type]
        for variance in (False, True)
    )
    rung, other = (next(one for one in rungs if one.resolution == 512) for rungs in (deterministic, with_variance))
    assert rung.patches == 256  # patches of one latent
    assert rung.disk.latents == 1000 * (2 * 32 * 16 * 16 + 100) and other.disk.latents == 1000 * (4 * 32 * 16 * 16 + 100)
    assert deterministic[0].disk.captions_bf16 == 1000 * (2 * 300 * 1024 + 64)


def test_passes_are_those_of_training_with_weights_and_a_skip_list(tmp_path: Path) -> None:
    """12 samples; one is left out, one weighs 3, one nothing: a pass has 12 images."""
    write_store(tmp_path / "features", resolution=64, num_units=4, rows=6)
    skip, weights = tmp_path / "skip.txt", tmp_path / "weights.parquet"
    skip.write_text("u0r0\n")
    pq.write_table(pa.table({"key": ["u0r1", "u0r2"], "weight": [3.0, 0.0]}), weights)
    places = {"features": str(tmp_path / "features"), "run_dir": str(tmp_path / "runs")}

    def found(**data: str) -> DatasetSize:
        config = PlanConfig(stage="alignment", num_gpus=4, fit_config=str(_small(tmp_path, **places, data=data)))
        (rung,) = plan(config)
        assert rung.passes == pytest.approx(rung.images_seen / rung.dataset.images_per_pass)
        return rung.dataset

    assert (found().num_images, found().images_per_pass) == (12, 12)
    assert (found(skip=str(skip)).num_images, found(skip=str(skip)).images_per_pass) == (12, 11)
    assert found(weights=str(weights)).images_per_pass == 13
    assert found(weights=str(weights), skip=str(skip)).images_per_pass == 12
    pq.write_table(pa.table({"key": [f"u{unit}r{row}" for unit in (0, 1) for row in range(6)], "weight": [0.0] * 12}), weights)
    with pytest.raises(UserError, match="data.skip and data.weights leave no training sample of"):
        found(weights=str(weights))


def test_a_plan_reads_the_answer_that_a_training_was_given(tmp_path: Path) -> None:
    """The data set is gone: the answer in the run's folder is read, and another question is refused."""
    write_store(tmp_path / "features", resolution=64, source=str(tmp_path / "dataset"))
    run = tmp_path / "runs" / "alignment"
    run.mkdir(parents=True)
    asked = {"sql": "SELECT key FROM samples", "dataset": str(tmp_path / "dataset")}
    pq.write_table(pa.table({"key": ["u0r0", "u0r1"]}).replace_schema_metadata(asked), run / "skip.parquet")
    places = {"features": str(tmp_path / "features"), "run_dir": str(tmp_path / "runs")}

    def images_per_pass(sql: str) -> float:
        fit = str(_small(tmp_path, **places, data={"skip": sql}))
        return plan(PlanConfig(stage="alignment", num_gpus=4, fit_config=fit))[0].dataset.images_per_pass

    assert images_per_pass(asked["sql"]) == 10
    with pytest.raises(UserError, match=r"for the SQL of data\.skip"):
        images_per_pass("SELECT key FROM captions")


def test_recipes_have_plans_of_their_own(tmp_path: Path) -> None:
    stages = {train.stage: train for train in stage_configs(PlanConfig(recipe="cheap"))}
    assert list(stages) == ["alignment", "aesthetic"] and {train.recipe for train in stages.values()} == {"cheap"}
    with pytest.raises(UserError, match="the recipe cheap has no stage pixel, only alignment, aesthetic"):
        stage_configs(PlanConfig(recipe="cheap", stage="pixel"))
    file = str(_small(tmp_path, recipe="cheap", features=str(tmp_path), run_dir=str(tmp_path)))
    assert {train.recipe for train in stage_configs(PlanConfig(fit_config=file))} == {"cheap"}
    assert [train.stage for train in stage_configs(PlanConfig(fit_config=file, recipe="paper"))] == [
        "pixel",
        "alignment",
        "aesthetic",
    ]


def test_copies_of_shards_are_planned_by_the_gpus_of_a_group(tmp_path: Path) -> None:
    path = _small(tmp_path, distributed={"sharding": "hsdp", "shard_workers": 2})
    (rung,) = plan(PlanConfig(stage="alignment", num_gpus=4, fit_config=str(path)))
    weights = {one.sharding: one.memory.weights for one in rung.memory}
    assert weights["ddp"] == 2 * weights["hsdp"] == 4 * weights["fsdp"]
    assert rung.memory_as_set.sharding == "hsdp" and rung.memory_as_set.num_shards == 2
