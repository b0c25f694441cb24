"""The tutorial on the demo shows the commands that `make demo` runs, in their order."""

from examples.openmoji.demo_commands import DemoConfig, steps
from tests.guides.pages import ROOT, shown

PAGE = ROOT / "docs" / "tutorials" / "emojis-to-a-model.md"


def test_its_commands_are_those_of_the_demo() -> None:
    told = [example.text for example in shown(PAGE) if example.kind == "command"]
    commands = [step.command for step in steps(DemoConfig())]
    assert [text for text in told if text in commands] == commands
