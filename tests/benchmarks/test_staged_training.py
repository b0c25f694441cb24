"""The staged trainings are fair pairs: figures worked out by hand, starts that hold what they say, trainings that resume."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from benchmarks import staged_alt_text, staged_judgement, staged_trainings, staged_world
from benchmarks.staged_config import StagedTrainingConfig
from benchmarks.staged_experiments import aesthetic, initialisation
from benchmarks.staged_judgement import style_share
from benchmarks.staged_tables import figures, table
from benchmarks.staged_training import main
from benchmarks.staged_trainings import (
    ALT_TEXT,
    COPIED,
    PER_BLOCK,
    PIXEL,
    REPARAMETERISED,
    SCRATCH,
    SCRATCH_EQUAL_IMAGES,
    SCRATCH_EQUAL_OPERATIONS,
    Arm,
    fit_arguments,
    train,
    validation_losses,
    write_copied,
)
from benchmarks.staged_world import features_folder
from foundry.errors import UserError
from model.dit import DiT
from model.dit_config import DiTConfig
from model.flops import training_flops
from model.formats.checkpoint import PipelineConfig, find_checkpoint, load_checkpoint, save_checkpoint
from tests.in_this_process import commands_here
from tests.model.tiny_networks import CLASS, random_network
from tests.trainer.tiny_training import CAPTION_WIDTH, write_store
from trainer import fit
from trainer.evaluation.config import EvaluateConfig, OpenMojiConfig
from trainer.monitoring.run_folder import list_checkpoints

VALUES = {"dense": {"place, sprites": [0.5, 0.7]}, "alt_text": {"place, sprites": [0.1, 0.4]}}


def test_differences_are_taken_seed_by_seed() -> None:
    assert figures(VALUES, against="alt_text", prefix="captions") == {
        "captions_dense_place_sprites": pytest.approx(0.6),
        "captions_dense_place_sprites_spread": pytest.approx(0.02**0.5),
        "captions_dense_place_sprites_minus_alt_text": pytest.approx(0.35),
        "captions_dense_place_sprites_minus_alt_text_spread": pytest.approx(0.005**0.5),
        "captions_alt_text_place_sprites": pytest.approx(0.25),
        "captions_alt_text_place_sprites_spread": pytest.approx(0.045**0.5),
    }
    assert table(VALUES, against="alt_text", head="prompts").splitlines() == [
        "| prompts | dense | alt text | dense - alt text |",
        "|---|---|---|---|",
        "| place, sprites | 0.600 ± 0.141 | 0.250 ± 0.212 | +0.350 ± 0.071 |",
    ]


def test_what_an_arm_lacks_is_compared_with_nothing() -> None:
    values = {"short": {"loss": [0.5], "loss at the end": [0.25]}, "long": {"loss at the end": [0.125]}}
    assert table(values, against="short", head="measure").splitlines()[2:] == [
        "| loss | 0.5000 | – | – |",
        "| loss at the end | 0.2500 | 0.1250 | -0.1250 |",
    ]
    assert figures(values, against="short", prefix="x") == {
        "x_short_loss": 0.5,
        "x_short_loss_at_the_end": 0.25,
        "x_long_loss_at_the_end": 0.125,
        "x_long_loss_at_the_end_minus_short": -0.125,
    }


def test_one_seed_has_no_spread() -> None:
    single = {arm: {measure: seeds[:1] for measure, seeds in measures.items()} for arm, measures in VALUES.items()}
    assert "±" not in table(single, against="alt_text", head="prompts")
    assert not [name for name in figures(single, against="alt_text", prefix="captions") if "spread" in name]


def _recipe(tmp_path: Path) -> str:
    """Settings of a network of a few thousand parameters."""
    path = tmp_path / "recipe.yaml"
    settings = {
        "network": {"width": 48, "depth": 2, "num_heads": 2},
        "objective": {"name": "rectified_flow"},
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "compile": False,
        "data": {"caption_weights": {"dense": 0.9, "alt_text": 0.1}},
        "stages": {"pixel": {"ladder": [{"resolution": 64, "images": 5, "batch_size": 5}]}},
    }
    path.write_text(json.dumps(settings))
    return str(path)


def test_trainer_fit_takes_the_arguments_of_an_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = StagedTrainingConfig(out=str(tmp_path), recipe=_recipe(tmp_path), images=128, pixel_images=40, batch_size=16)
    arms = (PIXEL, ALT_TEXT, SCRATCH_EQUAL_OPERATIONS, SCRATCH_EQUAL_IMAGES)
    assert [arm.images(config) for arm in arms] == [48, 128, 160, 176]
    for arm in (PIXEL, ALT_TEXT):
        assert fit.run([*fit_arguments(arm, 3, config), "--print_config"]) == 0
        printed = capsys.readouterr().out
        assert "seed: 3" in printed and f"images: {arm.images(config)}" in printed and "width: 48" in printed
    assert yaml.safe_load(printed)["data"]["caption_weights"] == {"alt_text": 1.0}


def test_an_image_of_the_pixel_stage_costs_what_its_operations_say() -> None:
    config = StagedTrainingConfig()
    recipe = yaml.safe_load(Path(config.recipe).read_text(encoding="utf-8"))
    of_text = DiTConfig(**recipe["network"], in_channels=16, caption_width=192, learned_variance=False)
    of_class = replace(of_text, conditioning="class", num_classes=config.num_kinds)
    cost = training_flops(of_class, grid=(4, 4)) / training_flops(of_text, grid=(4, 4), caption_tokens=44)
    assert cost == pytest.approx(config.pixel_image_cost, abs=0.002)


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    config = StagedTrainingConfig(out=str(tmp_path / "out"), recipe=_recipe(tmp_path), experiments=())
    assert main(config) == 0
    assert main(replace(config, num_seeds=9, style="dot", shipped=(str(tmp_path / "c"), str(tmp_path / "d")))) == 0
    with pytest.raises(UserError, match="another images"):
        main(replace(config, images=64_000))


def test_a_copied_start_holds_what_fits_of_the_pixel_stage_and_nothing_else(tmp_path: Path) -> None:
    features = write_store(tmp_path / "features")
    source = random_network(replace(CLASS, learned_variance=False))
    save_checkpoint(
        tmp_path / "pixel/checkpoints/000000000064", source, PipelineConfig(objective="rectified_flow", resolution=16)
    )
    copied = write_copied(tmp_path / "pixel", tmp_path / "start", features=features, seed=5)
    network, pipeline = load_checkpoint(tmp_path / "start")
    assert network.config.conditioning == "text" and network.config.caption_width == CAPTION_WIDTH
    assert pipeline.text_encoder.fingerprint == "t"
    fresh = DiT(network.config).initialise(torch.Generator().manual_seed(5)).state_dict()
    old = source.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, old[name] if name in copied else fresh[name]), name
    assert {"x_embedder.proj.weight", "t_embedder.mlp.2.bias", "blocks.1.attn.qkv.weight", "final_layer.linear.weight"} <= {
        *copied
    }
    assert not [name for name in copied if "scale_shift" in name or "adaLN" in name or "y_embedder" in name]


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of each trainer.evaluate, in place of which the first weight of a network is the share of its objects.

    As there, what is in a folder is kept.
    """
    calls: list[list[str]] = []

    def evaluate(*arguments: str) -> str:
        calls.append([*arguments])
        given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument)
        summary = Path(given["out"]) / "summary.json"
        if not summary.exists():
            network, _ = load_checkpoint(find_checkpoint(given["checkpoint"]))
            value = network.x_embedder.proj.weight.flatten()[0].item()
            score = {"category": "all prompts", "metric": "object", "judge": "sprites", "value": value}
            summary.parent.mkdir(parents=True)
            summary.write_text(json.dumps({"scores": [score], "distances": [{"value": 29.5}]}))
        return ""

    monkeypatch.setattr(staged_judgement, "run_module", evaluate)
    return calls


def test_a_shipped_network_that_is_replaced_is_judged_again(tmp_path: Path, evaluations: list[list[str]]) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    config = StagedTrainingConfig(out=str(tmp_path / "out"), shipped=(str(before), str(after)), style="")
    for folder, seed in ((before, 1), (after, 2)):
        save_checkpoint(folder, random_network(seed=seed), PipelineConfig(objective="diffusion", resolution=16))
    outcome = aesthetic(config)
    assert "| Fréchet distance | 29.500 | 29.500 | +0.000 |" in outcome.markdown
    first = outcome.figures["aesthetic_aesthetic_object_sprites"]
    shutil.rmtree(after)
    save_checkpoint(after, random_network(seed=3), PipelineConfig(objective="diffusion", resolution=16))
    assert aesthetic(config).figures["aesthetic_aesthetic_object_sprites"] != first
    assert len(evaluations) == 4


def test_losses_stand_side_by_side_at_equal_images_and_noise_differs_by_seed(
    tmp_path: Path, evaluations: list[list[str]]
) -> None:
    config = StagedTrainingConfig(out=str(tmp_path), recipe=_recipe(tmp_path), images=64, pixel_images=40, batch_size=8)
    config = replace(config, num_seeds=2)
    for place, arm in enumerate((REPARAMETERISED, COPIED, SCRATCH, SCRATCH_EQUAL_OPERATIONS, SCRATCH_EQUAL_IMAGES)):
        for seed in range(2):
            write_trained(arm, seed, config, last_loss=place / 8 + seed)
    outcome = initialisation(config)
    _, _, _, _, *rows, objects, _ = outcome.markdown.split("\n")
    assert [row.split(" | ")[0] for row in rows] == [
        "| validation loss after 8 images",
        "| validation loss after 16 images",
        "| validation loss after 32 images",
        "| validation loss at the end",
    ]
    assert rows[0].endswith("| – | – | +0.1250 ± 0.0000 | +0.2500 ± 0.0000 | – | – |")
    assert rows[3].endswith("| 1.0000 ± 0.7071 | +0.1250 ± 0.0000 | +0.2500 ± 0.0000 | +0.3750 ± 0.0000 | +0.5000 ± 0.0000 |")
    assert objects.startswith("| object, sprites |")
    assert "initialisation_scratch_equal_images_validation_loss_at_the_end_minus_reparameterised" in outcome.figures
    noise = [next(argument for argument in call if argument.startswith("--seed=")) for call in evaluations]
    assert noise[:5] == ["--seed=0"] * 5 and len(set(noise[5:])) == 1 and noise[5] not in ("--seed=0", "--seed=1")


def write_trained(arm: Arm, seed: int, config: StagedTrainingConfig, *, last_loss: float) -> None:
    """What a training leaves behind whose loss falls by 1 from measurement to measurement."""
    images, run = arm.images(config), config.folder / "trainings" / arm.name / str(seed) / "alignment"
    pipeline = PipelineConfig(objective="diffusion", resolution=16)
    save_checkpoint(run / "checkpoints" / f"{images:012d}", random_network(), pipeline)
    places = [images * part // 8 for part in range(1, 9)]
    rows = [{"kind": "validation", "images_seen": at, "loss": last_loss + 7 - index} for index, at in enumerate(places)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.yaml").write_text("compile: false\nattention: math\n")


@pytest.fixture
def in_this_process() -> Iterator[None]:
    with commands_here(staged_judgement, staged_trainings, staged_world):
        yield


@pytest.mark.usefixtures("in_this_process")
def test_each_arm_starts_from_what_it_says_and_is_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = StagedTrainingConfig(out=str(tmp_path / "out"), recipe=_recipe(tmp_path), images=16, pixel_images=8, batch_size=2)
    for stage in ("pixel", "alignment"):
        write_store(features_folder(config), stage=stage, resolution=64, shapes=((16, 16),))
    starts = {
        REPARAMETERISED: "starts from " + str(tmp_path / "out/trainings/pixel/1/pixel/checkpoints/000000000008"),
        COPIED: "starts from " + str(tmp_path / "out/trainings/start_of_copied/1"),
        SCRATCH_EQUAL_IMAGES: "starts from nothing",
        PER_BLOCK: "starts from nothing",
    }
    runs = {arm: train(arm, 1, config) for arm in starts}
    for arm, run in runs.items():
        assert starts[arm] in (run / "log.txt").read_text(), arm.name
        assert len(validation_losses(run)) == 8 and list_checkpoints(run)[-1].name == f"{arm.images(config):012d}"
    assert capsys.readouterr().out.count("training pixel") == 1
    assert [train(arm, 1, config) for arm in starts] == list(runs.values())
    assert "training" not in capsys.readouterr().out


def test_alt_texts_ask_for_their_kind_and_nothing_else() -> None:
    settings = EvaluateConfig(
        benchmark=staged_alt_text.__name__, out="", images="", openmoji=OpenMojiConfig(num_kinds=2, single_objects=True)
    )
    benchmark = staged_alt_text.open_benchmark(settings)
    assert benchmark.true_images is not None
    texts = [prompt.text for prompt in benchmark.prompts]
    assert len(texts) == len(set(texts)) == 6
    assert max(map(len, texts)) < 20
    judge = benchmark.judges["sprites"].load()
    true = [benchmark.true_images.of(prompt) for prompt in benchmark.prompts]
    others = [benchmark.true_images.others(prompt) for prompt in benchmark.prompts]
    assert not any((one == other).all() for one, other in zip(true, others, strict=True))
    for images in (true, others):
        assert [verdict.values for verdict in judge(images, benchmark.prompts)] == [
            {"object": 1.0, "count": 1.0, "all": 1.0}
        ] * 6
    of_one_kind = [verdict.values["object"] for verdict in judge([true[0]] * 6, benchmark.prompts)]
    assert sorted(of_one_kind) == [0.0] * 3 + [1.0] * 3


def test_the_share_of_a_style_is_that_of_the_images_in_which_a_judge_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {
        "sprites": ["dotted blue background", "no known background"],
        "llava-mini": ["a red background with dots", "dotted"],
    }
    rows = [
        {"images": images, "judge": judge, "metric": metric, "seen": text if images == "generated" else "dotted"}
        for judge, texts in seen.items()
        for text in texts
        for images in ("generated", "true")
        for metric in ("object", "all")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "results.parquet")
    (tmp_path / "summary.json").write_text('{"scores": []}')
    monkeypatch.setattr(staged_judgement, "run_module", lambda *_: "")  # judged already
    config = StagedTrainingConfig(style="dot")
    assert style_share("no checkpoint", tmp_path, config) == {"dot, sprites": 0.5, "dot, llava-mini": 1.0}


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_whole_comparison_trains_judges_and_finds_its_work_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = StagedTrainingConfig(
        experiments=("initialisation",),
        out=str(tmp_path / "out"),
        recipe=_recipe(tmp_path),
        scenes=160,
        num_kinds=4,
        images=32,
        pixel_images=16,
        batch_size=4,
        num_seeds=1,
        prompts_per_category=1,
    )
    assert main(config) == 0
    first = capsys.readouterr().out
    assert sorted(_started(first)) == ["judging"] * 5 + ["training"] * 6
    found = json.loads(first.splitlines()[-1])
    arms = ("reparameterised", "copied", "scratch", "scratch_equal_operations", "scratch_equal_images")
    assert {f"initialisation_{arm}_place_sprites" for arm in arms} <= {*found}
    logs = {arm: (tmp_path / f"out/trainings/{arm}/0/alignment/log.txt").read_text() for arm in ("reparameterised", "copied")}
    assert "trainings/pixel/0/pixel/checkpoints/000000000016" in logs["reparameterised"]
    assert "start_of_copied/0" in logs["copied"]
    assert find_checkpoint(tmp_path / "out/trainings/scratch_equal_images/0/alignment/checkpoints/000000000048")
    assert main(config) == 0
    again = capsys.readouterr().out
    assert _started(again) == []
    assert {**json.loads(again.splitlines()[-1]), "this_start_s": 0} == {**found, "this_start_s": 0}


def _started(printed: str) -> list[str]:
    """What was said to begin, in order."""
    return [line.split()[0] for line in printed.splitlines() if line.startswith(("training ", "judging "))]
