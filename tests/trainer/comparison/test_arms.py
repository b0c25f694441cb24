"""Arms are what their names say, differ from each other, and are refused in a line where they do not."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry.errors import UserError
from tests.trainer.comparison.tiny_comparison import tiny_comparison
from trainer.compare import run
from trainer.comparison.arms import SWITCHES, Arm, make_arms
from trainer.config.network import ObjectiveConfig
from trainer.config.optim import OptimConfig

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "training.md"


def _arms(tmp_path: Path, *names: str, **changes: Any) -> list[Arm]:
    config = tiny_comparison(tmp_path, tmp_path / "runs", *names, **changes)
    return make_arms(config, config.ladder[0])


@pytest.mark.parametrize("name", SWITCHES)
def test_each_switch_changes_the_settings_that_it_names(tmp_path: Path, name: str) -> None:
    objective = ObjectiveConfig(settings={"learned_variance": False})
    base, arm = _arms(tmp_path, name, objective=objective)
    assert (base.name, arm.name) == ("base", name) and not base.changes
    assert dict(arm.changes) == dict(SWITCHES[name].settings)


def test_help_and_documentation_list_all_switches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    listed = said.partition("each a technique (")[2].partition(")")[0]
    assert listed.split(", ") == list(SWITCHES)
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in SWITCHES if f"`{name}`" not in text] == []


def test_combinations_and_files_change_what_their_parts_change(tmp_path: Path) -> None:
    (tmp_path / "hot.yaml").write_text("optim: {lr: 0.01}\nema: {half_life_images: 7}\n")
    hot, both, sra = _arms(tmp_path, str(tmp_path / "hot.yaml"), f"muon+{tmp_path / 'hot.yaml'}+adapter", "sra")[1:]
    assert (hot.name, both.name, sra.name) == ("hot", "muon+hot+adapter1", "sra2")
    assert dict(hot.changes) == {"optim.lr": 0.01, "ema.half_life_images": 7}
    assert dict(both.changes) == {**hot.changes, "optim.name": "muon", "network.text_adapter_blocks": 1}
    assert both.config.optim.warmup_steps == 2, "what no part names is base's"


def test_the_teacher_of_the_arms_can_be_named(tmp_path: Path) -> None:
    (arm,) = _arms(tmp_path, "repa_stop", teacher="facebook/dinov2-base")[1:]
    assert dict(arm.changes) == {"repa.teacher": "facebook/dinov2-base", "repa.stop_share": 0.3}


def test_arms_that_cannot_be_compared_are_refused_in_a_line(tmp_path: Path) -> None:
    files = {
        "lr": "optim: {lrr: 1}",
        "shared": "optim: {lr: 1}\nseed: 3\ndata: {prefetch: 1}",
        "text": "muon",
        "broken": "a: [",
        "as_muon": "optim: {name: muon}",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    cases: list[tuple[list[str], str]] = [
        (["moun"], r"'moun': expected a technique \(repa, .*masking\), or a file .*; did you mean muon\?"),
        (["lr.yaml"], "lr.yaml: unknown option optim.lrr; did you mean --optim.lr"),
        (["shared.yaml"], r"shared.yaml: all arms share seed, data.prefetch: leave it out"),
        (["text.yaml"], "text.yaml: expected settings of trainer.fit"),
        (["broken.yaml"], "broken.yaml cannot be read as YAML"),
        (["missing.yaml"], "missing.yaml cannot be read as YAML: .*No such file"),
        (["muon", "as_muon.yaml"], "as_muon trains as muon does"),
        (["muon", "muon"], "two arms are named muon"),
    ]
    for names, message in cases:
        paths = [str(tmp_path / name) if name.endswith(".yaml") else name for name in names]
        with pytest.raises(UserError, match=message):
            _arms(tmp_path, *paths)
    with pytest.raises(UserError, match="muon trains as base does: leave it out, or change the settings of base"):
        _arms(tmp_path, "muon", optim=OptimConfig(name="muon"))


def test_budgets_and_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"budget": 1.0, "flops": 1e12}, "budget, flops and images must be given one at most"),
        ({"ladder": ()}, "budget, flops or images must be given, or ladder"),
        ({"flops": -1.0}, "flops must be above 0"),
        ({"seeds": 0, "validations": 0}, "seeds must be 1 or more; validations must be 1 or more"),
        ({"evaluation": {"seed": 1}}, "evaluation must be left out without benchmark"),
        ({"recipe": "cheap"}, "recipe must be paper, since arms start from the defaults here"),
        ({"stage": "all"}, "stage must be pixel, alignment or aesthetic"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            tiny_comparison(tmp_path, tmp_path, "muon", **changes)


def test_the_command_reads_the_section_of_its_stage_and_names_its_own_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fit.yaml"
    path.write_text(
        "network: {width: 32}\nstages:\n  alignment:\n    ladder: [{resolution: 64, images: 640, batch_size: 64}]\n"
    )
    assert run(["--config", str(path), "--try", "muon", "adapter1", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["ladder"][0]["images"] == 640 and printed["network"]["width"] == 32
    assert (printed["arms"], printed["stage"], printed["network"]["depth"]) == (["muon", "adapter1"], "alignment", 12)
    assert run(["--config", str(path), "--try", "moun"]) == 2
    assert re.search(r"^error: 'moun': expected a technique .*did you mean muon\? \(--try\)$", capsys.readouterr().err)
    assert run(["--features", str(tmp_path), "--images", "640", "--try", "muon"]) == 2
    assert "holds no features: make them with trainer.precompute" in capsys.readouterr().err
    assert run(["--features", str(tmp_path), "--images", "640"]) == 2
    assert "error: --try is missing" in capsys.readouterr().err
