"""Picture archive with two captioning runs to ask SQL about: `python -m examples.openmoji.archive`.

300 pictures as an archive has them, from a shop, a blog and a forum: scenes of the small world and five photographs, with
alt texts that are missing or belong to another picture, copies, and broken files. Each step is a command that you could type,
and is printed before it runs. `examples/archive` is what this wrote; the cookbook of docs/sql asks about it.
"""

import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.openmoji.demo_steps import Step, run_steps
from foundry.command_line import run_command
from foundry.storage.folder import new_file
from model.formats.checkpoint import MINI

LIST = "pictures.jsonl"
RUNS = {"greedy": ("--prompts", "ladder"), "sampled": ("--generation.temperature", "1.5")}
"""The captioning runs, and the options of each."""
_LICENCE = "drawings: OpenMoji (openmoji.org), CC BY-SA 4.0; photographs: samples of scikit-image, with terms of their own"
_SHOP, _BLOG, _FORUM, _COPIES, _RECOMPRESSED = 115, 110, 30, 20, 10
_MISSING_ALT_TEXTS = 12
_WRONG_ALT_TEXTS = 8
_SEED = 20
_LOW_QUALITY = 60
"""JPEG quality of what the forum compressed again."""


@dataclass(frozen=True, kw_only=True)
class ArchiveConfig:
    """Settings of `python -m examples.openmoji.archive`."""

    out: str = "archive"
    """Folder for everything that is written."""


def main(config: ArchiveConfig) -> int:
    """Writes the pictures and runs every step; returns 0. Raises UserError as run_steps does."""
    out = Path(config.out)
    if not (out / LIST).exists():
        write_pictures(out)
    run_steps(out, list(steps(out)))
    return 0


def steps(out: Path) -> Iterator[Step]:
    """All steps, in order."""
    for name, options in RUNS.items():
        yield Step(
            title=f"Caption the pictures: {name}",
            module="captioner.run",
            arguments=(
                *("--images", str(out / LIST), "--out", str(out / "runs" / name), "--model", MINI, *options),
                *("--generation.dtype", "float32", "--t5.max_tokens", "64", "--unit_size", "100", "--licence", _LICENCE),
            ),
            output=out / "runs" / name,
        )
    scored = out / "runs" / "greedy"
    yield Step(
        title="Score sharpness, and hashes by which copies are found",
        module="dataset_builder.score",
        arguments=(str(scored), "--clip", "none"),
        output=scored / "scores",
    )
    yield Step(
        title="Choose a data set with the dense captions of both runs",
        module="dataset_builder.build",
        arguments=(
            *("--captions", *(str(out / "runs" / name) for name in RUNS), "--out", str(out / "data")),
            *("--where", "width < 100", "--dedup.exact", "true"),
        ),
        output=out / "data",
    )


def write_pictures(out: Path) -> None:
    """Writes the pictures, and at last the list of them, a JSON object a line: path, alt, label, site, year."""
    rng = random.Random(_SEED)
    rows = [*_shop(out), *_blog(out, rng)]
    rows += [*_forum(out, rng, copied=rows[_SHOP:]), *_broken(out)]
    for row in rows:
        row["year"] = rng.randint(2016, 2025)
    with new_file(out / LIST) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _shop(out: Path) -> Iterator[dict[str, Any]]:
    """Pictures of one object, each with its kind as the label."""
    for index in range(_SHOP):
        content, alt, label = _scene(seed=1, index=index, single=True)
        yield {"path": _save(out, f"shop/{index:04}.jpg", content), "alt": alt, "label": label, "site": "shop"}


def _blog(out: Path, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Pictures of up to three objects, some without an alt text, and the photographs."""
    from examples.openmoji.demo import copy_photographs

    missing = set(rng.sample(range(_BLOG), _MISSING_ALT_TEXTS))
    for index in range(_BLOG):
        content, alt, _ = _scene(seed=2, index=index)
        alt_text = None if index in missing else alt
        yield {"path": _save(out, f"blog/{index:04}.jpg", content), "alt": alt_text, "site": "blog"}
    copy_photographs(out / "blog" / "photographs")
    for path in sorted((out / "blog" / "photographs").iterdir()):
        yield {"path": str(path.relative_to(out)), "alt": None, "site": "blog"}


def _forum(out: Path, rng: random.Random, *, copied: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Pictures of its own, some with the alt text of the next one, and pictures of the blog, some compressed again."""
    scenes = [_scene(seed=3, index=index) for index in range(_FORUM + 1)]
    wrong = set(rng.sample(range(_FORUM), _WRONG_ALT_TEXTS))
    for index, (content, alt, _) in enumerate(scenes[:_FORUM]):
        alt_text = scenes[index + 1][1] if index in wrong else alt
        yield {"path": _save(out, f"forum/{index:04}.jpg", content), "alt": alt_text, "site": "forum"}
    reposts = rng.sample([row["path"] for row in copied if row["path"].count("/") == 1], _COPIES + _RECOMPRESSED)
    for number, path in enumerate(reposts):
        content = (out / path).read_bytes()
        if number >= _COPIES:
            content = _compressed(content)
        yield {"path": _save(out, f"forum/repost_{number:04}.jpg", content), "alt": None, "site": "forum"}


def _broken(out: Path) -> Iterator[dict[str, Any]]:
    """Ten files of the forum that are no pictures any more."""
    content, _, _ = _scene(seed=4, index=0)
    broken = {f"cut_{number}": content[: len(content) // (number + 2)] for number in range(4)}
    broken |= {"empty_0": b"", "empty_1": b""}
    broken |= {f"page_{number}": b"<!doctype html><title>404</title>Not found" for number in range(2)}
    broken |= {"strip": _strip()}
    for name, damaged in broken.items():
        yield {"path": _save(out, f"forum/{name}.jpg", damaged), "alt": None, "site": "forum"}
    yield {"path": "forum/lost.jpg", "alt": None, "site": "forum"}


def _scene(*, seed: int, index: int, single: bool = False) -> tuple[bytes, str, str | None]:
    """JPEG, alt text and label of a scene that no training has shown."""
    from examples.openmoji.composition import render
    from examples.openmoji.scene_files import SceneSet, jpeg_bytes, sample

    wanted = SceneSet(count=0, seed=seed, split="unseen", single_objects=single, num_kinds=None, format="jpeg")
    one = sample(wanted, index)
    return jpeg_bytes(render(one.scene)), one.texts.alt_text, one.class_label


def _save(out: Path, name: str, content: bytes) -> str:
    """The name, once the file is written."""
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_bytes(content)
    return name


def _compressed(jpeg: bytes) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(buffer, "JPEG", quality=_LOW_QUALITY)
    return buffer.getvalue()


def _strip() -> bytes:
    """A picture of 200 x 2 pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (200, 2), "white").save(buffer, "JPEG")
    return buffer.getvalue()


if __name__ == "__main__":
    example = "python -m examples.openmoji.archive --out archive"
    raise SystemExit(run_command(ArchiveConfig, main, prog="python -m examples.openmoji.archive", example=example))
