"""`t2i NAME` is `python -m MODULE`: every command has a name, and says the name that the user typed."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from foundry.commands import COMMANDS, STARTED_BY_T2I, as_typed
from foundry.reporting.lines import choose_format
from foundry.t2i import main

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("captioner", "dataset_builder", "trainer", "model", "publisher", "foundry")


def _t2i(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "foundry", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_each_command_has_a_name() -> None:
    commands = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    assert sorted(command.module for command in COMMANDS.values()) == sorted(commands)


def test_the_page_on_installing_says_what_each_command_needs() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = {
        line.partition("[")[2].partition("]")[0]: line for line in page.splitlines() if "t2i-foundry" in line and "|" in line
    }
    for name, command in COMMANDS.items():
        assert f"`{name}`" in rows[command.extra], f"{name} is not in the row of the extra {command.extra or 'core'}"


@pytest.mark.parametrize("arguments", [["caption_images"], ["--unknown"]])
def test_errors_of_t2i_itself_are_json_where_that_is_asked_for(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main([*arguments, "--log_format", "json"]) == 2
    finally:
        choose_format("auto")
    (row,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert row["event"] == "error" and row["text"].startswith(f"there is no command {arguments[0]}: ")
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: there is no command {arguments[0]}: ")


def _imported(*arguments: str) -> tuple[str, set[str]]:
    """What a Python that is started so prints, and the top-level modules that it imports, those that exist."""
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines() if "|" in line}
    return result.stdout, {name for name in names if find_spec(name)}


def test_the_list_of_commands_imports_no_library() -> None:
    shown, imported = _imported("-m", "foundry", "--help")
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    _, always = _imported("-c", "pass")  # what the environment's .pth files import
    assert imported - always - sys.stdlib_module_names == {"foundry"}


def test_a_command_says_what_was_typed() -> None:
    found = _t2i("status", "--help")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("usage: t2i status RUN [options]")
    assert "example: t2i status runs/photos" in found.stdout
    assert "python -m" not in found.stdout

    nothing = _t2i("status", "no/such/run")
    assert nothing.returncode == 2
    assert "t2i caption" in nothing.stderr and "captioner.run" not in nothing.stderr
    alone = subprocess.run(
        [sys.executable, "-m", "captioner.status", "no/such/run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert alone.stderr == nothing.stderr.replace("t2i caption", "captioner.run")


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("run python -m trainer.fit_rewriter, then trainer.fit.", "run t2i fit-rewriter, then t2i fit."),
        ("ray job submit -- python -m captioner.run …", "ray job submit -- t2i caption …"),
        ("runs/captioner.run/x, captioner.run.json, trainer.fitted, my.trainer.plan", None),
        ("`model.convert --target`", "`t2i import --target`"),
    ],
)
def test_commands_in_a_text_are_named_as_typed(text: str, typed: str | None) -> None:
    assert as_typed(text) == text
    token = STARTED_BY_T2I.set(True)
    try:
        assert as_typed(text) == (typed or text)
    finally:
        STARTED_BY_T2I.reset(token)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("captoin", "did you mean t2i caption?"),
        ("fit_rewriter", "did you mean t2i fit-rewriter?"),
        ("captioner.run", "did you mean t2i caption?"),
        ("trainer/fit.py", "did you mean t2i fit?"),
        ("xyzzy", "t2i --help lists the commands"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 2
    assert capsys.readouterr().err == f"error: there is no command {name}: {advice}\n"


def test_without_a_name_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("usage: t2i COMMAND")
    assert not captured.out


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"t2i-foundry {importlib.metadata.version('t2i-foundry')}\n"


def test_files_of_the_working_folder_hide_no_package_but_can_be_imported(tmp_path: Path) -> None:
    """The console script has its own folder first on the path; `python -m` would take a user's model.py for the package."""
    script, folder = tmp_path / "bin" / "t2i", tmp_path / "here"
    script.parent.mkdir()
    folder.mkdir()
    script.write_text("from foundry.t2i import main\nraise SystemExit(main())\n")
    (folder / "model.py").write_text("raise RuntimeError('the user’s own file')\n")
    (folder / "own").mkdir()
    (folder / "own" / "mine.py").write_text("print('found')\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, str(script), "evaluate", "--checkpoint", "mini", "--benchmark", "own.mine", "--out", "out"]
    result = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert result.stdout == "found\n", result.stderr
    assert result.returncode == 2
    assert "expected a module with the function open_benchmark" in result.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_and_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print_completion", "bash"]) == 0
    script = tmp_path / "t2i.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "photos").mkdir()
    asked = {"dens": "density", "query --form": "--format", "query --format t": "table", "fit --optim.lr": "--optim.lr"}
    lines = ["source t2i.bash"]
    for words in asked:
        count = len(words.split())
        lines.append(f'COMP_WORDS=(t2i {words}); COMP_CWORD={count}; COMPREPLY=(); _shtab_t2i; echo "${{COMPREPLY[*]}}"')
    lines.append('COMP_WORDS=(t2i report pho); COMP_CWORD=2; COMPREPLY=(); _shtab_t2i; echo "${COMPREPLY[*]}"')
    found = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == [*asked.values(), "photos"]


def test_an_unknown_shell_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print_completion", "nutshell"]) == 2
    assert "expected one of bash, zsh" in capsys.readouterr().err
