"""The behaviour that users of every command rely on: how arguments are spelled, what an error says and the exit code."""

import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from foundry.command_line import OPTION, read_settings, run_command
from foundry.errors import UserError
from foundry.wording import CHOICE, ModelChoice, say_missing


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """How the weights move."""

    lr: float = 1e-4
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running averages."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration with one field of each kind."""

    run: str
    """Folder of the run, 100% local."""
    images: list[str]
    """Folders, files or URLs."""
    sql: str | None = None
    """A query."""
    sizes_px: tuple[int, ...] = ()
    """Sides of the images."""
    json: bool = False
    """Print JSON."""
    format: Literal["table", "csv"] = "table"
    """How rows are printed."""
    limit: int | None = None
    """At most this many."""
    stage: str = "none"
    """Which preset."""
    reasons: list[str] | None = None
    """Which ones; without a value: all."""
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    """From where to where, by name."""
    classes: tuple[str, ...] = field(default=(), metadata={OPTION: "class"})
    """Names of classes."""
    optimiser: Optimiser = field(default_factory=Optimiser)
    """Optimiser"""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise ValueError("limit must be 0 or more,\n found -1")


def _wide_stage() -> Config:
    return Config(run="", images=[], stage="wide", limit=7, optimiser=Optimiser(lr=0.5))


def _run(*argv: str, main: object = None) -> tuple[int, list[Config]]:
    seen: list[Config] = []

    def keep(config: Config) -> int:
        seen.append(config)
        return 0

    code = run_command(
        Config,
        main or keep,  # type: ignore[arg-type]
        prog="python -m command",
        example="python -m command RUN --images photos",
        positional=("run", "sql"),
        presets={"stage": {"wide": _wide_stage}},
        argv=argv,
    )
    return code, seen


def _parsed(*argv: str) -> Config:
    code, seen = _run(*argv)
    assert code == 0
    return seen[0]


def test_values_by_place_lists_and_flags_do_not_swallow_each_other() -> None:
    config = _parsed("--json", "run", "--images", "a b", "7", "--sizes_px", "64", "1_024", "--optimiser.betas", "0.5", "0.6")
    assert config == Config(
        run="run", images=["a b", "7"], json=True, sizes_px=(64, 1024), optimiser=Optimiser(betas=(0.5, 0.6))
    )


def test_text_is_taken_as_it_is() -> None:
    sql = "SELECT {'a': 1} -- [x]: \"y\"\nFROM t"
    assert _parsed("run", sql, "--images", "1e3", "null").images == ["1e3", "null"]
    assert _parsed("run", sql, "--images=a").sql == sql


def test_a_mapping_is_one_value_also_where_it_holds_lists() -> None:
    config = _parsed("run", "--images", "a", "--bounds", "{width: [0.1, 1]}", "--limit", "3")
    assert config.bounds == {"width": (0.1, 1.0)}


@pytest.mark.parametrize(("arguments", "json"), [(["--json"], True), (["--json", "false"], False), (["--json=false"], False)])
def test_a_flag_needs_no_value_and_takes_one(arguments: list[str], json: bool) -> None:
    assert _parsed("run", "--images", "a", *arguments).json is json


def test_a_list_that_may_be_none_can_be_given_without_a_value() -> None:
    assert _parsed("run", "--images", "a").reasons is None
    assert _parsed("run", "--reasons", "--images", "a").reasons == []
    assert _parsed("run", "--images", "a", "--reasons").reasons == []
    assert _parsed("run", "--images", "a", "--reasons", "broken", "empty").reasons == ["broken", "empty"]


def test_preset_is_below_file_and_file_below_option(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("stage: wide\nimages: [a]\noptimiser:\n  lr: 0.25\n")
    config = _parsed("run", "--config", str(file), "--optimiser.betas", "0", "0")
    assert (config.limit, config.optimiser) == (7, Optimiser(lr=0.25, betas=(0.0, 0.0)))
    assert _parsed("run", "--config", str(file), "--optimiser.lr=1e-3", "--limit=null").optimiser.lr == 1e-3
    assert _parsed("run", "--images", "a", "--stage", "wide").optimiser.lr == 0.5


def test_the_printed_configuration_gives_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("run", "SELECT 1", "--images", "a", "b", "--sizes_px", "8", "--stage", "wide", "--json")
    assert _run(*arguments, "--print_config") == (0, [])
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert _parsed("--config", str(file)) == _parsed(*arguments)


def test_help_shows_the_string_under_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--help")[0] == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: python -m command RUN [SQL] --images IMAGES ... [options]" in text
    assert "Folder of the run, 100% local. (required, type: str)" in text
    assert "--optimiser.lr LR Learning rate. (type: float, default: 0.0001)" in text
    assert "The behaviour that users of every command rely on" in text
    assert "example: python -m command RUN --images photos" in text


def test_without_arguments_the_usage_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run() == (2, [])
    assert "usage: python -m command RUN" in (text := capsys.readouterr().err)
    assert "example: python -m command RUN --images photos" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--imgaes=a"], "unknown option imgaes; did you mean --images?"),
        (["--optimiser.lrr=1"], "did you mean --optimiser.lr?"),
        (["--sizes-px=1"], "did you mean --sizes_px?"),
        (["--qqqqqqqq=1"], "unknown option qqqqqqqq; see python -m command --help"),
        (["--limit", "x"], "--limit: expected a whole number or null, found x"),
        (["--format", "xml"], "--format: expected table or csv, found xml"),
        (["--json=maybe"], "--json: expected true or false, found maybe"),
        (["--images", "b"], "--images is given twice"),
        (["--json", "SELECT", "1"], "unexpected argument '1'"),
        (["--limit"], "expected one argument"),
        (["--limit", "-1"], "limit must be 0 or more, found -1"),
        (["--config", "absent.yaml"], "does not exist"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("run", "--images", "a", *arguments) == (2, [])
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("imagess: [a]", "unknown option imagess; did you mean --images?"),
        ("optimiser:\n  beta: 1", "unknown option optimiser.beta; did you mean --optimiser.betas?"),
        ("images: a", "--images: expected a list, each text, found a"),
        ("images: [a", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_line(content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    assert _run("run", "--config", str(file)) == (2, [])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("run") == (2, [])
    assert capsys.readouterr().err == "error: --images is missing; see python -m command --help\n"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part that is named."""

    name: str = field(metadata={CHOICE: ModelChoice(real="org/part")})
    """Which part."""
    size: int = 1
    """How large."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """A configuration of models that have no default."""

    out: str
    """Where to."""
    model: str = field(metadata={CHOICE: ModelChoice(real="org/model", what="a large one", toy="only knows owls")})
    """Which model."""
    part: Part
    """Which part."""


_NAMED = ["--out", "x", "--model", "m", "--part.name", "p"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--out", "x", "--part.name", "p"],
            "--model is missing: type --model org/model for a large one, or --model mini for the toy, which only knows owls",
        ),
        (
            _NAMED[:4],
            (
                "--part.name is missing: type --part.name org/part for a real model, or --part.name mini for the toy, "
                "which only understands 64-pixel emoji scenes"
            ),
        ),
        (
            ["--part.name", "p"],
            (
                "--out and --model are missing: type --model org/model for a large one, or --model mini for the toy, "
                "which only knows owls; see c --help"
            ),
        ),
    ],
)
def test_a_model_that_is_not_named_is_a_line_that_says_what_to_type(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(Named, lambda _: 0, prog="c", example="e", argv=arguments) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_model_without_a_default_can_be_given_printed_and_looked_up(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Named] = []

    def main(config: Named) -> int:
        seen.append(config)
        return 0

    def run(*argv: str) -> int:
        return run_command(Named, main, prog="c", example="e", argv=argv)

    assert run(*_NAMED) == 0 and seen == [Named(out="x", model="m", part=Part(name="p"))]
    assert run("--out", "x", "--print_config") == 0
    assert "model: null" in (printed := capsys.readouterr().out) and "size: 1" in printed
    assert run("--help") == 0
    assert "--model MODEL" in (text := capsys.readouterr().out) and "--part.name NAME" in text
    assert run() == 2 and "c --out OUT --model MODEL [options]" in capsys.readouterr().err


def test_several_models_that_are_not_named_are_one_line() -> None:
    assert say_missing(Named, ["model", "part.name"]) == (
        "--model and --part.name are missing: type --model org/model --part.name org/part for a large one, or "
        "--model mini --part.name mini for the toy, which only knows owls"
    )


def test_only_what_the_user_caused_is_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(config: Config) -> int:
        raise UserError("no images in photos:\nname another folder")

    def interrupt(config: Config) -> int:
        raise KeyboardInterrupt

    def fail(config: Config) -> int:
        raise ValueError("a bug")

    arguments = ("run", "--images", "a")
    assert _run(*arguments, main=refuse)[0] == 2
    assert capsys.readouterr().err == "error: no images in photos: name another folder\n"
    assert _run(*arguments, main=interrupt)[0] == 130
    assert _run(*arguments, main=lambda config: 1)[0] == 1
    with pytest.raises(ValueError, match="a bug"):
        _run(*arguments, main=fail)


@pytest.mark.parametrize(
    ("setting", "ending"), [("limit", " (--limit)"), ("optimiser", " (--optimiser)"), ("other", ""), ("", "")]
)
def test_a_command_names_its_own_option_for_the_setting_at_fault(
    setting: str, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(config: Config) -> int:
        raise pickle.loads(pickle.dumps(UserError("out of range: give another", setting=setting)))

    assert _run("run", "--images", "a", main=refuse)[0] == 2
    assert capsys.readouterr().err == f"error: out of range: give another{ending}\n"


def test_an_option_may_have_a_name_that_python_forbids(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(config: Config) -> int:
        raise UserError("there is no such class", setting="classes")

    assert _parsed("run", "--images", "a", "--class", "owl", "key").classes == ("owl", "key")
    assert _parsed("run", "--images", "a", "--class=owl").classes == ("owl",)
    assert _run("--help")[0] == 0
    said = capsys.readouterr().out
    assert "--class CLASSES ..." in said and "--classes" not in said
    assert _run("run", "--images", "a", main=refuse)[0] == 2
    assert capsys.readouterr().err == "error: there is no such class (--class)\n"


def test_settings_that_are_read_from_a_mapping_are_checked_as_a_file_is() -> None:
    defaults = Config(run="r", images=["a"], bounds={"width": (0.0, 1.0)}, optimiser=Optimiser(lr=0.5))

    def read(**settings: object) -> Config:
        return read_settings(Config, settings, defaults=defaults, prog="python -m command")

    assert read() == defaults
    changed = read(optimiser={"betas": [0.5, 0.6]}, bounds={"height": [1, 2]}, sizes_px=[64])
    assert changed.optimiser == Optimiser(lr=0.5, betas=(0.5, 0.6)), "the rest of a group stays"
    assert changed.bounds == {"height": (1.0, 2.0)} and changed.sizes_px == (64,), "a mapping is one value"
    cases: list[tuple[dict[str, object], str]] = [
        ({"optimiser": {"rl": 1.0}}, "unknown option optimiser.rl; did you mean --optimiser.lr?"),
        ({"limit": "many"}, "--limit: expected .*, found many"),
        ({"limit": -1}, "limit must be 0 or more"),
    ]
    for settings, message in cases:
        with pytest.raises(UserError, match=message):
            read(**settings)


def test_a_closed_pipe_is_no_error() -> None:
    program = (
        "import sys\n"
        "from tests.foundry.test_command_line import _run\n"
        "code, _ = _run('run', '--images', 'a', main=lambda config: print('line\\n' * 100_000) or 0)\n"
        "print(code, file=sys.stderr)"
    )
    command = f'{sys.executable} -c "$0" | head -n 1'
    result = subprocess.run(["bash", "-c", command, program], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("line\n", "0\n")
