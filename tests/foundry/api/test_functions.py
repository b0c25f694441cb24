"""Functions with the options of a command refuse what it refuses, in the same words, and take what a notebook has at hand."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from foundry.api.functions import explained_extras, read_options, takes_options
from foundry.command_line import run_command
from foundry.errors import UserError

COMMAND = "captioner.run"
"""A name that foundry.commands knows, with an extra."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """A group of options."""

    max_new_tokens: int = 300
    """Most tokens of an answer."""
    temperature: float = 0.0
    """Temperature."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options."""

    images: list[str]
    """Images to read."""
    out: str
    """Folder to write."""
    limit: int | None = None
    """Number of images to stop after."""
    names: tuple[str, ...] = ()
    """Names."""
    decoding: Decoding = field(default_factory=Decoding)
    """Decoding."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be 1 or more, not {self.limit}", setting="limit")


@takes_options(Settings, command=COMMAND)
def work(options: Settings) -> Settings:
    """Does the work."""
    return options


def test_options_are_the_fields_and_groups_keep_their_defaults(tmp_path: Path) -> None:
    given = work(images=["a", "b"], out=str(tmp_path), limit=3, decoding=Decoding(temperature=0.5))
    assert given == Settings(images=["a", "b"], out=str(tmp_path), limit=3, decoding=Decoding(temperature=0.5))
    loose: dict[str, Any] = {"images": tmp_path / "a", "out": tmp_path, "names": ["x"], "decoding": {"temperature": 1}}
    assert work(**loose) == Settings(
        images=[str(tmp_path / "a")], out=str(tmp_path), names=("x",), decoding=Decoding(temperature=1.0)
    )
    assert work(images="a", out="b").images == ["a"]  # type: ignore[arg-type]


def test_thousands_of_paths_are_read_at_once_and_each_is_there() -> None:
    paths = [Path(f"photo-{number}.jpg") for number in range(20_000)]
    found = work(images=paths, out="b", names=[str(path) for path in paths])  # type: ignore[arg-type]
    assert found.images == [str(path) for path in paths] and found.names == tuple(found.images)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"images": ["a"]}, ["--images", "a"]),
        ({"images": ["a"], "out": "b", "limt": 3}, ["--images", "a", "--out", "b", "--limt", "3"]),
        ({"images": ["a"], "out": "b", "limit": "ten"}, ["--images", "a", "--out", "b", "--limit", "ten"]),
        (
            {"images": ["a"], "out": "b", "decoding": {"temprature": 1}},
            ["--images", "a", "--out", "b", "--decoding.temprature", "1"],
        ),
    ],
)
def test_what_does_not_fit_is_the_line_of_the_command(
    options: dict[str, Any], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as found:
        work(**options)
    assert run_command(Settings, lambda _: 0, prog=f"python -m {COMMAND}", example="", argv=arguments) == 2
    assert capsys.readouterr().err == f"error: {found.value}\n"


def test_what_the_configuration_refuses_keeps_its_setting() -> None:
    with pytest.raises(UserError, match="limit must be 1 or more, not 0") as found:
        work(images=["a"], out="b", limit=0)
    assert found.value.setting == "limit"
    assert found.value._render_traceback_() == ["UserError: limit must be 1 or more, not 0 (limit=…)"]


def test_positional_values_are_refused() -> None:
    function: Callable[..., Settings] = work
    with pytest.raises(UserError, match=r"work\(\) takes its options by name, such as images=…, and found 'a'"):
        function("a")


def test_help_shows_the_options_with_their_texts() -> None:
    assert list(inspect.signature(work).parameters) == ["images", "out", "limit", "names", "decoding"]
    assert str(inspect.signature(work).return_annotation) == "Settings" or inspect.signature(work).return_annotation is Settings
    text = inspect.getdoc(work) or ""
    assert text.startswith("Does the work.") and "python -m captioner.run" in text
    assert "    limit\n        Number of images to stop after." in text


def test_defaults_that_are_given_hold_where_no_option_is() -> None:
    base = Settings(images=["a"], out="b", decoding=Decoding(max_new_tokens=5, temperature=0.7))
    found = read_options(Settings, {"decoding": {"temperature": 0.1}}, command=COMMAND, defaults=base)
    assert found == Settings(images=["a"], out="b", decoding=Decoding(max_new_tokens=5, temperature=0.1))


def test_a_missing_library_of_an_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    line = r'this needs open-clip-torch, .*pip install "t2i-foundry\[caption\]"'
    with pytest.raises(UserError, match=line), explained_extras("caption"):
        import open_clip  # noqa: F401
    with pytest.raises(ModuleNotFoundError), explained_extras("caption"):
        raise ModuleNotFoundError("no such thing", name="a_module_of_nobody")
