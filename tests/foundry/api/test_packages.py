"""The Python API of the packages: cheap to import, typed and documented as it says."""

import ast
import importlib
import inspect
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("captioner", "dataset_builder", "model", "trainer")
HEAVY = {"torch", "ray", "duckdb", "pyarrow", "numpy", "transformers", "diffusers", "spacy", "pandas", "PIL", "jsonargparse"}
PAGE = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_cheap_to_import(package: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = f"import sys, {package}; dir({package}); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-I", "-c", _from_here(code)], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert not {name.split(".")[0] for name in found.stdout.split()} & HEAVY
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.2  # of the processor


def _from_here(code: str) -> str:
    return f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"


@pytest.mark.parametrize("package", PACKAGES)
def test_names_are_the_same_for_a_reader_for_a_type_checker_and_at_run_time(package: str) -> None:
    module = importlib.import_module(package)
    typed, lazy = _declared(ROOT / package / "__init__.py")
    assert sorted(typed) == sorted(lazy) == sorted(module.__all__)
    assert list(module.__all__) == sorted(module.__all__) and set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is getattr(importlib.import_module(typed[name]), name)
        assert lazy[name] == typed[name]
        assert not (ROOT / package / f"{name}.py").exists() and not (ROOT / package / name).exists(), "a module would hide it"
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def _declared(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The module of each name that is imported for type checking, and of each lazy name."""
    (branch,) = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    typed = {alias.name: str(node.module) for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    (mapping,) = [node for node in ast.walk(ast.Module(branch.orelse, [])) if isinstance(node, ast.Dict)]
    lazy = {name: module for module, names in ast.literal_eval(mapping).items() for name in names}
    return typed, lazy


def test_the_page_explains_the_names_of_the_packages_and_no_others() -> None:
    explained = re.findall(r"^::: ([\w.]+)$", PAGE, re.MULTILINE)
    names = {f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__}
    assert {path for path in explained if path.count(".") == 1} <= names
    assert {name.rpartition(".")[2] for name in names} <= {path.rpartition(".")[2] for path in explained}


def _functions() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        found |= {f"{package}.{name}": getattr(module, name) for name in module.__all__}
    return {name: value for name, value in found.items() if inspect.isfunction(value) and ".api." in value.__module__}


def test_each_function_says_what_it_raises_and_shows_how_it_is_called() -> None:
    functions = _functions()
    assert len(functions) >= 15
    for name, function in functions.items():
        text = inspect.getdoc(function) or ""
        assert re.search(rf"^    (?:.*\W)?{function.__name__}\(", text, re.MULTILINE), name
        assert "Raises UserError" in " ".join(text.split()) or name == "captioner.clean_caption", name
        hints = inspect.signature(function)
        assert hints.return_annotation is not inspect.Signature.empty, name
        assert all(one.annotation is not inspect.Parameter.empty for one in hints.parameters.values()), name
