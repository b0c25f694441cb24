"""The documents' pictures: unseen scenes as llava-mini describes them, held-out prompts as a network draws them, or the same
prompts as the networks of a finished demo draw them.

python -m examples.openmoji.picture --out docs/small_world.png
python -m examples.openmoji.picture --checkpoint mini --out docs/dit_mini.png
python -m examples.openmoji.picture --demo demo --out docs/stages.png
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.command_line import run_command

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE, GAP_PX, TEXT_PX, FONT_PX, LETTERS = 3, 14, 330, 14, 44
STAGE_PROMPTS, STAGE_LETTERS = 5, 22


@dataclass(frozen=True)
class PictureConfig:
    """Settings of the picture."""

    out: str = "docs/small_world.png"
    """The PNG to write."""
    count: int | None = None
    """Scenes; default: 6, or 12 that are drawn."""
    columns: int = 2
    """Scenes side by side."""
    seed: int = 2
    """Seed of the scenes."""
    checkpoint: str = ""
    """A network, which draws what prompts as a person writes them ask for; empty: llava-mini describes scenes."""
    demo: str = ""
    """Folder of a finished demo: its networks side by side, with prompts of different categories."""

    def __post_init__(self) -> None:
        if self.num_scenes < 1 or self.columns < 1:
            raise ValueError("count and columns must be 1 or more")

    @property
    def num_scenes(self) -> int:
        """`count`, or its default."""
        return (12 if self.checkpoint else 6) if self.count is None else self.count


def main(config: PictureConfig) -> int:
    """Writes the picture; returns 0."""
    if config.demo:
        _stages(config)
        return 0
    from PIL import Image, ImageDraw, ImageFont

    cells = list(_drawn(config) if config.checkpoint else _described(config))
    side = cells[0][0].width * SCALE
    cell_px = side + TEXT_PX + 2 * GAP_PX
    rows = -(-config.num_scenes // config.columns)
    picture = Image.new("RGB", (config.columns * cell_px + GAP_PX, rows * (side + GAP_PX) + GAP_PX), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_PX)
    for index, (image, text) in enumerate(cells):
        left = GAP_PX + (index % config.columns) * cell_px
        top = GAP_PX + (index // config.columns) * (side + GAP_PX)
        picture.paste(image.resize((side, side), Image.Resampling.LANCZOS), (left, top))
        draw.multiline_text((left + side + GAP_PX, top), textwrap.fill(text, width=LETTERS), fill="black", font=font)
    picture.save(config.out, optimize=True)
    seen = f"{config.num_scenes} unseen scenes as llava-mini describes them"
    drawn = f"{config.num_scenes} prompts of held-out combinations as {config.checkpoint} draws them"
    print(f"{config.out}: {drawn if config.checkpoint else seen}")
    return 0


def _stages(config: PictureConfig) -> None:
    """A column to each prompt: the prompt, and what each network draws of it below."""
    from PIL import Image, ImageDraw, ImageFont

    from examples.openmoji.demo_commands import DemoFolder
    from examples.openmoji.demo_grid import HEADINGS
    from examples.openmoji.demo_results import read_drawn

    networks = read_drawn(DemoFolder(Path(config.demo)))
    names = list(dict.fromkeys(prompt for prompt in networks[0].images if all(prompt in one.images for one in networks)))
    prompts = names[:: max(1, len(names) // STAGE_PROMPTS)][:STAGE_PROMPTS]
    side, left, top = 2 * 64, 150, 5 * (FONT_PX + 3) + GAP_PX
    size = (left + len(prompts) * (side + GAP_PX), top + len(networks) * (side + GAP_PX))
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_PX)
    small = ImageFont.load_default(FONT_PX - 2)
    for row, network in enumerate(networks):
        y = top + row * (side + GAP_PX)
        draw.text((GAP_PX, y + side // 2 - FONT_PX), HEADINGS[network.name][0], fill="black", font=font)
        for column, prompt in enumerate(prompts):
            image = Image.open(network.images[prompt]).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            picture.paste(image, (left + column * (side + GAP_PX), y))
    for column, prompt in enumerate(prompts):
        text = textwrap.fill(prompt, width=STAGE_LETTERS)
        draw.multiline_text((left + column * (side + GAP_PX), GAP_PX // 2), text, fill="black", font=small)
    picture.save(config.out, optimize=True)
    print(f"{config.out}: {len(prompts)} prompts as {', '.join(one.name for one in networks)} draw them")


def _described(config: PictureConfig) -> "Iterator[tuple[Image, str]]":
    """Scenes and their captions by llava-mini."""
    from PIL import Image

    from captioner.cleaning import clean
    from captioner.engines.generation import GenerationSettings
    from captioner.engines.model_source import resolve_model
    from captioner.engines.transformers_engine import TransformersEngine
    from captioner.prompt_sets import load_prompts
    from examples.openmoji.composition import draw_scene, render

    scenes = [render(draw_scene(seed=config.seed, index=index, split="unseen")) for index in range(config.num_scenes)]
    engine = TransformersEngine(resolve_model("mini"), GenerationSettings())
    prompt = load_prompts("paper").prompts[0].text
    said = engine.caption(scenes, [prompt] * len(scenes), [str(index) for index in range(len(scenes))])
    for scene, one in zip(scenes, said, strict=True):
        yield Image.fromarray(scene), clean(one.text, finish_reason=one.finish_reason).caption


def _drawn(config: PictureConfig) -> "Iterator[tuple[Image, str]]":
    """Drawings of held-out prompts, each from different noise, and these prompts."""
    from PIL import Image

    from model.generation.pipeline import open_pipeline
    from model.generation.request import GenerationRequest
    from model.sampling import SamplingConfig

    texts, sampling = held_out_texts(config), SamplingConfig()
    request = GenerationRequest(prompts=texts, seeds=tuple(range(len(texts))), sampling=sampling)
    for one in open_pipeline(config.checkpoint)(request):
        assert isinstance(one.image, Image.Image) and one.prompt is not None
        yield one.image, one.prompt


def held_out_texts(config: PictureConfig) -> tuple[str, ...]:
    """Prompts of held-out combinations, in turn of each category that states places: without places nothing is held out."""
    from itertools import chain

    from examples.openmoji.prompts import CATEGORIES, draw_prompts

    names = [name for name, category in CATEGORIES.items() if "place" in category.stated]
    prompts = draw_prompts(count=-(-config.num_scenes // len(names)), seed=config.seed)
    by_category = [[one.text for one in prompts if one.held_out and one.category == name] for name in names]
    return tuple(chain.from_iterable(zip(*by_category, strict=True)))[: config.num_scenes]


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            PictureConfig,
            main,
            prog="python -m examples.openmoji.picture",
            example="python -m examples.openmoji.picture --out docs/small_world.png",
        )
    )
