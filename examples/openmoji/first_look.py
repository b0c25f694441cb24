"""A first look in a minute, `make try`: six captions, four pictures and the result of a SQL query, on one page.

Each step prints the command that it runs, so that you can copy it. Run again, it resumes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.openmoji.demo_steps import Step, duration, run_steps
from foundry.command_line import run_command

PROMPTS = "examples/openmoji/first_prompts.txt"
NUM_SCENES = 6
_SEED = 3
_LICENCE = "OpenMoji (openmoji.org), CC BY-SA 4.0"
QUESTION = (
    "SELECT alt_text, length(alt_text) AS alt_text_length, length(caption) AS caption_length, "
    "num_distinct_nouns AS caption_nouns FROM images JOIN captions USING (key) ORDER BY caption_length DESC, alt_text"
)


@dataclass(frozen=True, kw_only=True)
class FirstLookConfig:
    """Settings of the first look."""

    out: str = "try"
    """Folder for everything that it writes; the page is index.html in it."""


@dataclass(frozen=True, kw_only=True)
class FirstSteps:
    """The commands of the first look, each with a folder that it writes or reads."""

    scenes: Step
    captions: Step
    question: Step
    drawings: Step

    @property
    def in_order(self) -> Sequence[Step]:
        """Steps in the order in which they are printed."""
        return (self.scenes, self.captions, self.question, self.drawings)


def main(config: FirstLookConfig) -> int:
    """Runs the steps and writes the page; returns 0. Raises UserError as run_steps does."""
    started = time.perf_counter()
    root = Path(config.out)
    steps = first_steps(root)
    run_steps(root, steps.in_order)
    page = root / "index.html"
    _write_page(page, steps)
    print(f"\n{duration(time.perf_counter() - started)} in all; open in a browser: {page}")
    return 0


def first_steps(root: Path) -> FirstSteps:
    """All steps of a look in the folder `root`. Drawing needs none of the others, and runs while Ray starts."""
    scenes, run, drawn = (root / name for name in ("scenes", "captions", "drawn"))
    count = ("--count", str(NUM_SCENES), "--seed", str(_SEED), "--split", "unseen")
    return FirstSteps(
        scenes=Step(
            title=f"Render {NUM_SCENES} scenes: combinations that no model here was trained on",
            module="examples.openmoji.scenes",
            arguments=(*count, "--out", str(scenes)),
            output=scenes,
        ),
        captions=Step(
            title="Caption them on Ray with llava-mini",
            module="captioner.run",
            arguments=("--images", str(scenes), "--out", str(run), "--model", "mini", "--licence", _LICENCE),
            output=run,
        ),
        question=Step(
            title="Ask SQL how much more the captions say than the alt text",
            module="dataset_builder.query",
            arguments=(str(run), QUESTION),
        ),
        drawings=Step(
            title="Draw four prompts with dit-mini",
            module="model.generate",
            arguments=("--checkpoint", "mini", "--prompts_file", PROMPTS, "--out", str(drawn)),
            output=drawn,
            beside=True,
        ),
    )


def _write_page(path: Path, steps: FirstSteps) -> None:
    """Reads what the steps wrote, and writes the page."""
    from dataset_builder.reports.page import Table
    from dataset_builder.sql.dataset_files import open_stored
    from examples.openmoji.demo_captions import captioned
    from examples.openmoji.first_page import Drawing, first_page
    from foundry.storage.folder import new_file
    from model.generation.image_files import image_names
    from model.generation.prompt_files import read_prompts

    assert steps.captions.output and steps.drawings.output, "these steps write folders"
    with open_stored(str(steps.captions.output)) as run:
        scenes = captioned(run, where="true", number=NUM_SCENES)
        rows = run.fetch(QUESTION).to_pylist()
    prompts = read_prompts(PROMPTS)
    files = [steps.drawings.output / name for name in image_names(prompts, [0] * len(prompts))]
    drawings = [Drawing(prompt=prompt, png=file.read_bytes()) for prompt, file in zip(prompts, files, strict=True)]
    answer = Table(columns=[name.replace("_", " ") for name in rows[0]], rows=[list(row.values()) for row in rows])
    with new_file(path) as partial:
        partial.write_text(first_page(steps, scenes=scenes, answer=answer, drawings=drawings), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(run_command(FirstLookConfig, main, prog="python -m examples.openmoji.first_look", example="make try"))
