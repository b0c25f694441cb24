"""The demo on one self-contained page: `python -m examples.openmoji.demo_report --demo demo`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from examples.openmoji.demo_commands import NUM_KINDS, STAGES, DemoFolder
from foundry.command_line import run_command
from foundry.errors import UserError

if TYPE_CHECKING:
    from dataset_builder.reports.page import Section

_NUM_PICTURES = 5
_OUTCOME = (
    "How well the network of the last stage follows prompts, by two evaluators: llava-mini captions each image, the other "
    "matches the drawings themselves. In small print: their scores of rendered scenes, which are the ceiling."
)
_CAPTIONS = "Above: the alt text that came with each image. Below: the caption that llava-mini writes."
_PHOTOGRAPHS = (
    "Real files go through the same steps. llava-mini has only seen drawn scenes, so it finds nothing else in photographs; "
    "to caption photographs, use a real model. The recipe leaves these images out."
)
_DENSITY = "The paper's Table 1: how many concepts a text names. A world of 16 kinds has few nouns."
_CHOICE = (
    "Every image is accounted for. The stages pixel and alignment read the first set. The stage aesthetic reads the second, "
    "with mostly large objects: half of the scenes whose caption says large, and a sixth of the others."
)
_TRAINING = (
    "Pixel: a class-conditional network learns what images look like. Alignment: it is re-parameterised and learns to read "
    "captions. Aesthetic: it continues with scenes of a chosen style. Here the style is large objects, because you can see in "
    "images whether it takes hold."
)
_GRID = (
    "The pixel stage reads no words: it is given the class of the prompt's object, and chooses place, size and background "
    "itself. The stage aesthetic continued with mostly large objects; the style shows best if a prompt leaves the size open. "
    "Held out: training never shows that object at that place on that background. Under each image: whether the evaluator "
    "found what the category asks for (point at a mark to read what it saw)."
)
_SCORES = "Means over all prompts that a metric applies to; the ceiling is the same evaluator's score of rendered scenes."
_TIME = "Each step is a command that you can run by itself; interrupted, it resumes."


@dataclass(frozen=True, kw_only=True)
class DemoReportConfig:
    """Folder of the demo."""

    demo: str
    """Folder of a demo that has run to its judgements; the page is report.html in it."""
    prompts_per_category: int = 4
    """Number of prompts per category, as in the evaluations."""


def main(config: DemoReportConfig) -> int:
    """Writes the page; returns 0. Raises UserError if a part of the demo is missing."""
    from dataset_builder.reports.page import page
    from foundry.storage.folder import new_file

    folder = DemoFolder(Path(config.demo))
    try:
        sections = list(_sections(config, folder))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run the whole demo first, make demo") from None
    subtitle = f"{NUM_KINDS} kinds of object, one in each scene, 64 pixels: captioned, chosen and trained on here, offline"
    style = Path(__file__).with_name("demo.css").read_text(encoding="utf-8")
    text = page(title="From images to a network that draws", subtitle=subtitle, sections=sections, style=style)
    with new_file(folder.report) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"{folder.report}: {len(text.encode()):,} bytes; open it in a browser")
    return 0


def _sections(config: DemoReportConfig, folder: DemoFolder) -> "Iterator[Section]":
    """The page, part by part: the results, then the steps in order."""
    from dataset_builder.reports.page import Section
    from examples.openmoji.demo_figures import headline_html, losses_html, scores_html, times_html
    from examples.openmoji.demo_grid import grid_html
    from examples.openmoji.demo_prompts import demo_prompts
    from examples.openmoji.demo_results import read_drawn
    from examples.openmoji.demo_steps import read_times

    drawn = read_drawn(folder)
    last = next(one for one in drawn if one.name == STAGES[-1])
    grid = grid_html(demo_prompts(config.prompts_per_category), drawn)
    yield Section(title="Results", lead=_OUTCOME, body=headline_html(last))
    yield from _data_sections(folder)
    yield Section(title="Training", lead=_TRAINING, body=losses_html(folder.training, STAGES))
    yield Section(title="The same prompts after each stage", lead=_GRID, body=grid)
    yield Section(title="Scores", lead=_SCORES, body=scores_html(drawn, last=last))
    yield Section(title="Time", lead=_TIME, body=times_html(read_times(folder.root)))


def _data_sections(folder: DemoFolder) -> "Iterator[Section]":
    """Images, captions, their density, and which of them were chosen."""
    from dataset_builder.reports.page import Section, cards_html, table_html
    from dataset_builder.reports.sections import funnel_table
    from dataset_builder.sql.dataset_files import open_stored
    from examples.openmoji.demo_captions import captioned, density_html

    with open_stored(str(folder.captions)) as run:
        scenes = captioned(run, where="class_label IS NOT NULL", number=_NUM_PICTURES)
        photographs = captioned(run, where="class_label IS NULL", number=_NUM_PICTURES)
    yield Section(title="Scenes and captions", lead=_CAPTIONS, body=cards_html(scenes))
    yield Section(title="Photographs", lead=_PHOTOGRAPHS, body=cards_html(photographs))
    yield Section(title="Concept density", lead=_DENSITY, body=density_html(folder.captions))
    funnels = []
    for name in ("all", "style"):
        with open_stored(str(folder.data(name))) as data:
            table = funnel_table(data)
        first, *others = table.rows
        shown = replace(table, rows=[first, *(row for row in others if row[-1])])  # the steps that dropped any
        funnels.append(f"<h3>{escape(str(folder.data(name)))}</h3>{table_html(shown)}")
    yield Section(title="Data sets", lead=_CHOICE, body="".join(funnels))


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            DemoReportConfig,
            main,
            prog="python -m examples.openmoji.demo_report",
            example="python -m examples.openmoji.demo_report --demo demo",
        )
    )
