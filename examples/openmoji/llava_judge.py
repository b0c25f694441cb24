"""The first judge of images: llava-mini describes them, and examples/openmoji/truth.py reads what it says."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from captioner.engines.generation import GenerationSettings
from captioner.engines.model_source import resolve_model
from captioner.engines.transformers_engine import TransformersEngine
from examples.openmoji.checks import Reading
from examples.openmoji.llava_mini import PROMPTS
from examples.openmoji.truth import read_caption

MODEL = "mini"


class LlavaReader:
    """Captions images of the small world, greedily and in float32: a caption does not depend on its batch."""

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine

    def __call__(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[Reading]:
        """Captions by llava-mini of each image, uint8 RGB (H, W, 3)."""
        said = self._engine.caption(images, [PROMPTS["dense"]] * len(images), [""] * len(images))
        return [Reading(read=read_caption(one.text), seen=one.text) for one in said]

    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
        """The vision tower's last features, averaged over the patches: (N, D)."""
        import torch

        engine = self._engine
        pixels = [torch.tensor(image).permute(2, 0, 1) for image in images]  # (3, H, W)
        inputs = engine.processor.image_processor(images=pixels, return_tensors="pt")["pixel_values"].to(engine.device)
        with torch.inference_mode():
            patches = engine.model.model.vision_tower(inputs).last_hidden_state[:, 1:]  # (N, patches, D)
        features: npt.NDArray[np.float64] = patches.mean(1).double().cpu().numpy()
        return features


def load_llava_reader(model: str = MODEL) -> LlavaReader:
    """Raises UserError if the model is not there."""
    return LlavaReader(TransformersEngine(resolve_model(model), GenerationSettings(dtype="float32", max_new_tokens=128)))


def llava_version(model: str = MODEL) -> str:
    """A fingerprint of the model's files."""
    return resolve_model(model).revision
