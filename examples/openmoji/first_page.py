"""The page of the first look: captions, pictures and an answer of SQL, each with the command that made it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_builder.reports.page import Picture, Section, Table, cards_html, page, table_html

if TYPE_CHECKING:
    from examples.openmoji.demo_steps import Step
    from examples.openmoji.first_look import FirstSteps

TITLE = "A first look at T2I Foundry"
_SUBTITLE = "Made on this machine a moment ago, offline, by two small models that come with the code."
_CAPTIONS = (
    "Above each text: a scene and, in bold, the alt text that came with it. Below: what llava-mini writes about the picture. "
    "It sees the pixels only, and no scene that it was trained on puts these objects in these places on these backgrounds."
)
_QUESTION = (
    "Captions are stored as Parquet, and DuckDB can query them at any time, also while a run is under way. "
    "Here: how much more does each caption say than the alt text?"
)
_DRAWINGS = (
    "dit-mini, a diffusion transformer with 7 million parameters, was trained with this repository on captions such as those "
    "above. It reads the prompt and draws 64 x 64 pixels."
)
_NEXT = "The same commands work on your own images; only the models are larger."
_NEXT_COMMANDS = (
    ("make demo", "All steps on 5,000 scenes: caption, measure, choose, train three stages, draw, evaluate."),
    (
        "python -m captioner.run --images photos/ --out runs/photos --model llava-hf/llava-1.5-7b-hf",
        "Caption your own images with a real model. llava-mini understands these scenes and nothing else.",
    ),
)
_ATTRIBUTION = (
    '<p class="note">All emojis designed by <a href="https://openmoji.org">OpenMoji</a>, the open-source emoji and icon '
    'project. License: <a href="https://creativecommons.org/licenses/by-sa/4.0/">CC BY-SA 4.0</a>; the pictures on this page '
    "are made from them, under the same license.</p>"
)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Drawing for a prompt."""

    prompt: str
    png: bytes
    """The file's content."""


def first_page(steps: "FirstSteps", *, scenes: Sequence[Picture], answer: Table, drawings: Sequence[Drawing]) -> str:
    """The whole document. `scenes` are titled with their alt text; `answer` is that of the step `question`."""
    captions = f"{_commands_html(steps.scenes, steps.captions)}{cards_html(scenes)}"
    question = f"{_commands_html(steps.question)}{table_html(answer)}"
    drawn = f'{_commands_html(steps.drawings)}<div class="gallery drawn">{"".join(map(_drawing_html, drawings))}</div>'
    after = "".join(f"<p>{escape(text)}</p>{_command_html(command)}" for command, text in _NEXT_COMMANDS)
    sections = [
        Section(title="Captions", lead=_CAPTIONS, body=captions),
        Section(title="A question in SQL", lead=_QUESTION, body=question),
        Section(title="Pictures", lead=_DRAWINGS, body=drawn),
        Section(title="What next", lead=_NEXT, body=f"{after}{_ATTRIBUTION}"),
    ]
    style = Path(__file__).with_name("first_page.css").read_text(encoding="utf-8")
    return page(title=TITLE, subtitle=_SUBTITLE, sections=sections, style=style)


def _commands_html(*steps: "Step") -> str:
    return "".join(_command_html(step.command) for step in steps)


def _command_html(command: str) -> str:
    """A command that one click selects."""
    return f'<pre class="command" title="click to select"><code>{escape(command)}</code></pre>'


def _drawing_html(drawing: Drawing) -> str:
    source = f"data:image/png;base64,{base64.b64encode(drawing.png).decode()}"
    return f'<article><img alt="{escape(drawing.prompt)}" src="{source}"><p>{escape(drawing.prompt)}</p></article>'
