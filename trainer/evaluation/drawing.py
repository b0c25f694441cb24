"""How the images of an evaluation are drawn, in this process or shard by shard on Ray's workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from model.generation.image_files import is_drawn, save_png
from model.generation.pipeline import STAGED_IMAGES, Pipeline, open_pipeline
from model.generation.request import GenerationRequest

if TYPE_CHECKING:
    from trainer.evaluation.config import EvaluateConfig

_BATCHES_PER_SHARD = 4


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is to be drawn and where to, as a worker needs it."""

    config: "EvaluateConfig"
    request: GenerationRequest
    paths: tuple[Path, ...]
    """A file for each image of the request, in its order."""
    settings: Mapping[str, Any]
    """What is recorded in each beside prompt and seed."""

    def missing(self, places: Sequence[int]) -> list[int]:
        """Those of the images at these places that are not there, or were drawn from something else."""
        return [place for place in places if not is_drawn(self.paths[place], self._values(place))]

    def open_pipeline(self) -> Pipeline:
        """Raises foundry.command_line.UserError for a checkpoint that is not whole."""
        config = self.config
        assert config.checkpoint is not None
        return open_pipeline(config.checkpoint, runtime=config.runtime, text_encoder=config.text_encoder, vae=config.vae)

    def draw(self, pipeline: Pipeline, places: Sequence[int], *, progress: bool = False) -> None:
        """Draws the images at these places; each is kept as it gets done."""
        for place, drawn in zip(places, pipeline.stream(self.request, images=places, progress=progress), strict=True):
            assert isinstance(drawn.image, Image.Image)
            save_png(drawn.image, self.paths[place], self._values(place))

    def shards(self, places: Sequence[int]) -> list[Sequence[int]]:
        """The places in pieces of a few batches; neighbours stay together, since they share prompts."""
        runtime = self.config.runtime
        size = STAGED_IMAGES if runtime.staged else _BATCHES_PER_SHARD * runtime.batch_size
        return [places[start : start + size] for start in range(0, len(places), size)]

    def _values(self, place: int) -> dict[str, Any]:
        prompts = self.request.prompts
        assert prompts is not None
        prompt = prompts[self.request.caption_index(place)]
        return {"prompt": prompt, "seed": self.request.image_seed(place), "settings": self.settings}
