"""Captions of images by the options of the command, as a run that can be asked."""

from captioner.cleaning import CleanedCaption, clean
from captioner.config import CaptionConfig
from dataset_builder.api.stored import Run, open_run
from foundry.api.functions import takes_options
from foundry.errors import UserError


@takes_options(CaptionConfig, command="captioner.run")
def caption(options: CaptionConfig) -> Run:
    """Captions images on Ray, on this machine or a cluster, and opens the run. Needs the extra `caption`.

    `images` are folders, archives, lists or image files, `out` is the folder of the run, `model` a vision-language model. The
    same call resumes: what is captioned already is kept. Raises UserError for options, sources and models that do not fit, and
    where more images are rejected than `max_rejected` allows; what was committed until then stays.

    Example:

        from captioner import caption
        run = caption(images=["photos"], out="runs/photos", model="llava-hf/llava-1.5-7b-hf", limit=1000)
        run.sql("SELECT key, caption FROM captions LIMIT 3").df()
    """
    from captioner.runs.captioning import caption_images

    if caption_images(options):
        raise UserError(
            f"the run in {options.out} has reached its limit of rejected images or of cost: see the line above; open_run opens "
            "what was committed"
        )
    return open_run(options.out)


def clean_caption(text: str, *, finish_reason: str = "stop") -> CleanedCaption:
    """Cleans a text that a model wrote, as captioning does: `caption`, `status`, and `flags`, the rules that changed it.

    `finish_reason` is why the model ended: with "length", a sentence that was cut off is left out.

    Example:

        clean_caption("The image shows a red owl.").caption
    """
    return clean(text, finish_reason=finish_reason)
