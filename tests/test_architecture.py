"""The arrows of .importlinter hold, and leave out no command; docs/architecture.md names files that exist."""

import re
import subprocess
import sys
from pathlib import Path

from importlinter.api import read_configuration

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("foundry", "dataset_builder", "captioner", "model", "publisher", "trainer")


def test_imports_follow_the_arrows() -> None:
    lint = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    result = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_contract_of_commands_names_each_command() -> None:
    contracts = read_configuration(str(ROOT / ".importlinter"))["contracts_options"]
    protected = {
        module for contract in contracts if contract["type"] == "protected" for module in contract["protected_modules"]
    }
    commands = {
        f"{package}.{path.stem}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    assert protected == commands


def test_the_page_names_files_that_exist_and_every_folder() -> None:
    named = set(re.findall(r"`([\w.]+/[\w./]*)`", PAGE.read_text(encoding="utf-8")))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
    folders = {str(path.parent.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert folders - set(PACKAGES) <= {name.rstrip("/") for name in named}
