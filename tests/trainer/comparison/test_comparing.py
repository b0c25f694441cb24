"""A comparison resumes bit for bit after a kill, pairs its arms, measures what it says, and is told in tables and a page."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml

from foundry.errors import NotFinite, UserError
from tests.trainer.comparison.tiny_comparison import tiny_comparison
from tests.trainer.tiny_training import ROOT, _plain, acting_after_step, write_store
from trainer.compare import main
from trainer.comparison.comparing import compare
from trainer.comparison.config import CompareConfig
from trainer.comparison.page import comparison_page
from trainer.comparison.results import Compared
from trainer.comparison.table import markdown
from trainer.config.network import ObjectiveConfig
from trainer.config.optim import OptimConfig
from trainer.config.running import WatchConfig
from trainer.monitoring.run_folder import STOP, read_metrics

ARMS = ("muon", "sra2")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features")
    write_store(root)
    return root


@pytest.fixture(scope="module")
def config(features: Path, tmp_path_factory: pytest.TempPathFactory) -> CompareConfig:
    watch = WatchConfig(every_steps=1, validation_images=8, record_losses_every_steps=1)
    return tiny_comparison(features, tmp_path_factory.mktemp("compared") / "out", *ARMS, watch=watch)


@pytest.fixture(scope="module")
def compared(config: CompareConfig) -> Compared:
    return compare(config)


def _folder(config: CompareConfig, arm: str, seed: int) -> Path:
    return Path(config.run_dir) / "runs" / arm / str(seed) / "alignment"


def _losses(config: CompareConfig) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """Losses of steps and validations, by arm and seed, each with its images seen."""
    return {
        (arm, seed): sorted((row["images_seen"], row["loss"]) for row in read_metrics(_folder(config, arm, seed)))
        for arm in ("base", *config.arms)
        for seed in range(config.seeds)
    }


def test_each_arm_is_trained_with_each_seed_to_equal_operations(compared: Compared, config: CompareConfig) -> None:
    assert compared.is_done
    table = pq.read_table(compared.results).to_pylist()
    last = [row for row in table if row["is_last"] and row["band"] == "all"]
    assert [(row["arm"], row["seed"]) for row in last] == [(arm, seed) for seed in (0, 1) for arm in ("base", *ARMS)]
    assert {row["images"] for row in last if row["arm"] == "base"} == {40}
    flops = {row["arm"]: row["flops"] for row in last}
    assert all(abs(flops[arm] - flops["base"]) <= flops[arm] / 4 for arm in ARMS), "within half a step of five or more"
    assert {row["band"] for row in table} == {"all", "0-250", "250-500", "500-750", "750-1000"}
    of_base = [row for row in table if row["band"] == "all" and (row["arm"], row["seed"]) == ("base", 0)]
    assert [row["images"] for row in of_base] == [20, 40] and of_base[0]["flops"] == pytest.approx(of_base[1]["flops"] / 2)
    assert 0 < of_base[0]["seconds"] < of_base[1]["seconds"]
    assert all(row["memory_bytes"] > 1e8 and row["parameters"] > 1e4 for row in last)


def test_losses_and_seconds_are_those_of_the_runs(compared: Compared, config: CompareConfig) -> None:
    metrics = read_metrics(_folder(config, "muon", 1))
    validation = [row for row in metrics if row["kind"] == "validation"]
    seconds = sum(4 / row["images_per_s"] for row in metrics if row["kind"] == "train")
    sql = f"SELECT band, loss, seconds FROM '{compared.results}' WHERE arm = 'muon' AND seed = 1 AND is_last ORDER BY band"
    answer = duckdb.execute(sql).fetchall()
    bands = {band: loss for band, loss, _ in answer}
    assert bands.pop("all") == validation[-1]["loss"]
    assert list(bands.values()) == [loss for loss in validation[-1]["bands"] if loss is not None]
    assert answer[0][2] == pytest.approx(seconds)


def test_arms_see_the_same_samples_in_the_same_noise(compared: Compared, config: CompareConfig) -> None:
    def first_batches(arm: str, seed: int) -> list[Any]:
        files = sorted((_folder(config, arm, seed) / "losses").glob("*.parquet"))
        rows = [row for path in files for row in pq.read_table(path).to_pylist()]
        return [(row["images_seen"], row["key"], row["timestep"]) for row in rows if row["images_seen"] <= 12]

    def first_loss(arm: str, seed: int) -> float:
        return float(read_metrics(_folder(config, arm, seed))[0]["loss"])

    for seed in (0, 1):
        assert len(first_batches("base", seed)) == 12
        for arm in ARMS:
            assert first_batches(arm, seed) == first_batches("base", seed)
            assert first_loss(arm, seed) == first_loss("base", seed), "the first step is before any difference"
    assert first_batches("base", 0) != first_batches("base", 1) and first_loss("base", 0) != first_loss("base", 1)


def test_the_tables_have_each_arm_and_its_difference(compared: Compared) -> None:
    figure = next(one for one in compared.figures if (one.kind, one.name) == ("loss", "all"))
    base, muon = figure.estimates["base"], figure.estimates["muon"]
    assert muon.difference is not None and base.difference is None
    assert dict(muon.difference.values) == {seed: muon.values[seed] - base.values[seed] for seed in (0, 1)}
    text = (compared.folder / "summary.md").read_text(encoding="utf-8")
    assert text == markdown(compared)
    (row,) = [line for line in text.splitlines() if re.match(r"\| muon +\| +2 \|", line)]
    assert f"{muon.mean:.4f}" in row and f"{muon.difference.mean:+.4f}" in row
    assert "With 2 seeds an interval reaches 9 standard deviations" in text
    summary = json.loads((compared.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["is_done"] and summary["arms"]["muon"]["changes"] == {"optim.name": "muon"}
    assert summary["figures"][0]["arms"]["muon"]["difference"]["mean"] == muon.difference.mean


def test_the_page_escapes_names_and_holds_everything(compared: Compared) -> None:
    def renamed(text: str) -> str:
        return text.replace("muon", "<b>&muon")

    plans = [
        replace(
            plan, opened=replace(plan.opened, arm=replace(plan.arm, name=renamed(plan.arm.name), changes={"a": "<i>x</i>"}))
        )
        for plan in compared.plans
    ]
    rows = [dict(row, arm=renamed(row["arm"])) for row in compared.rows]
    page = comparison_page(replace(compared, plans=plans, rows=rows))
    assert "<b>" not in page and "<i>" not in page and "&lt;b&gt;&amp;muon" in page
    assert page.count("<svg") == page.count('role="img" aria-label="') == 10  # loss and four bands, curves and differences
    assert not re.search(r'(src|href)="(?!#)', page)
    assert (compared.folder / "page.html").read_text(encoding="utf-8") == comparison_page(compared)


def test_the_same_command_finds_all_done(compared: Compared, config: CompareConfig, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (compared.folder / "runs").rglob("*.json*")}
    assert main(config) == 0
    assert "6 trainings, 6 of them there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (compared.folder / "runs").rglob("*.json*")} == before


def test_another_comparison_in_the_folder_is_refused(compared: Compared, config: CompareConfig, tmp_path: Path) -> None:
    sra = tmp_path / "sra2.yaml"
    sra.write_text("sra2: {enabled: true, weight: 2.0}")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"optim": OptimConfig(lr=2e-3, warmup_steps=2)}, r"another comparison \(optim.lr 0.001 then, 0.002 now\)"),
        ({"num_images": 80}, "num_images None then, 80 now"),
        ({"equal": "images"}, "equal as by default then, images now"),
        ({"seed": 5}, "seed as by default then, 5 now"),
        ({"arms": (str(sra),)}, r"the arm sra2 .* then, .*'sra2.weight': 2.0.* now"),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=message):
            compare(replace(config, **changes))
    write_store(tmp_path / "others", num_units=5)
    with pytest.raises(UserError, match="content of the features .* then, .* now"):
        compare(replace(config, features=str(tmp_path / "others")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UserError, match="holds other files and no comparison.json"):
        compare(replace(config, run_dir=str(tmp_path / "full")))


def test_stopped_in_an_arm_it_resumes_bit_for_bit_and_takes_more_arms_and_seeds(
    compared: Compared, config: CompareConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = replace(config, run_dir=str(tmp_path / "out"), arms=("muon",), seeds=1)
    run = _folder(again, "muon", 0)
    with acting_after_step(run, 2, (run / STOP).touch):
        assert main(again) == 130
    assert "stopped; the same command resumes it" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "out" / "results.parquet")["arm"].unique().to_pylist() == ["base"]
    assert main(again) == 0
    assert main(replace(again, arms=ARMS, seeds=2)) == 0
    assert _losses(replace(config, run_dir=again.run_dir)) == _losses(config)


@pytest.mark.slow
def test_killed_in_an_arm_it_resumes_bit_for_bit(compared: Compared, config: CompareConfig, tmp_path: Path) -> None:
    again = replace(config, run_dir=str(tmp_path / "out"))
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(_plain(asdict(again))))
    command = [sys.executable, "-m", "trainer.compare", "--config", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while len(read_metrics(_folder(again, "sra2", 0))) < 6 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert main(again) == 0
    assert _losses(again) == _losses(config)


def test_an_arm_that_diverges_is_said_and_the_others_continue(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hot.yaml").write_text("optim: {lr: 1.0e+38, gradient_clip: 1.0e+30}")
    config = tiny_comparison(features, tmp_path / "out", str(tmp_path / "hot.yaml"), "layersync", seeds=1)
    found = compare(config)
    assert found.is_done and list(found.diverged) == [("hot", 0)]
    said = capsys.readouterr().out
    assert "no result: the loss is not finite at step" in said and "hot with seed 0 has no result" in said
    assert {row["arm"] for row in found.rows} == {"base", "layersync"}
    hot = replace(config, run_dir=str(tmp_path / "base"), arms=("layersync",), optim=OptimConfig(lr=1e38, gradient_clip=1e30))
    with pytest.raises(NotFinite):
        compare(hot)


def test_equal_seconds_are_timed_in_turn_and_the_timed_trainings_are_removed(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.comparison.trainings.TIMED_STEPS", 8)
    config = tiny_comparison(features, tmp_path / "out", "layersync", seeds=1, equal="seconds", budget=0.005, validations=1)
    found = compare(config)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("timing")]
    assert [line.split(" of ")[1].split(",")[0] for line in lines] == ["base", "layersync"] * 2
    record = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))["arms"]
    for plan in found.plans:
        assert plan.step_s is not None and plan.images == pytest.approx(0.3 / plan.step_s * 4, abs=4)
        assert record[plan.arm.name]["timed_step_s"] == plan.step_s
    assert not (tmp_path / "out" / ".timed").exists()
    assert compare(config).plans[1].images == found.plans[1].images, "what was timed is kept"


def test_losses_of_another_objective_are_not_compared(features: Path, tmp_path: Path) -> None:
    (tmp_path / "shifted.yaml").write_text("objective: {name: rectified_flow, settings: {shift: 3.0}}")
    flow = ObjectiveConfig(name="rectified_flow")
    classic = tmp_path / "classic.yaml"
    classic.write_text("objective: {name: diffusion, settings: {}}")
    config = tiny_comparison(
        features, tmp_path / "out", str(tmp_path / "shifted.yaml"), str(classic), seeds=1, objective=flow, equal="images"
    )
    found = compare(config)
    compared = {one.name: {arm for arm, own in one.estimates.items() if own.difference} for one in found.figures[:5]}
    assert compared.pop("all") == set()
    assert set().union(*compared.values()) == {"shifted"}, "bands alone"
    assert "classic has another objective" in markdown(found)
