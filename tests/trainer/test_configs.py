"""The files in configs/ parse, fit the GPUs that they name, and their comments say what trainer.plan says now."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from foundry.command_line import run_command
from tests.in_this_process import help_of
from trainer.config.train import TrainConfig
from trainer.data.passes import MOST_PASSES
from trainer.planning.config import PlanConfig
from trainer.planning.estimate import plan, stage_configs
from trainer.planning.tables.training import plan_table
from trainer.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / "configs").glob("*.yaml"))
PAPER = ROOT / "configs" / "paper_64xh100.yaml"
DREAMBOOTH = ROOT / "configs" / "dreambooth_512_24gb.yaml"
"""Its captions come from a template, or with the images."""
OURS = {"captioner", "dataset_builder", "trainer", "model"}
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:e\+\d+)?")
each_file = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@dataclass(frozen=True)
class Header:
    """What the comments at the top of a file say."""

    commands: tuple[str, ...]
    """From images to training, without `python -m`."""
    plan_command: str
    quoted: tuple[str, ...]
    """Lines of the plan."""


@cache
def _header(path: Path) -> Header:
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in lines)
    texts = [line.removeprefix("#").removeprefix(" ") for line in lines]
    (shown,) = [number for number, text in enumerate(texts) if text.startswith("$ ")]
    commands = re.findall(r"python -m ([^\n]+)", "\n".join(texts[:shown]).replace("\\\n", " "))
    quoted = tuple(text for text in texts[shown + 1 :] if text != "…")
    return Header(tuple(commands), texts[shown].removeprefix("$ python -m trainer.plan "), quoted)


@cache
def _plan_config(path: Path) -> PlanConfig:
    found: list[PlanConfig] = []

    def keep(config: PlanConfig) -> int:
        found.append(config)
        return 0

    words = shlex.split(_header(path).plan_command)
    assert run_command(PlanConfig, keep, prog="plan", example="plan", argv=words) == 0
    return found[0]


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def _stages(path: Path) -> list[TrainConfig]:
    return stage_configs(_plan_config(path))


def test_there_is_a_file_for_each_scale() -> None:
    assert len(PATHS) == 7
    assert {_plan_config(path).fit_config for path in PATHS} == {str(path.relative_to(ROOT)) for path in PATHS}
    assert {(_plan_config(path).gpu, _plan_config(path).num_gpus) for path in PATHS} == {
        ("a100", 8),
        ("rtx4090", 1),
        ("h100", 64),
    }


@each_file
def test_the_comments_say_what_the_plan_says(path: Path) -> None:
    config, header = _plan_config(path), _header(path)
    lines = iter(plan_table(plan(config), config).splitlines())
    assert header.quoted[-1].startswith("In short: ") and len(header.quoted) > 10
    for quoted in header.quoted:
        assert any(_is_same(quoted, line) for line in lines), f"{path.name}: the plan does not say, in this order: {quoted}"


def _is_same(quoted: str, line: str) -> bool:
    """The same words, and the same numbers up to the rounding of what is printed."""
    if NUMBER.sub("#", quoted).split() != NUMBER.sub("#", line).split():
        return False
    pairs = zip(NUMBER.findall(quoted), NUMBER.findall(line), strict=True)
    return all(
        float(one.replace(",", "")) == pytest.approx(float(other.replace(",", "")), rel=0.01, abs=0.011) for one, other in pairs
    )


def test_a_figure_that_has_changed_is_noticed() -> None:
    line = "In short: 1.10 days on 8 x a100, $333; 68.3 of 80 GB on a GPU; each image is seen 40 times in alignment"
    assert _is_same(line, line.replace("68.3", "68.4"))
    for old, new in [
        ("1.10", "1.20"),
        ("68.3", "70.3"),
        ("40 times", "50 times"),
        ("alignment", "aesthetic"),
        ("$333", "$340"),
    ]:
        assert not _is_same(line, line.replace(old, new)), new


@each_file
def test_the_documentation_has_the_figures_of_the_comments(path: Path) -> None:
    table = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (row,) = [line for line in table.splitlines() if line.startswith(f"| `configs/{path.name}` |")]
    duration, needed, often = row.strip("| ").split(" | ")[-3:]
    summary = _header(path).quoted[-1]
    assert f"In short: {duration} on " in summary and f"; {needed.removesuffix(' GB')} of " in summary
    assert NUMBER.findall(summary.split("is seen ")[1]) == NUMBER.findall(often)


@each_file
def test_the_training_fits_the_gpus_and_uses_all_of_them(path: Path) -> None:
    config = _plan_config(path)
    memory_bytes = config.device.memory_bytes
    for rung in plan(config):
        chosen = rung.memory_as_set
        assert chosen.memory.total(chosen.num_images) < 0.9 * memory_bytes, (rung.stage, rung.resolution)
    assert all(train.num_workers == config.num_gpus for train in _stages(path))


@each_file
def test_images_are_seen_less_than_50_times_but_for_the_papers(path: Path) -> None:
    passes = [rung.passes for rung in plan(_plan_config(path))]
    if path == PAPER:
        assert [round(number, 1) for number in passes] == [307.2, 170.9, 73.2, 18.3, 0.4]
        return
    assert max(passes) < MOST_PASSES
    assert "warning" not in plan_table(plan(_plan_config(path)), _plan_config(path))


@each_file
def test_the_average_is_shorter_than_the_training_and_checkpoints_come_in_time(path: Path) -> None:
    for train in _stages(path):
        assert train.ema.half_life_images <= train.images / 10
        checkpoint, watch = train.checkpoint.every_images, train.watch
        assert checkpoint and watch.validate_every_images is not None and watch.sample_every_images is not None
        assert 5 <= train.images / checkpoint < 300
        assert watch.validate_every_images <= checkpoint
        assert watch.sample_every_images % checkpoint == 0
        assert all(train.optim.warmup_steps < rung.num_steps / 10 for rung in train.ladder)


def test_the_papers_file_has_the_papers_values() -> None:
    stages = {train.stage: train for train in _stages(PAPER)}
    assert list(stages) == list(STAGES)
    for name, ours in stages.items():
        papers = STAGES[name]()
        assert (ours.ladder, ours.optim, ours.ema, ours.objective, ours.network, ours.init_from, ours.follows) == (
            papers.ladder,
            papers.optim,
            papers.ema,
            papers.objective,
            papers.network,
            papers.init_from,
            papers.follows,
        )


@each_file
def test_the_commands_exist_and_name_their_models(path: Path) -> None:
    commands = [(text.split()[0], shlex.split(text)[1:]) for text in _header(path).commands]
    modules = [module for module, _ in commands]
    first = {"trainer.dreambooth"} if path == DREAMBOOTH else {"captioner.run", "dataset_builder.build"}
    assert first | {"trainer.precompute", "trainer.fit"} <= set(modules)
    for module, words in commands:
        assert module.split(".")[0] in OURS and find_spec(module), module
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"{re.escape(option)}\b", help_of(module)), f"python -m {module} {option}"
        if module == "captioner.run":
            assert "--model" in words
        if module == "trainer.precompute":
            assert "--vae.name" in words and ("--text_encoder.name" in words) == ("pixel" not in words)
    fits = [words for module, words in commands if module == "trainer.fit"]
    assert all(words[words.index("--config") + 1] == str(path.relative_to(ROOT)) for words in fits)


@each_file
def test_features_are_made_for_the_stages_and_resolutions_that_are_trained(path: Path) -> None:
    commands = [shlex.split(text)[1:] for text in _header(path).commands if text.startswith("trainer.precompute")]
    made = {words[words.index("--stage") + 1]: words for words in commands}
    assert set(made) == {train.stage for train in _stages(path)}
    for train in _stages(path):
        words = made[train.stage]
        resolutions = words[words.index("--resolution") + 1 :][: len(train.ladder)]
        assert resolutions == [str(rung.resolution) for rung in train.ladder]
        assert Path(words[words.index("--out") + 1]) == Path(train.features)
