"""Drawing of an evaluation's images, in this process or shard by shard on Ray's workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.generation.drawing import draw_into, missing_files, rewritten_value
from model.generation.image_files import ImageFile
from model.generation.pipeline import STAGED_IMAGES, Pipeline, open_pipeline
from model.generation.request import GenerationRequest
from model.lora.settings import parse_choices
from model.rewriting.rewriting import Rewriting

if TYPE_CHECKING:
    from trainer.evaluation.config import EvaluateConfig

_BATCHES_PER_SHARD = 4


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The images to draw and their files, as a worker needs them."""

    config: "EvaluateConfig"
    request: GenerationRequest
    paths: tuple[Path, ...]
    """A file for each image of the request, in its order."""
    settings: Mapping[str, Any]
    """Settings that are recorded in each file besides prompt and seed."""
    rewriting: Rewriting | None = None
    """The prompts as they are drawn; None: as they are written."""

    @property
    def drawn_request(self) -> GenerationRequest:
        """The request with its prompts as they are drawn."""
        if self.rewriting is None:
            return self.request
        return replace(self.request, prompts=self.rewriting.drawn(self.request.prompts or ()))

    def missing(self, indices: Sequence[int]) -> list[int]:
        """The images of these indices that are missing, or were drawn with other settings."""
        return list(missing_files({index: self._file(index) for index in indices}))

    def open_pipeline(self) -> Pipeline:
        """Opens the checkpoint's pipeline. Raises UserError for a checkpoint that is not complete."""
        config = self.config
        assert config.checkpoint is not None
        return open_pipeline(
            config.checkpoint,
            runtime=config.runtime,
            text_encoder=config.text_encoder,
            vae=config.vae,
            lora=parse_choices(config.lora),
        )

    def draw(self, pipeline: Pipeline, indices: Sequence[int], *, progress: bool = False) -> None:
        """Draws the images of these indices; each is saved as soon as it is done."""
        for _ in draw_into(pipeline, self.drawn_request, {index: self._file(index) for index in indices}, progress=progress):
            pass

    def shards(self, indices: Sequence[int]) -> list[Sequence[int]]:
        """The indices in shards of a few batches; neighbours stay together, since they share prompts."""
        runtime = self.config.runtime
        size = STAGED_IMAGES if runtime.staged else _BATCHES_PER_SHARD * runtime.batch_size
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    def _file(self, index: int) -> ImageFile:
        prompts = self.request.prompts
        assert prompts is not None
        prompt = prompts[self.request.caption_index(index)]
        values = {"prompt": prompt, "seed": self.request.image_seed(index), "settings": self.settings}
        values |= rewritten_value(prompt, self.rewriting)
        return ImageFile(self.paths[index], values)
