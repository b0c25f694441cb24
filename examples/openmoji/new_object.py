"""A new object for dit-mini from ten pictures, by LoRA and prior preservation, and what becomes of the old ones.

    python -m examples.openmoji.new_object --out new_object

Every step prints the command that it runs, so that you can copy it. Run again, it resumes. The object
is asked for at places and before backgrounds that none of its pictures shows (new_object_scenes.py); the prompts of the
benchmark openmoji say whether the kinds that dit-mini knew are kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.openmoji.demo_steps import Step, run_steps
from examples.openmoji.kinds import NEW_KIND
from foundry.command_line import run_command
from model.formats.checkpoint import MINI

_PRIOR_SEED = 77
_RESOLUTION = "64"
_OWN = "examples.openmoji.new_object_benchmark"
_KNOWN = "examples.openmoji.benchmark"


@dataclass(frozen=True, kw_only=True)
class NewObjectConfig:
    """Settings of `python -m examples.openmoji.new_object`."""

    out: str = "new_object"
    """Folder for everything that is written."""
    training: str = "examples/openmoji/new_object.yaml"
    """Settings of the training."""
    num_prior_images: int = 240
    """Number of images that dit-mini draws of what it knows."""
    prompts_per_category: int = 8
    """Prompts of each category and split that show whether the old kinds are kept."""

    def __post_init__(self) -> None:
        if min(self.num_prior_images, self.prompts_per_category) < 1:
            raise ValueError("num_prior_images and prompts_per_category must be 1 or more")


def main(config: NewObjectConfig) -> int:
    """Runs every step and prints the scores; returns 0. Raises UserError as run_steps does."""
    from examples.openmoji.new_object_scenes import write_pictures

    out = Path(config.out)
    write_pictures(out / "pictures")
    _write_prior_prompts(out / "prior_prompts.txt", config)
    run_steps(out, list(steps(config)))
    for name, what in (("own", f"{NEW_KIND.name}, at new places"), ("known", "the 36 kinds that it knew")):
        print(f"\n{what}: share of images that the sprite judge finds right")
        before, after = (_shares(out / "evaluation" / f"{name}-{network}") for network in (MINI, "lora"))
        for check in sorted(before.keys() & after.keys()):
            print(f"  {check:>10}  dit-mini {before[check]:.0%}  with the LoRA {after[check]:.0%}")
    _draw_picture(out)
    return 0


def steps(config: NewObjectConfig) -> Iterator[Step]:
    """All steps, in order."""
    out = Path(config.out)
    captions, features, runs = out / "captions", out / "features", out / "runs"
    yield Step(
        title="Prepare: ten pictures, and what dit-mini draws of the kinds that it knows",
        module="trainer.dreambooth",
        arguments=(
            *("--images", str(out / "pictures"), "--trigger_word", NEW_KIND.name, "--checkpoint", MINI),
            *("--prior_prompts", str(out / "prior_prompts.txt"), "--num_prior_images", str(config.num_prior_images)),
            *("--runtime.batch_size", "32", "--out", str(out / "subject")),
        ),
        output=out / "subject",
    )
    yield Step(
        title="Import both with their captions",
        module="dataset_builder.convert",
        arguments=(
            *("--source", "image-txt", "--target", "run", str(out / "subject" / "images"), str(captions)),
            *("--t5.tokenizer", MINI),
        ),
        output=captions,
    )
    yield Step(
        title="Features: latents and captions",
        module="trainer.precompute",
        arguments=(
            *("--dataset", str(captions), "--out", str(features), "--stage", "aesthetic", "--resolution", _RESOLUTION),
            *("--vae.name", MINI, "--text_encoder.name", MINI, "--validation_share", "0", "--min_validation", "0"),
        ),
        output=features,
    )
    yield Step(
        title="Train a LoRA",
        module="trainer.fit",
        arguments=(
            *("--config", config.training, "--features", str(features), "--run_dir", str(runs)),
            *("--data.weights", str(out / "subject" / "weights.parquet")),
        ),
        output=runs,
    )
    for network, lora in ((MINI, ()), ("lora", ("--lora", str(runs / "aesthetic")))):
        for name, benchmark in (("own", _OWN), ("known", _KNOWN)):
            folder = out / "evaluation" / f"{name}-{network}"
            number = ("--openmoji.prompts_per_category", str(config.prompts_per_category))
            yield Step(
                title=f"Draw and judge: {name} prompts, {network}",
                module="trainer.evaluate",
                arguments=(
                    *("--benchmark", benchmark, "--checkpoint", MINI, *lora, "--judges", "sprites"),
                    *("--out", str(folder), *number),
                ),
                output=folder,
            )


def _write_prior_prompts(path: Path, config: NewObjectConfig) -> None:
    """Prompts of the kinds that dit-mini knows, of combinations that its own training may have shown."""
    from examples.openmoji.prompts import CATEGORIES, draw_prompts

    each = -(-config.num_prior_images // len(CATEGORIES))
    texts = [one.text for one in draw_prompts(count=each, seed=_PRIOR_SEED) if one.scene.split == "train"]
    path.write_text("\n".join(texts[: config.num_prior_images]) + "\n", encoding="utf-8")


def _draw_picture(out: Path) -> None:
    """The pictures in a row, and drawings of the adapted network below."""
    from PIL import Image

    from model.generation.image_files import make_grid
    from trainer.evaluation.images import IMAGES

    pictures = sorted((out / "pictures").glob("*.jpg"))
    drawn = sorted((out / "evaluation" / "own-lora" / IMAGES).glob("*.png"))[: 2 * len(pictures)]
    images = [Image.open(path).convert("RGB") for path in (*pictures, *drawn)]
    make_grid(images, columns=len(pictures), scale=2).save(out / "new_object.png", optimize=True)
    print(f"\n{out / 'new_object.png'}: the pictures, and drawings of the adapted network below")


def _shares(folder: Path) -> dict[str, float]:
    """The mean of each check over all images of an evaluation."""
    import pyarrow.parquet as pq

    drawn = [("images", "=", "generated")]
    table = pq.read_table(folder / "results.parquet", filters=drawn).to_pylist()
    sums: dict[str, list[float]] = {}
    for row in table:
        sums.setdefault(row["metric"], []).append(row["value"])
    return {name: sum(values) / len(values) for name, values in sums.items()}


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            NewObjectConfig,
            main,
            prog="python -m examples.openmoji.new_object",
            example="python -m examples.openmoji.new_object --out new_object",
        )
    )
