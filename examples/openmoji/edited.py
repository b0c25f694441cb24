"""Picture of edits by a network of the small world: a drawing changed with growing strength, and a part of it drawn anew.

python -m examples.openmoji.edited --out docs/edited.png
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foundry.command_line import run_command

if TYPE_CHECKING:
    from PIL.Image import Image

    from model.generation.pipeline import Pipeline

SIDE_PX, GAP_PX, TEXT_PX, FONT_PX, LETTERS = 160, 12, 40, 13, 24
DRAWN = "a large owl on the left, blue striped background"
CHANGED = "a large owl on the left, plain red background"
FILLED = "a large owl on the left and a large key on the right, blue striped background"
STRENGTHS = (0.3, 0.5, 0.7, 0.8, 0.9)
SEEDS = (1, 2, 3, 4)

Cell = tuple["Image", str]


@dataclass(frozen=True)
class EditedConfig:
    """Settings of the picture."""

    out: str = "docs/edited.png"
    """The PNG to write."""
    checkpoint: str = "mini"
    """Network that draws and edits."""
    num_inference_steps: int = 20
    """Number of steps of the sampler."""


def main(config: EditedConfig) -> int:
    """Writes the picture; returns 0."""
    from PIL import Image

    from model.generation.pipeline import open_pipeline

    pipeline = open_pipeline(config.checkpoint)
    steps = config.num_inference_steps
    drawn = _draw(pipeline, DRAWN, steps=steps, seed=0)
    mask = Image.new("L", drawn.size)
    mask.paste(255, (drawn.width // 2, 0, *drawn.size))
    changed = [_draw(pipeline, CHANGED, steps=steps, seed=0, image=drawn, strength=strength) for strength in STRENGTHS]
    options: dict[str, Any] = {"image": drawn, "mask_image": mask, "strength": 1.0, "paste_kept": True}
    filled = [_draw(pipeline, FILLED, steps=steps, seed=seed, **options) for seed in SEEDS]
    rows = [
        [(drawn, DRAWN), *((one, f"strength {strength}") for one, strength in zip(changed, STRENGTHS, strict=True))],
        [
            (drawn, DRAWN),
            (mask, "mask: white is drawn anew"),
            *((one, f"seed {seed}") for one, seed in zip(filled, SEEDS, strict=True)),
        ],
    ]
    _table(rows).save(config.out, optimize=True)
    print(f"{config.out}: above with the prompt {CHANGED!r}, below with {FILLED!r}")
    return 0


def _draw(pipeline: "Pipeline", prompt: str, *, steps: int, seed: int, **edit: Any) -> "Image":
    from PIL.Image import Image

    from model.generation.request import GenerationRequest
    from model.sampling import SamplingConfig

    sampling = SamplingConfig(num_inference_steps=steps)
    image = pipeline(GenerationRequest(prompts=(prompt,), seed=seed, sampling=sampling, **edit))[0].image
    assert isinstance(image, Image)
    return image


def _table(rows: Sequence[Sequence[Cell]]) -> "Image":
    """The images in rows, each with its words below."""
    from PIL import Image, ImageDraw, ImageFont

    columns, cell_px, row_px = max(map(len, rows)), SIDE_PX + GAP_PX, SIDE_PX + TEXT_PX + GAP_PX
    table = Image.new("RGB", (columns * cell_px + GAP_PX, len(rows) * row_px + GAP_PX), "white")
    draw, font = ImageDraw.Draw(table), ImageFont.load_default(FONT_PX)
    for row, cells in enumerate(rows):
        for column, (image, text) in enumerate(cells):
            left, top = GAP_PX + column * cell_px, GAP_PX + row * row_px
            table.paste(image.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS), (left, top))
            draw.rectangle((left - 1, top - 1, left + SIDE_PX, top + SIDE_PX), outline="grey")
            words = textwrap.fill(text, width=LETTERS)
            draw.multiline_text((left, top + SIDE_PX + 2), words, fill="black", font=font)
    return table


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            EditedConfig,
            main,
            prog="python -m examples.openmoji.edited",
            example="python -m examples.openmoji.edited --out docs/edited.png",
        )
    )
