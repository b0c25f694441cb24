"""The README's picture: unseen scenes and what llava-mini says of them.

python -m examples.openmoji.picture --out docs/small_world.png
"""

import textwrap
from dataclasses import dataclass

from dataset_builder.command_line import run_command

SCALE, GAP_PX, TEXT_PX, FONT_PX, COLUMNS = 3, 14, 330, 14, 44


@dataclass(frozen=True)
class PictureConfig:
    """Settings of the picture."""

    out: str = "docs/small_world.png"
    """The PNG to write."""
    count: int = 6
    """Scenes, in two columns."""
    seed: int = 2
    """Seed of the scenes."""


def main(config: PictureConfig) -> int:
    """Writes the picture; returns 0."""
    from PIL import Image, ImageDraw, ImageFont

    from captioner.cleaning import clean
    from captioner.engine import GenerationSettings, LlavaEngine
    from captioner.model_source import resolve_model
    from captioner.prompts import load_prompts
    from examples.openmoji.composition import draw_scene, render

    scenes = [render(draw_scene(seed=config.seed, index=index, split="unseen")) for index in range(config.count)]
    engine = LlavaEngine(resolve_model("mini"), GenerationSettings())
    prompt = load_prompts("paper").prompts[0].text
    said = engine.caption(scenes, [prompt] * config.count, [str(index) for index in range(config.count)])
    side = scenes[0].shape[0] * SCALE
    rows = (config.count + 1) // 2
    width, height = 2 * (side + TEXT_PX + 2 * GAP_PX) + GAP_PX, rows * (side + GAP_PX) + GAP_PX
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_PX)
    for index, (scene, one) in enumerate(zip(scenes, said, strict=True)):
        left = GAP_PX + (index % 2) * (side + TEXT_PX + 2 * GAP_PX)
        top = GAP_PX + (index // 2) * (side + GAP_PX)
        picture.paste(Image.fromarray(scene).resize((side, side), Image.Resampling.LANCZOS), (left, top))
        text = textwrap.fill(clean(one.text, finish_reason=one.finish_reason).caption, width=COLUMNS)
        draw.multiline_text((left + side + GAP_PX, top), text, fill="black", font=font)
    picture.save(config.out, optimize=True)
    print(f"{config.out}: {config.count} unseen scenes with llava-mini's captions")
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            PictureConfig,
            main,
            prog="python -m examples.openmoji.picture",
            example="python -m examples.openmoji.picture --out docs/small_world.png",
        )
    )
