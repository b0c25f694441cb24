"""Licences of the dependencies: all are free, or excused by name."""

import runpy
from importlib.metadata import distributions
from pathlib import Path

LICENCES = runpy.run_path(str(Path(__file__).resolve().parent.parent / ".ci" / "licences.py"))


def test_each_dependency_has_a_free_licence_or_an_excuse() -> None:
    found = [(str(one.metadata["Name"]), LICENCES["licence_of"](one)) for one in distributions()]
    assert len(found) > 100 and LICENCES["outside"](found) == []


def test_others_are_named() -> None:
    others = [("a", "GPL-3.0"), ("b", ""), ("c", "MIT AND LicenseRef-Own"), ("d", "CC-BY-NC-4.0"), ("e", "Proprietary")]
    assert LICENCES["outside"]([*others, ("f", "MIT OR Apache-2.0"), ("nvidia-x", "Proprietary")]) == others
