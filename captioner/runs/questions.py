"""Questions: what the prompts of a run ask about each image, with its metadata and its captions of another run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captioner.prompts import PromptSet, caption_values, image_values, render
from dataset_builder.runs.carried_types import is_sampled
from dataset_builder.runs.plan import Plan
from dataset_builder.runs.source_run import read_captions
from foundry.errors import UserError
from foundry.reporting.lines import say
from foundry.storage.folder import Folder
from foundry.storage.run_record import RunRecord
from foundry.units.rejection import Failure

NO_EARLIER_CAPTION = Failure(
    reason="no_earlier_caption", message="the source run had no caption of it when this run was planned, and a prompt needs one"
)


@dataclass(frozen=True, kw_only=True)
class EarlierCaptions:
    """The run that captions are taken from."""

    url: str
    prompts: tuple[str, ...]
    """Its prompts, in order."""
    structured: tuple[str, ...] = ()
    """Those prompts whose captions are JSON."""


def questions_about(
    images: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    *,
    prompts: PromptSet,
    earlier: EarlierCaptions | None,
) -> dict[str, list[str | None]]:
    """The question of each prompt, in order, by the key of the image; None if it lacks a caption to ask about.

    `images` are rows of index.IMAGES, `rows` those of the plan. Raises UserError if captions cannot be read.
    """
    captions: dict[str, dict[str, str]] = {}
    if earlier is not None and prompts.caption_fields:
        captions = read_captions(Folder(earlier.url), rows)
    found: dict[str, list[str | None]] = {}
    for image in images:
        values = image_values(image)
        if earlier is not None:
            values |= caption_values(captions.get(image["key"], {}), prompts=earlier.prompts, structured=earlier.structured)
        found[image["key"]] = [render(prompt, values) for prompt in prompts.prompts]
    return found


def check_caption_fields(prompts: PromptSet, source: RunRecord | None) -> None:
    """Raises UserError if prompts use captions of another run and there is none, or captions of a prompt that it lacks."""
    used = sorted(prompts.caption_fields)
    if used and source is None:
        raise UserError(
            f"the prompts {prompts.name} use {{{used[0]}}}: name the run that has the captions", setting="captions_from"
        )
    names = source.prompt_names if source is not None else []
    unknown = sorted(prompts.caption_fields - caption_values({}, prompts=tuple(names)).keys())
    if unknown:
        raise UserError(
            f"the prompts {prompts.name} use {{{unknown[0]}}}, but the prompts of that run are {', '.join(names)}: "
            "correct the prompts",
            setting="prompts",
        )


def check_metadata_names(prompts: PromptSet, record: RunRecord, plan: Plan) -> None:
    """Says, before work begins, that images lack a column that a prompt uses: all of them would get the fallback.

    Raises UserError if the sources are known to lack it; JSON files next to images are known by a sample alone.
    """
    missing = ", ".join(sorted(prompts.metadata_names - record.carried.keys()))
    if not missing:
        return
    known = f"they carry {', '.join(sorted(record.carried))}" if record.carried else "they carry no columns"
    problem = f"the prompts {prompts.name} use metadata.{missing}, which the images lack ({known})"
    if not is_sampled(plan):
        raise UserError(f"{problem}: correct the prompts", setting="prompts")
    say(f"warning: {problem}, as far as the first of them tell: those without it get the fallback", err=True)
