"""The documents' promises hold: commands and their options, files, make targets, locked versions."""

import re
import shlex
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from foundry.commands import COMMANDS
from tests.in_this_process import help_of

ROOT = Path(__file__).resolve().parent.parent
OURS = ("foundry", "captioner", "dataset_builder", "trainer", "model", "publisher", "examples", "benchmarks", "website")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MODEL_COMMAND = re.compile(r"python3? -m ((?:captioner\.run|trainer\.precompute|model\.generate) [^`\n]*)")
FENCE = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
ANCHOR = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)#([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
QUOTED_PATH = re.compile(rf"`((?:{'|'.join(OURS)}|docs|tests|notebooks)/[\w./*-]*)`")
TREE_LINE = re.compile(r"^(?P<indent>(?:[│|] {2,3}| {3,4})*)[├└][─-]+ (?P<name>\S+)")


@cache
def _blocks(path: Path) -> list[str]:
    return FENCE.findall(path.read_text(encoding="utf-8"))


def _commands(path: Path) -> list[tuple[str, list[str]]]:
    """(module, words after it) for each `python -m` of ours and each `t2i NAME` in the code blocks; a \\ continues a line.

    Raises KeyError for a name that t2i does not have.
    """
    lines = [line.strip() for block in _blocks(path) for line in block.replace("\\\n", " ").splitlines()]
    commands = []
    for line in lines:
        named = re.findall(r"(?:^|[$|;&] *)t2i ([a-z][a-z-]*)([^|;&\n]*)", line)
        given = [
            *re.findall(r"python3? -m ([\w.]+)([^|;&\n]*)", line),
            *((COMMANDS[name].module, rest) for name, rest in named),
        ]
        for module, rest in given:
            if module.split(".")[0] in OURS:
                commands.append((module, shlex.split(rest.replace("…", "").replace("'", "’"), comments=True)))
    return commands


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_their_options_exist(path: Path) -> None:
    for module, words in _commands(path):
        assert find_spec(module), f"{path.name}: python -m {module}"
        for option in (word.strip("[]").partition("=")[0] for word in words if word.strip("[]").startswith("--")):
            assert re.search(rf"{re.escape(option)}\b", help_of(module)), f"{path.name}: python -m {module} {option}"


def _model_commands() -> dict[Path, list[str]]:
    """By file, the commands that need a model, as somebody would copy them: with their data, not a bare name in a sentence.

    From documents, help texts, comments of settings, and notebooks.
    """
    folders = [ROOT / folder for folder in (*OURS, "docs", "notebooks", "configs")]
    paths = [*ROOT.glob("*.md"), ROOT / "Makefile", *(path for folder in folders for path in sorted(folder.rglob("*")))]
    found = {}
    for path in paths:
        if path.suffix in (".md", ".py", ".yaml", ".ipynb", ""):
            text = "" if path.is_dir() else path.read_text(encoding="utf-8").replace("\\n", "\n").replace("\\\n", " ")
            commands = MODEL_COMMAND.findall(re.sub(r'"\n *f?"', "", text))  # strings over two lines are one
            found[path] = [one for one in commands if re.search(r"--(images|dataset|prompt|prompts_file)\b", one)]
    return {path: commands for path, commands in found.items() if commands}


def unnamed_models(command: str) -> list[str]:
    """The options that a command of ours leaves out and that name a model; such a command ends with exit code 2."""
    needed = {"captioner.run": ["--model"], "trainer.precompute": ["--vae.name"], "model.generate": ["--checkpoint"]}
    module, _, rest = command.partition(" ")
    wanted = needed.get(module, [])
    if module == "trainer.precompute" and "--stage pixel" not in rest:
        wanted = [*wanted, "--text_encoder.name"]
    return [option for option in wanted if not re.search(rf"(?<!\S){re.escape(option)}[ =]\S", rest)]


def test_commands_name_their_models() -> None:
    found = _model_commands()
    assert {path.name for path in found} > {"README.md", "captioning.md", "training.md", "train.yaml", "staged_training.ipynb"}
    for path, commands in found.items():
        assert {command: missing for command in commands if (missing := unnamed_models(command))} == {}, path


def test_the_check_of_named_models_sees_what_is_missing() -> None:
    assert unnamed_models("captioner.run --images a --out b") == ["--model"]
    assert unnamed_models("captioner.run --images a --out b --model mini") == []
    assert unnamed_models("trainer.precompute --dataset a --stage pixel") == ["--vae.name"]
    assert unnamed_models("trainer.precompute --dataset a --stage alignment --vae.name mini") == ["--text_encoder.name"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    missing = [target for target in LINK.findall(text) if not (path.parent / target).exists()]
    missing += [target for target in QUOTED_PATH.findall(text) if not list(ROOT.glob(target))]
    assert not missing


def _anchors(path: Path) -> set[str]:
    """What a link may name after #: the headings in lower case, without marks, spaces as hyphens."""
    headings = HEADING.findall(FENCE.sub("", path.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_headings_that_are_linked_exist(path: Path) -> None:
    links = ANCHOR.findall(FENCE.sub("", path.read_text(encoding="utf-8")))
    named = [(path.parent / target if target else path, anchor) for target, anchor in links]
    assert [f"{target}#{anchor}" for target, anchor in named if anchor not in _anchors(target)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for block in _blocks(path) for word in re.findall(r"^ *(?:\$ )?make ([a-z-]+)", block, re.MULTILINE)}
    assert named <= targets


def _tree(block: str) -> list[str]:
    """The paths of a drawn tree (├── name), with folders in front."""
    paths: list[str] = []
    parents: list[str] = []
    for line in block.splitlines():
        if match := TREE_LINE.match(line):
            depth = len(match["indent"]) // 4
            parents = [*parents[:depth], match["name"].rstrip("/")]
            paths.append("/".join(parents))
    return paths


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_readme_shows_commands_and_a_true_file_tree() -> None:
    readme = ROOT / "README.md"
    assert _commands(readme)
    named = [name for block in _blocks(readme) for name in _tree(block)]
    assert {"captioner", "dataset_builder", "trainer", "model"} <= set(named)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    assert "make test" in (ROOT / "README.md").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_lock_holds_every_dependency_by_hash_for_each_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    wanted = {canonicalize_name(Requirement(line).name) for line in lines} - {project["name"]}
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.findall(r"^(\S+==[^\\\n]+?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", lock, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^\S+==", lock, re.MULTILINE))
    locked = [Requirement(entry) for entry, _ in entries]
    for python in ("3.11", "3.12", "3.13"):
        assert f"Python :: {python}" in str(project["classifiers"])
        marked = {"python_version": python, "python_full_version": f"{python}.0"}
        names = [one.name for one in locked if one.marker is None or one.marker.evaluate(marked)]
        assert wanted <= set(names)
        assert len(names) == len(set(names))
