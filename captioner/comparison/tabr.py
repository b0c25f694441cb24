"""TaBR: an image is captioned, drawn again from the caption alone, and compared with the original.

The captioner with the higher similarity says more that is true and can be drawn. Images are drawn by `python -m
model.generate`, run as a separate command: this package does not import networks, the device's memory is free again when
it ends, and it draws only what is not there yet. All candidates' captions of an image are drawn from the same noise.

Source: "Text-as-a-Bottleneck Reconstruction" of FIBO (arXiv 2511.06876), there judged by people, here by an image encoder.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dataset_builder.scores.clip import DEFAULT_CLIP
from foundry.errors import UserError
from foundry.reporting.lines import say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from captioner.comparison.sampled import SampledImage
    from dataset_builder.sql.database import Workbench

MINI = "mini"
_OWN = ("checkpoint", "prompt", "prompts_file", "out", "num_images_per_prompt", "seed")


@dataclass(frozen=True, kw_only=True)
class TabrSettings:
    """Settings of TaBR, for which a checkpoint draws images from captions. Raises ValueError for settings out of range."""

    num_images: int = 64
    """Number of images to draw again: a fixed random choice of those that all candidates captioned."""
    images_per_caption: int = 1
    """Number of images drawn from each caption, whose similarities are averaged."""
    seed: int = 0
    """Random seed of the first image of each caption, the same for all captioners."""
    similarity: str = DEFAULT_CLIP
    """CLIP whose image tower compares images, named as for --clip; `mini`: the vision tower of llava-mini, for the small
    world."""
    generate: dict[str, Any] = field(default_factory=dict)
    """Further options of model.generate, by name, such as {"num_inference_steps": 50, "staged": true}."""

    def __post_init__(self) -> None:
        problems = [
            f"tabr.{name} must be at least 1" for name in ("num_images", "images_per_caption") if getattr(self, name) < 1
        ]
        if own := [name for name in _OWN if name in self.generate]:
            problems.append(f"tabr.generate must not hold {', '.join(own)}, which the comparison sets")
        if problems:
            raise ValueError("; ".join(problems))


class ImageEncoder(Protocol):
    """Encoder that measures similarity."""

    @property
    def name(self) -> str:
        """Description of the encoder, for the notes."""

    def embed(self, images: "Sequence[npt.NDArray[np.uint8]]") -> "npt.NDArray[np.float32]":
        """Embeddings of length 1, (N, D), of images, uint8 RGB (H, W, 3) each."""


class ClipTower:
    """The image tower of a CLIP of open_clip."""

    def __init__(self, name: str) -> None:
        from dataset_builder.scores.clip import ClipEncoder, resolve_clip

        self._source = resolve_clip(name)
        self._encoder = ClipEncoder(self._source, batch_size=64)
        self.name = f"the image tower of {name}"

    def embed(self, images: "Sequence[npt.NDArray[np.uint8]]") -> "npt.NDArray[np.float32]":
        """See ImageEncoder."""
        import numpy as np

        from dataset_builder.scores.clip import image_pixels

        pixels = np.stack([image_pixels(image, self._source) for image in images])
        embeddings: npt.NDArray[np.float32] = self._encoder.embed_images(pixels).cpu().numpy()
        return embeddings


class MiniTower:
    """The vision tower of llava-mini: the cosines of its 64 patches, averaged, so that an object counts at its place."""

    name = "the vision tower of llava-mini, patch by patch"

    def __init__(self) -> None:
        from captioner.engines.generation import GenerationSettings
        from captioner.engines.model_source import resolve_model
        from captioner.engines.transformers_engine import TransformersModel

        self._engine = TransformersModel(**vars(resolve_model(MINI))).load(GenerationSettings(dtype="float32"))

    def embed(self, images: "Sequence[npt.NDArray[np.uint8]]") -> "npt.NDArray[np.float32]":
        """See ImageEncoder."""
        import torch
        from torch.nn.functional import normalize

        engine = self._engine
        with torch.inference_mode():
            pixels = engine.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
            hidden = engine.model.model.vision_tower(pixels.to(engine.device)).last_hidden_state[:, 1:]  # (N, patches, D)
            parts = normalize(hidden, dim=-1).flatten(1) / hidden.shape[1] ** 0.5  # (N, patches * D)
        embeddings: npt.NDArray[np.float32] = parts.cpu().numpy()
        return embeddings


def load_encoder(name: str) -> ImageEncoder:
    """The encoder that a name means. Raises UserError if it is unavailable."""
    return MiniTower() if name == MINI else ClipTower(name)


def draw_captions(
    sample: "Sequence[SampledImage]", *, checkpoint: str, settings: TabrSettings, folder: Path
) -> dict[str, list[Path]]:
    """Draws each caption of the sample into `folder`; returns the files of each caption, those of the first seed first.

    Raises UserError if the command fails.
    """
    prompts = list(dict.fromkeys(caption.strip() for image in sample for caption in image.captions))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        listed = folder / "prompts.jsonl"
        listed.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): give another path for the page", setting="out"
        ) from None
    options = {
        "checkpoint": checkpoint,
        "prompts_file": listed,
        "out": folder,
        "num_images_per_prompt": settings.images_per_caption,
        "seed": settings.seed,
        **settings.generate,
    }
    arguments = [f"--{name}={_argument(value)}" for name, value in options.items()]
    say(f"$ {shlex.join(['python', '-m', 'model.generate', *arguments])}", err=True)
    ended = subprocess.run([sys.executable, "-m", "model.generate", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    say(ended.stdout.rstrip(), err=True)  # stdout is for the comparison alone
    if ended.returncode:
        raise UserError(
            f"model.generate ended with exit code {ended.returncode}, its message is above: the same command resumes"
        )
    return _drawn_files(folder, prompts, range(settings.seed, settings.seed + settings.images_per_caption))


def keep_tabr(
    bench: "Workbench",
    sample: "Sequence[SampledImage]",
    drawn: Mapping[str, Sequence[Path]],
    *,
    encoder: ImageEncoder,
) -> list[str]:
    """Makes the table `tabr` of cosines between an image and what was drawn from its captions; returns notes.

    `tabr_chance` is that with the image that follows in the sample: what a caption reaches that says nothing of its image.
    """
    import numpy as np
    import pyarrow as pa

    from captioner.comparison.sampled import read_sample, unread_notes

    unread: list[str] = []
    read = [one for chunk in read_sample(sample, side_px=None, unread=unread) for one in chunk]
    originals = np.concatenate([encoder.embed([one.pixels]) for one in read]) if read else np.zeros((0, 0), np.float32)
    others = np.roll(originals, -1, axis=0)
    rows = []
    for number, one in enumerate(read):
        for candidate, caption in enumerate(one.sampled.captions):
            cosines = encoder.embed([_pixels(path) for path in drawn[caption.strip()]])
            own, chance = (float((cosines @ side[number]).mean()) for side in (originals, others))
            rows.append({"image": one.sampled.image, "candidate": candidate, "tabr": own, "tabr_chance": chance})
    names = ("image", "candidate", "tabr", "tabr_chance")
    types = dict(zip(names, (pa.string(), pa.int32(), pa.float32(), pa.float32()), strict=True))
    bench.keep_table("tabr", pa.Table.from_pylist(rows, schema=pa.schema(list(types.items()))))
    return unread_notes(unread, "TaBR's images")


def _argument(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _drawn_files(folder: Path, prompts: Sequence[str], seeds: range) -> dict[str, list[Path]]:
    """The files by the prompt and seed that each PNG records."""
    from PIL import Image

    found: dict[tuple[str, int], Path] = {}
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()  # a PNG's text may follow its pixels
            text = getattr(image, "text", {})
        found[text.get("prompt", ""), int(text.get("seed", -1))] = path
    return {prompt: [found[prompt, seed] for seed in seeds] for prompt in prompts}


def _pixels(path: Path) -> "npt.NDArray[np.uint8]":
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image.convert("RGB"))
