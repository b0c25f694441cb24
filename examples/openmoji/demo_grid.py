"""Prompt by stage: the true scene, what each network drew of it, and what the judges say."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

import numpy as np
import numpy.typing as npt
from PIL import Image

from examples.openmoji.composition import render
from examples.openmoji.demo_results import Drawn, Finding
from examples.openmoji.prompts import WorldPrompt

HEADINGS = {
    "pixel": ("after pixel", "is given the class, does not read words"),
    "alignment": ("after alignment", "reads the prompt"),
    "aesthetic": ("after aesthetic", "continued with mostly large objects"),
    "mini": ("bundled dit-mini", "trained for hours on the whole small world; guidance 4.5, the others 2.5"),
}
_ASKED = {
    "object": "the object is drawn",
    "background": "color and pattern are right",
    "pattern": "the pattern is right",
    "size": "the object is drawn in that size",
    "place": "the object is drawn at that place",
    "all": "everything is right, and nothing else is drawn",
}
_MARKS = {"yes": "✓", "part": "~", "no": "✗"}


def grid_html(prompts: Sequence[WorldPrompt], drawn: Sequence[Drawn]) -> str:
    """A table with a row to each prompt, by category."""
    titles = [("true scene", "rendered by the small world"), *(HEADINGS[one.name] for one in drawn)]
    cells = "".join(f"<th>{escape(title)}<small>{escape(note)}</small></th>" for title, note in titles)
    body = "".join(
        _category(name, drawn) + "".join(_row(prompt, drawn) for prompt in own)
        for name, own in groupby(prompts, key=lambda prompt: prompt.category)
    )
    head = f"<thead><tr><th>prompt</th>{cells}</tr></thead>"
    return f'<div class="wide all"><table class="stages">{head}<tbody>{body}</tbody></table></div>'


def picture_html(pixels: npt.NDArray[np.uint8], *, alt: str) -> str:
    """An image (H, W, 3) that is part of the page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=92)
    return f'<img alt="{escape(alt)}" src="data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _category(name: str, drawn: Sequence[Drawn]) -> str:
    asked = _ASKED[drawn[0].metric_of[name]]
    return f'<tr class="category"><td colspan="{len(drawn) + 2}"><b>{escape(name)}</b>: judged by whether {asked}</td></tr>'


def _row(prompt: WorldPrompt, drawn: Sequence[Drawn]) -> str:
    held_out = ' <span class="held">held out</span>' if prompt.held_out else ""
    true = picture_html(render(prompt.scene), alt=f"true scene: {prompt.text}")
    images = "".join(f"<td>{_drawn(prompt, one)}</td>" for one in drawn)
    return f"<tr><td>{escape(prompt.text)}{held_out}</td><td>{true}</td>{images}</tr>"


def _drawn(prompt: WorldPrompt, drawn: Drawn) -> str:
    with Image.open(drawn.images[prompt.text]) as image:
        pixels = np.asarray(image.convert("RGB"))
    metric = drawn.metric_of[prompt.category]
    findings = ((judge, drawn.findings[prompt.text, judge, metric]) for judge in drawn.judges)
    return f'{picture_html(pixels, alt=f"{drawn.name}: {prompt.text}")}<div class="marks">{_marks(findings)}</div>'


def _marks(findings: Iterable[tuple[str, Finding]]) -> str:
    marks = []
    for judge, found in findings:
        level = "yes" if found.value == 1 else "part" if found.value > 0 else "no"
        hover = escape(f"{judge} sees: {found.seen}")
        marks.append(f'<span class="{level}" title="{hover}">{_MARKS[level]}</span> {escape(judge)}')
    return " ".join(marks)
