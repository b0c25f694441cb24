"""What is missing is named with the extra that installs it; the core's commands need the core's libraries alone."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from foundry.command_line import run_command
from foundry.commands import COMMANDS
from foundry.errors import UserError
from foundry.extras import DISTRIBUTION, distribution_of, extra_distributions, missing_library
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import write_run_with_images
from tests.foundry.test_command_line import Config

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("captioner", "dataset_builder", "foundry", "model", "publisher", "studio", "trainer")
OPTIONAL = {"mlflow", "torchao", "trackio", "vllm", "wandb"}
"""Extras in separate environments, or named by the error that misses them."""


def _names(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def _closure(requirements: Iterable[str]) -> set[str]:
    """The distributions that these install, as they are installed here."""
    found: dict[tuple[str, str], None] = {}
    wanted = [(canonicalize_name(one.name), extra) for one in map(Requirement, requirements) for extra in {"", *one.extras}]
    while wanted:
        name, extra = one = wanted.pop()
        if one in found:
            continue
        found[one] = None
        for inner in map(Requirement, importlib.metadata.requires(name) or []):
            if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                wanted += [(canonicalize_name(inner.name), deeper) for deeper in {"", *inner.extras}]
    return {name for name, _ in found}


def test_each_imported_library_is_a_dependency() -> None:
    declared = _names(PROJECT["dependencies"]).union(
        *(
            _names(lines)
            for extra, lines in PROJECT["optional-dependencies"].items()
            if extra not in ("dev", "docs", "examples")
        )
    )
    imported: dict[str, str] = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            imported |= {module.partition(".")[0]: str(path.relative_to(ROOT)) for module in modules}
    others = {name: path for name, path in imported.items() if name not in {*sys.stdlib_module_names, *PACKAGES, "_typeshed"}}
    undeclared = {name: path for name, path in others.items() if distribution_of(name) not in declared}
    assert undeclared.keys() == OPTIONAL, undeclared
    assert len(others) > 30


def test_the_extra_of_each_command_exists() -> None:
    assert {command.extra for command in COMMANDS.values()} <= {"", *PROJECT["optional-dependencies"]}
    assert extra_distributions().keys() == PROJECT["optional-dependencies"].keys()
    everything = extra_distributions()
    assert everything["all"] >= everything["caption"] | everything["train"] | everything["evaluate"]


@pytest.mark.parametrize(
    ("module", "preferred", "extra"),
    [
        ("spacy", "", "density"),
        ("spacy", "caption", "caption"),
        ("spacy", "train", "density"),
        ("torch.nn", "evaluate", "evaluate"),
        ("faiss", "", "caption"),
        ("open_clip", "evaluate", "evaluate"),
        ("s3fs", "", "s3"),
    ],
)
def test_the_error_names_the_extra_of_the_command_else_the_smallest(module: str, preferred: str, extra: str) -> None:
    error = missing_library(ModuleNotFoundError(name=module), preferred=preferred)
    library = distribution_of(module.partition(".")[0])
    assert str(error) == f'this needs {library}, which is not installed: pip install "{DISTRIBUTION}[{extra}]"'


def test_a_command_without_its_extra_says_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str) -> int:
        def main(config: Config) -> int:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return run_command(Config, main, prog="python -m trainer.fit", example="", argv=["--run", "a", "--images", "b"])

    assert run("torch") == 2
    assert capsys.readouterr().err == 'error: this needs torch, which is not installed: pip install "t2i-foundry[train]"\n'
    with pytest.raises(ModuleNotFoundError):  # of this program itself: a bug
        run("foundry.absent")


def test_a_store_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # if another test has opened one
    with pytest.raises(UserError, match=r'cannot open s3://a/b: this needs s3fs, .*"t2i-foundry\[s3\]"'):
        Folder("s3://a/b").exists()


_RUN = """
import json, sys
from foundry.t2i import main
for command in json.loads(sys.argv[1]):
    try:
        code = main(command)
    except SystemExit as stop:
        code = stop.code
    print("=", code, flush=True)
"""


def _site_with(distributions: Iterable[str], folder: Path) -> Path:
    """A folder of packages that has these distributions alone, and the record of our own."""
    folder.mkdir()
    for name in [*distributions, DISTRIBUTION]:
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "bin", "__pycache__")}
        for top in tops if name != DISTRIBUTION else {top for top in tops if top.endswith(".dist-info")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(str(distribution.locate_file(top)))
    return folder


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[str], str]]:
    """Runs commands in one process that has no library but those that the core installs: exit codes, last line of errors."""
    distributions = _closure(PROJECT["dependencies"])
    assert {"duckdb", "pyarrow", "numpy", "pillow"} <= distributions
    assert not {"torch", "ray", "spacy", "scipy", "transformers", "pandas"} & distributions
    site = _site_with(distributions, tmp_path_factory.mktemp("core") / "site")

    def run(*commands: Sequence[str]) -> tuple[list[str], str]:
        ended = subprocess.run(
            [sys.executable, "-S", "-c", _RUN, json.dumps(commands)],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}"},
            cwd=site.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        print(ended.stdout, ended.stderr)
        return re.findall(r"^= (\d+)$", ended.stdout, re.MULTILINE), (ended.stderr.splitlines() or [""])[-1]

    return run


def test_the_core_asks_measures_reports_builds_and_exports(core: Callable[..., tuple[list[str], str]], tmp_path: Path) -> None:
    run, dataset = write_run_with_images(tmp_path), str(tmp_path / "dataset")
    codes, error = core(
        ["query", run, "FROM rarefied(2)"],
        ["density", run],
        ["report", run, "--out", str(tmp_path / "report.html")],
        ["compare", run, "--prompts", "dense", "short"],
        ["build", "--captions", run, "--out", dataset],
        ["query", dataset, "FROM density()"],
        ["export", dataset, str(tmp_path / "dataset.duckdb")],
        ["convert", "--source", "dataset", "--target", "webdataset", dataset, str(tmp_path / "shards"), "--num_workers", "1"],
        ["density", run, "--column", "alt_text"],
    )
    assert codes == ["0"] * 7 + ["1", "2"]  # of the three images one is gone and one is another by now: not exported
    assert error == 'error: this needs spacy, which is not installed: pip install "t2i-foundry[density]"'


def test_every_command_explains_itself_with_the_core_alone(core: Callable[..., tuple[list[str], str]]) -> None:
    assert core(*([name, "--help"] for name in COMMANDS)) == (["0"] * len(COMMANDS), "")
