"""Preparation of a subject's training: its images and those that the network draws itself, captions of both, and their weights.

    OUT/images/subject/   copies of the images, a .txt with the caption next to each
    OUT/images/prior/     images that the checkpoint draws, a .txt with the prompt next to each
    OUT/weights.parquet   how often each is seen: the subject's together 1, the others' together `prior_weight`

Prior preservation is a matter of the data here: the images that the network draws are samples like any, seen as often as their
weight says, so that their share of the loss is DreamBooth's lambda in expectation.
Source: DreamBooth (arXiv 2208.12242), section 3.2.
Deviation: there both losses are computed in each step.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits, decode_image
from foundry.reporting.lines import say
from foundry.storage.file_kinds import is_image
from foundry.storage.folder import new_file
from foundry.units.rejection import ImageError
from model.formats.checkpoint import find_checkpoint, read_pipeline_config
from model.generation.drawing import draw, image_paths, image_values
from model.generation.pipeline import open_pipeline
from model.generation.prompt_files import read_prompts
from model.generation.request import GenerationRequest
from trainer.features.info import precompute_command
from trainer.features.store import WEIGHTS
from trainer.subjects.config import WORD, SubjectConfig

FEW, MANY = 5, 50
"""Numbers of images that DreamBooth is meant for."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Files that are prepared for a training."""

    num_images: int
    """Images of the subject."""
    num_prior: int
    """Images that the network drew."""
    weights: Path


def prepare(config: SubjectConfig) -> Prepared:
    """Copies, draws and weighs what is not there yet.

    Raises UserError for a folder without images, a file that is none, and captions that do not name the subject.
    """
    out = Path(config.out)
    find_checkpoint(config.checkpoint)  # before anything is copied
    subject = _copy_images(config, out / "images" / "subject")
    prior = _draw_prior(config, out / "images" / "prior") if config.num_prior_images else []
    _check_stems([*subject, *prior])
    weights = dict.fromkeys((path.stem for path in prior), 1.0)
    own = max(1, len(prior)) / config.prior_weight / len(subject)
    rows = weights | {path.stem: own for path in subject}
    scale = max(rows.values())
    table = pa.table([list(rows), [weight / scale for weight in rows.values()]], schema=WEIGHTS)
    with new_file(out / "weights.parquet") as partial:
        pq.write_table(table, partial)
    return Prepared(num_images=len(subject), num_prior=len(prior), weights=out / "weights.parquet")


def next_commands(config: SubjectConfig) -> list[str]:
    """The commands that follow, to be typed."""
    out = config.out.rstrip("/")
    pipeline = read_pipeline_config(find_checkpoint(config.checkpoint))
    reading = f"--text_encoder.cleaning {pipeline.caption_cleaning} --validation_share 0 --min_validation 0"
    features = precompute_command(
        {"vae": pipeline.vae, "text_encoder": pipeline.text_encoder},
        dataset=f"{out}/captions",
        out=f"{out}/features",
        stage="aesthetic",
        resolution=str(pipeline.resolution),
        more=reading,
    )
    return [
        f"python -m dataset_builder.convert --source image-txt --target run {out}/images {out}/captions",
        features,
        " ".join(
            [
                f"python -m trainer.fit --config configs/dreambooth_512_24gb.yaml --init_from {config.checkpoint}",
                f"--features {out}/features --run_dir {out}/runs --data.weights {out}/weights.parquet",
                f"--lora.trigger_word '{config.trigger_word}'",
            ]
        ),
    ]


def _copy_images(config: SubjectConfig, folder: Path) -> list[Path]:
    """The subject's images with their captions, in `folder`."""
    source = Path(config.images).expanduser()
    if not source.is_dir():
        raise UserError(
            f"{source}: expected a folder of images, found {'a file' if source.exists() else 'nothing'}", setting="images"
        )
    files = sorted(path for path in source.iterdir() if path.is_file() and is_image(path.name))
    if not files:
        raise UserError(f"{source} holds no images: give a folder of {FEW} to {MANY}", setting="images")
    if not FEW <= len(files) <= MANY:
        say(f"{source} holds {len(files)} images; DreamBooth is meant for {FEW} to {MANY}")
    _check_stems(files)
    captions = {path: _caption(path, config) for path in files}
    for path in files:
        try:
            decode_image(path.read_bytes(), limits=DecodeLimits())
        except (OSError, ImageError) as error:
            raise UserError(f"{path} cannot be read as an image ({error}): remove it", setting="images") from error
    folder.mkdir(parents=True, exist_ok=True)
    for path, caption in captions.items():
        shutil.copyfile(path, folder / path.name)
        (folder / path.name).with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    return [folder / path.name for path in files]


def _caption(image: Path, config: SubjectConfig) -> str:
    """The caption next to an image, else the template's. Raises UserError for one that does not name the subject."""
    text = image.with_suffix(".txt")
    if not text.is_file():
        return config.template.replace(WORD, config.trigger_word)
    try:
        caption = " ".join(text.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text} cannot be read as UTF-8 ({error})", setting="images") from error
    if config.trigger_word.lower() not in caption.lower():
        raise UserError(
            f"{text}: expected a caption with the trigger word {config.trigger_word!r}, found {caption[:80]!r}: name it there, "
            "or remove the file to take the template",
            setting="trigger_word",
        )
    return caption


def _draw_prior(config: SubjectConfig, folder: Path) -> list[Path]:
    """Images of what the network knows, drawn as far as they are not there, with their prompts."""
    prompts = (config.class_prompt,) if config.class_prompt is not None else read_prompts(config.prior_prompts or "")
    prompts = prompts[: config.num_prior_images]
    each = -(-config.num_prior_images // len(prompts))
    request = GenerationRequest(prompts=prompts, num_images_per_prompt=each, seed=config.seed, sampling=config.sampling)
    paths = image_paths(folder, request, grid=False)
    assert paths is not None, "the folder's name is no .png"
    runtime = config.runtime.resolved()
    pipeline = open_pipeline(config.checkpoint, runtime=runtime, text_encoder=config.text_encoder, vae=config.vae)
    drawing = draw(pipeline, request, paths, image_values(config.checkpoint, request, runtime))
    for index, path in enumerate(paths):
        path.with_suffix(".txt").write_text(prompts[request.caption_index(index)] + "\n", encoding="utf-8")
    say(f"{drawing.num_drawn} images of what {config.checkpoint} knows drawn, {drawing.num_present} were there")
    return paths


def _check_stems(paths: list[Path]) -> None:
    """Raises UserError for names that two images share: weights go by name."""
    seen: dict[str, Path] = {}
    for path in paths:
        if (other := seen.setdefault(path.stem, path)) != path:
            raise UserError(f"{other.name} and {path.name} share a name: rename one of them", setting="images")
