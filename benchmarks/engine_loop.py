"""Loop of one engine over a folder of images, without Ray, units and commits, for `benchmarks.engines`.

It also runs in an environment that has vLLM and little else.
Prints one line of JSON: start_up_s, images_per_s, and the captions by file name.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from captioner.engines.endpoint_settings import EndpointSettings
from captioner.engines.generation import CaptionModel, GenerationSettings
from captioner.engines.vllm_settings import VllmSettings
from foundry.command_line import run_command


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the loop."""

    images: str
    """Folder of images."""
    engine: str
    """Engine: transformers, vllm or endpoint."""
    model: str = "mini"
    """Model, as for captioner.run."""
    part: int = 0
    """Index of the part of the images that is captioned."""
    parts: int = 1
    """Number of parts, each of whole batches."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    """Decoding settings."""
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)
    """Settings of the engine endpoint."""
    vllm: VllmSettings = field(default_factory=VllmSettings)
    """Settings of the engine vllm."""


def main(config: LoopConfig) -> int:
    """Captions the images and prints the figures; returns 0."""
    import numpy as np
    from PIL import Image

    from captioner.prompt_sets import PROMPT_SETS

    started = time.perf_counter()
    size = config.generation.batch_size
    files = sorted(file for file in Path(config.images).rglob("*") if file.suffix in (".png", ".jpg"))
    batches = [files[first : first + size] for first in range(0, len(files), size)]
    files = [file for batch in batches[config.part :: config.parts] for file in batch]
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    prompt = PROMPT_SETS["paper"].prompts[0].text
    engine = _model(config).load(config.generation)
    engine.check(images[0], prompt)
    loaded = time.perf_counter()
    keys = [file.stem for file in files]
    said = engine.caption(images, [prompt] * len(images), keys)
    seconds = time.perf_counter() - loaded
    captions = {key: one.text for key, one in zip(keys, said, strict=True)}
    print(json.dumps({"start_up_s": loaded - started, "images_per_s": len(images) / seconds, "captions": captions}))
    return 0


def _model(config: LoopConfig) -> CaptionModel:
    if config.engine == "endpoint":
        from captioner.engines.endpoint_engine import find_served_model

        return find_served_model(config.model, config.endpoint, config.generation)
    from captioner.engines.model_source import resolve_model

    source = resolve_model(config.model)
    if config.engine == "vllm":
        from captioner.engines.vllm_engine import find_vllm_model

        return find_vllm_model(source, config.vllm, python=None)
    from captioner.engines.transformers_engine import TransformersModel

    return TransformersModel(**vars(source))


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            LoopConfig,
            main,
            prog="python -m benchmarks.engine_loop",
            example="python -m benchmarks.engine_loop --images scenes --engine transformers",
        )
    )
