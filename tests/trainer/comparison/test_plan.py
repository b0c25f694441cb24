"""Arms begin alike, see the images that equal compute gives them, and are refused before anything is trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foundry.errors import UserError
from tests.trainer.comparison.tiny_comparison import tiny_comparison
from tests.trainer.tiny_techniques import write_features
from tests.trainer.tiny_training import write_store
from trainer.comparison.arms import make_arms
from trainer.comparison.config import CompareConfig
from trainer.comparison.plan import OpenedArm, find_rung, most_steps, open_arms, plan_images
from trainer.comparison.trainings import usual_step_s
from trainer.config.data import DataConfig
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig
from trainer.config.techniques import RepaConfig

NAMES = ("muon", "sra2", "adapter1", "layersync", "qk_norm", "flow")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features")
    write_store(root)
    return root


@pytest.fixture(scope="module")
def opened(features: Path) -> list[OpenedArm]:
    return _opened(tiny_comparison(features, features / "runs", *NAMES))


def _opened(config: CompareConfig) -> list[OpenedArm]:
    return open_arms(make_arms(config, find_rung(config)), num_workers=config.num_workers)


def test_arms_begin_with_the_same_weights_as_far_as_shapes_agree(opened: list[OpenedArm], features: Path) -> None:
    shares = {one.arm.name: one.same_start for one in opened}
    assert [shares[name] for name in ("base", *NAMES[:-1])] == [1.0] * 6
    assert 0.9 < shares["flow"] < 1, "its final layer predicts no variance"
    parameters = {one.arm.name: one.num_parameters for one in opened}
    assert parameters["muon"] == parameters["base"] < min(parameters["sra2"], parameters["adapter1"])
    config = tiny_comparison(features, features / "runs", "muon", network=NetworkConfig(width=12, depth=2, num_heads=2))
    (features / "wide.yaml").write_text("network: {width: 24}")
    wide = _opened(replace(config, arms=(str(features / "wide.yaml"),)))[1]
    assert wide.same_start < 0.2


def test_arms_have_the_operations_of_base(opened: list[OpenedArm], features: Path) -> None:
    whole = opened[0].work(4000).flops()
    plans = plan_images(tiny_comparison(features, features / "runs", *NAMES, flops=whole), opened, kept={}, step_s={})
    images = {plan.arm.name: plan.images for plan in plans}
    assert images["base"] == images["layersync"] == images["qk_norm"] == 4000
    assert images["muon"] < images["sra2"] < 4000 and images["adapter1"] < 4000 < images["flow"]
    for plan in plans:
        work, size = plan.opened.work(plan.images), plan.opened.batch_size
        step = work.flops() / (plan.images / size)
        assert plan.images % size == 0 and abs(work.flops() - whole) <= step / 2 * 1.001, plan.arm.name


def test_budgets_are_in_operations_in_images_or_in_minutes(opened: list[OpenedArm], features: Path) -> None:
    config = tiny_comparison(features, features / "runs", *NAMES, ladder=(Rung(resolution=16, images=40, batch_size=4),))
    step_s = {one.arm.name: 0.1 * (2 if one.arm.name == "muon" else 1) for one in opened}

    def images(**changes: Any) -> dict[str, int]:
        plans = plan_images(replace(config, **changes), opened, kept={}, step_s=step_s)
        return {plan.arm.name: plan.images for plan in plans}

    per_step = opened[0].work(4).flops()
    assert images(flops=100.5 * per_step)["base"] == 400
    assert set(images(flops=100.5 * per_step, equal="images").values()) == {400}
    assert images()["base"] == 40, "the ladder's"
    seconds = images(budget=1.0, equal="seconds")
    assert (seconds["base"], seconds["muon"], seconds["sra2"]) == (2400, 1200, 2400)
    assert plan_images(config, opened, kept={"muon": 16}, step_s={})[1].images == 16, "what the folder has, it keeps"


def test_a_teacher_that_sees_decoded_latents_is_counted_with_its_autoencoder(tmp_path: Path) -> None:
    write_features(tmp_path)
    config = tiny_comparison(tmp_path / "features", tmp_path / "runs", "repa", "repa_stop", teacher=str(tmp_path / "teacher"))
    base, repa, stopped = _opened(config)
    (cost,) = repa.work(40).techniques
    image = base.work(40).image
    assert cost.flops_per_image > 2 * image, "the decoder"
    assert repa.work(40).flops() == pytest.approx(base.work(40).flops() + 40 * cost.flops_per_image)
    assert repa.num_parameters == stopped.num_parameters > base.num_parameters and repa.same_start == 1
    whole = base.work(4000).flops()
    plans = plan_images(replace(config, flops=whole), [base, repa, stopped], kept={}, step_s={})
    shares = [1 + cost.flops_per_image * share / image for share in (0, 1, 0.3)]
    assert [plan.images for plan in plans] == pytest.approx([4000 / share for share in shares], abs=4)


def test_a_budget_too_small_for_its_validations_is_refused(opened: list[OpenedArm], features: Path) -> None:
    config = tiny_comparison(features, features / "runs", *NAMES, validations=8)
    with pytest.raises(
        UserError, match=r"base would train for 7 steps of 4 images, and be validated 8 times: give more compute"
    ):
        plan_images(replace(config, num_images=28, ladder=()), opened, kept={"base": 28}, step_s={})


def test_the_most_steps_are_found_where_a_technique_stops_on_the_way() -> None:
    def flops(steps: int) -> float:
        return 10.0 * min(steps, 5) + 1.0 * max(0, steps - 5)

    assert [most_steps(limit, flops) for limit in (9, 10, 49, 50, 50.9, 51, 1050)] == [0, 1, 4, 5, 5, 6, 1005]


def test_captions_are_counted_as_training_draws_them(features: Path) -> None:
    texts = tiny_comparison(features, features / "runs", "muon", data=DataConfig(loader_threads=1, caption_dropout=0.0))
    dropped = replace(texts, data=DataConfig(loader_threads=1, caption_dropout=0.99))
    counts = [_opened(config)[0].caption_tokens for config in (texts, dropped)]
    assert counts[0] > 3 > counts[1] >= 2, "the null caption has two tokens"


def test_resolutions_are_found_and_named_where_there_are_several(features: Path, tmp_path: Path) -> None:
    config = replace(tiny_comparison(features, features / "runs", "muon", num_images=640), ladder=())
    assert find_rung(config) == Rung(resolution=16, images=640, batch_size=64)
    for resolution in (16, 32):
        write_store(tmp_path, resolution=resolution, num_units=3, rows=1)
    with pytest.raises(UserError, match=r"holds features of 16, 32 px: give one as `\[\{resolution: 16"):
        find_rung(replace(config, features=str(tmp_path)))
    with pytest.raises(UserError, match="aesthetic holds no features: make them with trainer.precompute"):
        find_rung(replace(config, stage="aesthetic"))


def test_what_an_arm_lacks_is_said_before_anything_is_trained(features: Path) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("repa", {}, "repa: .*teacher.*"),
        ("repa", {"teacher": "nowhere/at/all"}, "repa: there is no vision tower in nowhere/at/all"),
        ("tread", {"network": NetworkConfig(width=24, depth=5, num_heads=2)}, "tread: no token would be routed at 16 tokens"),
        ("dispersive", {}, "dispersive: a group of 64 samples does not divide the 4"),
        ("muon", {"network": NetworkConfig(width=25, depth=2, num_heads=2)}, "base: .*"),
        ("muon", {"repa": RepaConfig(teacher="stored")}, "base: .*teacher"),
    ]
    for name, changes, message in cases:
        with pytest.raises(UserError, match=message):
            _opened(tiny_comparison(features, features / "runs", name, **changes))
    assert not (features / "runs").exists()


def test_features_without_a_validation_split_are_refused(features: Path, tmp_path: Path) -> None:
    write_store(tmp_path, num_units=4)
    for path in tmp_path.rglob("commits/*.json"):
        if int(path.stem) >= 2:  # those of the split
            path.unlink()
    with pytest.raises(UserError, match="base: .* has no validation split, and arms are compared by its loss"):
        _opened(tiny_comparison(tmp_path, tmp_path / "runs", "muon"))


def test_the_time_of_a_step_is_that_of_usual_steps() -> None:
    def row(seconds: float) -> dict[str, Any]:
        return {"kind": "train", "num_steps": 1, "images_per_s": 4 / seconds}

    rows = [row(60.0), row(2.0), row(9.0), *[row(1.0)] * 3, row(2.0), {"kind": "validation", "loss": 1.0}]
    assert usual_step_s(rows, batch_size=4) == pytest.approx(7 / 5), "without the first, which compiles, and a far longer one"
