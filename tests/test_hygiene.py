"""Hygiene of the code: heavy imports behind a fence, small files and folders, settings in use. Arrows: test_architecture.py."""

import ast
import graphlib
import re
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("foundry", "captioner", "dataset_builder", "trainer", "model", "publisher", "studio")
BESIDE = ("examples", "benchmarks", "website")
HEAVY = {"torch", "torchvision", "ray", "pyarrow", "transformers", "diffusers", "spacy", "duckdb", "open_clip", "datasets"}
ONE_FILE = ("duckdb", "spacy", "open_clip")
WHOLE_NETWORK = "model/dit.py"
MODULES_IN_A_FOLDER = 10
# Joined, so that this file does not contain what it looks for.
FORBIDDEN_TEXT = ["/" + "work/", "/" + "root/", "/opt/" + "pypi", "pypi" + ".org", "python" + "hosted.org"]
NO_NOUN_OR_VERB = {"as", "by", "for", "from", "how", "in", "of", "on", "to", "what", "when", "where", "which", "whose", "why"}
"""Words that no help text and no module's docstring begins with: it begins with what the thing is or does."""
ANSWERS = {
    "captioner.compare",
    "captioner.status",
    "dataset_builder.clean",
    "dataset_builder.density",
    "dataset_builder.sql.console",
    "dataset_builder.sql.database",
    "foundry.command_line",
    "foundry.reporting.lines",
    "foundry.t2i",
    "model.generate",
    "trainer.plan",
}
"""Modules that print what somebody asked for: tables, JSON, help."""
VAGUE_NAMES = {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, also inside functions; `from a import b` gives a and a.b."""
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _importers(name: str, *folders: str) -> list[str]:
    return [_module(path) for path in _sources(*folders) if any(found.split(".")[0] == name for found in _imports(path))]


def _commands() -> list[str]:
    return [_module(path) for path in _sources(*PACKAGES, *BESIDE) if 'if __name__ == "__main__":' in path.read_text()]


def test_no_module_imports_itself_through_others() -> None:
    names = {_module(path) for path in _sources(*PACKAGES)}
    graph = {_module(path): (set(_imports(path)) & names) - {_module(path)} for path in _sources(*PACKAGES)}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_ray_is_imported_only_in_files_that_are_named_for_it() -> None:
    importers = _importers("ray", *PACKAGES)
    assert importers and all(name.rpartition(".")[2].startswith("ray_") for name in importers), importers


@pytest.mark.parametrize("library", ONE_FILE)
def test_a_library_behind_a_fence_is_imported_in_one_file(library: str) -> None:
    assert len(_importers(library, *PACKAGES)) <= 1, _importers(library, *PACKAGES)


def test_the_networks_know_no_data_set_and_no_ray() -> None:
    for library in ("ray", "datasets", "duckdb"):
        assert not _importers(library, "model")


def test_a_worker_imports_no_parser_of_options() -> None:
    jobs = "captioner.runs.job, dataset_builder.runs.importing, dataset_builder.scores.job, trainer.features.job"
    code = f"import sys, foundry.units.workers, {jobs}; print('jsonargparse' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("command", _commands())
def test_help_is_quick_and_imports_nothing_heavy(command: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"python -m {command}" in result.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}
    heavy = imported & HEAVY
    assert not heavy
    # Time on the processor: on a busy machine the clock on the wall says nothing about the command.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.0


def _settings(tree: ast.Module) -> Iterator[ast.ClassDef]:
    """The dataclasses that a command line or a file fills."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Settings")):
            yield node


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Name of each field, and the string under it, empty if there is none."""
    for statement, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            yield statement.target.id, str(below.value.value) if documented else ""  # type: ignore[union-attr]


def _first_word(text: str) -> str:
    """In lower case, also of "Internal: which part …"."""
    return text.removeprefix("Internal: ").split()[0].strip(".,;:").lower()


def test_every_setting_says_what_it_is_and_is_read_somewhere() -> None:
    paths = _sources(*PACKAGES, *BESIDE)
    read: set[str] = set()
    for path in paths:
        checks = [
            node
            for settings in _settings(_parse(path))
            for node in settings.body
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__"
        ]
        only_checked = {id(node) for check in checks for node in ast.walk(check)}
        attributes = (
            node for node in ast.walk(_parse(path)) if isinstance(node, ast.Attribute) and id(node) not in only_checked
        )
        read |= {node.attr for node in attributes if isinstance(node.ctx, ast.Load)}
    for path in paths:
        for settings in _settings(_parse(path)):
            for name, text in _fields(settings):
                assert text, f"{settings.name}.{name} in {path.relative_to(ROOT)} has no string under it"
                assert _first_word(text) not in NO_NOUN_OR_VERB, f"{settings.name}.{name} in {path.relative_to(ROOT)}: {text}"
                assert name in read, f"{settings.name}.{name} in {path.relative_to(ROOT)} is never read"


def test_only_commands_name_their_options() -> None:
    """Below a command a message names the setting (UserError's `setting`): not every command that gets there has the option.

    A whole command to type is free to; so are words about the options of tar, and the plan's about those of trainer.fit.
    """
    of_all = ("foundry/command_line.py", "foundry/completion.py", "foundry/wording.py")
    free = (*of_all, "foundry/images/tar.py", "trainer/planning/", "trainer/stages.py")
    found = []
    for path in _sources(*PACKAGES):
        where = path.relative_to(ROOT).as_posix()
        if _module(path) in _commands() or where.startswith(free):
            continue
        for node in ast.walk(_parse(path)):
            if not isinstance(node, ast.Call):
                continue
            arguments = [*node.args, *(word.value for word in node.keywords)]
            texts = [one.value for argument in arguments for one in ast.walk(argument) if isinstance(one, ast.Constant)]
            said = " ".join(text for text in texts if isinstance(text, str))
            if not re.search(r"(?<![\w-])--[a-z]", said) or "python -m " in said:
                continue
            if not ast.unparse(node.func).endswith("_command"):
                found.append(f"{where}:{node.lineno}: {said[:80]}")
    assert not found


def test_progress_and_messages_have_one_way() -> None:
    """foundry.reporting says what a command does, so that --log_format holds for all of it; print is for its answer alone."""
    assert _importers("tqdm", *PACKAGES) == []
    assert {_module(path) for path in _sources(*PACKAGES) if "print" in _called(path)} == ANSWERS
    assert {name for name in _importers("rich", *PACKAGES) if not name.startswith("foundry.reporting.")} == set()


def _called(path: Path) -> set[str]:
    """Names of the plain functions that a file calls."""
    calls = (node.func for node in ast.walk(_parse(path)) if isinstance(node, ast.Call))
    return {one.id for one in calls if isinstance(one, ast.Name)}


def test_modules_say_first_what_they_are() -> None:
    docstrings = {path: ast.get_docstring(_parse(path)) or "none" for path in _sources(*PACKAGES, *BESIDE)}
    assert {str(path): text for path, text in docstrings.items() if _first_word(text) in NO_NOUN_OR_VERB} == {}


@pytest.mark.parametrize("path", _sources(*PACKAGES, *BESIDE, "tests"), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    assert path.name not in VAGUE_NAMES
    if str(path.relative_to(ROOT)) != WHOLE_NETWORK:
        num_lines = path.read_text(encoding="utf-8").count("\n")
        assert num_lines <= 400
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{node.name} is longer than 80 lines"


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_hold_few_modules(package: str) -> None:
    counts = Counter(path.parent.relative_to(ROOT) for path in _sources(package) if path.name != "__init__.py")
    assert {str(folder): count for folder, count in counts.items() if count > MODULES_IN_A_FOLDER} == {}


def _texts() -> Iterator[tuple[Path, str]]:
    written = {"demo", "features", "runs", "try"}  # what the commands write by default; git ignores it
    shown = [path for path in ROOT.iterdir() if not path.name.startswith(".") or path.name in {".ci", ".github", ".gitignore"}]
    shown = [path for path in shown if path.name not in written]
    for path in [file for entry in shown for file in ([entry] if entry.is_file() else entry.rglob("*"))]:
        if path.is_file() and path.stat().st_size < 20_000_000 and "__pycache__" not in path.parts:
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # an image or a checkpoint


def test_nothing_names_one_machine_or_a_registry() -> None:
    pattern = re.compile("|".join(map(re.escape, FORBIDDEN_TEXT)))
    found = [f"{path.relative_to(ROOT)}: {match[0]}" for path, text in _texts() for match in pattern.finditer(text)]
    assert not found
