"""Load test of the image server against one pipeline called in a loop: `python -m benchmarks.image_server`.

Both draw the same prompts and seeds, one image a request, with the same settings, in turn: the pipeline in this process, then
`model.serve`, asked by 1, 8 and 32 clients at a time, each of which asks again when it has its answer.

images_per_s_8       images a second with 8 clients, likewise with 1 and 32; loop_images_per_s: the pipeline's
throughput_ratio_8   images_per_s_8 over loop_images_per_s, within a round
p50_s_8, p95_s_8     time from a request to its answer; loop_p50_s, loop_p95_s: of a call of the pipeline
largest_difference   of a pixel of the server's images from the pipeline's, of 255
"""

import base64
import io
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.report import print_report
from foundry.command_line import run_command
from foundry.errors import UserError

if TYPE_CHECKING:
    import numpy as np

CONCURRENCIES = (1, 8, 32)


@dataclass(frozen=True)
class ImageServerConfig:
    """Settings of the benchmark."""

    checkpoint: str = "mini"
    """Checkpoint that draws."""
    count: int = 96
    """Number of images of each side in a round."""
    rounds: int = 3
    """Number of times that each side is timed, in turn."""
    num_inference_steps: int = 20
    """Number of steps of the sampler."""
    batch_size: int = 8
    """Number of images that the server draws together."""

    def __post_init__(self) -> None:
        if self.count < 2 or min(self.rounds, self.num_inference_steps, self.batch_size) < 1:
            raise ValueError("count must be 2 or more, rounds, num_inference_steps and batch_size 1 or more")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A side in one round."""

    seconds: float
    each_s: list[float]
    """Seconds from each request to its answer."""
    images: list[Any]
    """Pixels (H, W, 3) uint8, or a PNG in base64."""


def main(config: ImageServerConfig) -> int:
    """Prints the figures; returns 0."""
    prompts = _prompts(config)
    draw, dtype = _loop(config)
    timed: dict[str, list[Timed]] = defaultdict(list)
    draw((0, prompts[0]))
    with _server(config) as url, httpx.Client(timeout=600, limits=httpx.Limits(max_connections=None)) as client:

        def ask(numbered: tuple[int, str]) -> Any:
            seed, prompt = numbered
            body = {"prompt": prompt, "seed": seed, "steps": config.num_inference_steps}
            answer = client.post(f"{url}/images/generations", json=body)
            answer.raise_for_status()
            return answer.json()["data"][0]["b64_json"]

        for _ in range(config.rounds):
            timed["loop"].append(_timed(draw, prompts, concurrency=1))
            for concurrency in CONCURRENCIES:
                found = _timed(ask, prompts, concurrency=concurrency)
                timed[str(concurrency)].append(_decoded(found))
            speeds = ", ".join(f"{name} {len(prompts) / rounds[-1].seconds:.2f}" for name, rounds in timed.items())
            print(f"images a second: {speeds}", flush=True)
    print_report("Image server", _figures(timed), dtype=dtype)
    return 0


def _prompts(config: ImageServerConfig) -> list[str]:
    from examples.openmoji.prompts import CATEGORIES, draw_prompts

    drawn = draw_prompts(count=-(-config.count // len(CATEGORIES)), seed=0)
    return [one.text for one in drawn][: config.count]


def _loop(config: ImageServerConfig) -> tuple[Callable[[tuple[int, str]], "np.ndarray"], str]:
    """A pipeline that draws one image a call, and its number format."""
    import numpy as np

    from model.generation.pipeline import open_pipeline
    from model.generation.pipeline_parts import RuntimeConfig
    from model.generation.request import GenerationRequest
    from model.sampling import SamplingConfig

    pipeline = open_pipeline(config.checkpoint, runtime=RuntimeConfig(batch_size=1))
    sampling = SamplingConfig(num_inference_steps=config.num_inference_steps)

    def draw(numbered: tuple[int, str]) -> "np.ndarray":
        seed, prompt = numbered
        return np.asarray(pipeline(GenerationRequest(prompts=(prompt,), seed=seed, sampling=sampling))[0].image)

    return draw, str(pipeline.runtime.dtype)


@contextmanager
def _server(config: ImageServerConfig) -> Iterator[str]:
    """The base URL of a server that runs until the block ends. Raises UserError where it does not start."""
    command = [sys.executable, "-m", "model.serve", "--checkpoint", config.checkpoint, "--port", "0"]
    command += ["--batch_size", str(config.batch_size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        try:
            line = next((line for line in process.stdout if "http://" in line), None)
            if line is None:
                raise UserError("model.serve did not start: its error is above")
            yield line.split()[-1]
        finally:
            process.terminate()


def _timed(draw: Callable[[tuple[int, str]], Any], prompts: Sequence[str], *, concurrency: int) -> Timed:
    """Each prompt drawn once, `concurrency` at a time."""

    def measured(numbered: tuple[int, str]) -> tuple[float, Any]:
        begun = time.perf_counter()
        image = draw(numbered)
        return time.perf_counter() - begun, image

    with ThreadPoolExecutor(concurrency) as threads:
        begun = time.perf_counter()
        found = list(threads.map(measured, enumerate(prompts)))
        seconds = time.perf_counter() - begun
    return Timed(seconds=seconds, each_s=[each_s for each_s, _ in found], images=[image for _, image in found])


def _decoded(timed: Timed) -> Timed:
    """The same with pixels in place of encoded PNGs."""
    import numpy as np
    from PIL import Image

    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image in timed.images]
    return Timed(seconds=timed.seconds, each_s=timed.each_s, images=images)


def _figures(timed: dict[str, list[Timed]]) -> dict[str, float]:
    """Medians over the rounds; ratios within a round; percentiles of the requests of all rounds."""
    loops = timed.pop("loop")
    figures = {"loop_images_per_s": _speed(loops)} | _percentiles("loop_p50_s", "loop_p95_s", loops)
    difference = 0
    for name, rounds in timed.items():
        pairs = list(zip(loops, rounds, strict=True))
        figures[f"images_per_s_{name}"] = _speed(rounds)
        figures[f"throughput_ratio_{name}"] = statistics.median(loop.seconds / one.seconds for loop, one in pairs)
        figures |= _percentiles(f"p50_s_{name}", f"p95_s_{name}", rounds)
        images = [pair for loop, one in pairs for pair in zip(loop.images, one.images, strict=True)]
        difference = max(difference, *(int(abs(own.astype(int) - other).max()) for own, other in images))
    return figures | {"largest_difference": difference}


def _speed(rounds: Sequence[Timed]) -> float:
    return statistics.median(len(one.images) / one.seconds for one in rounds)


def _percentiles(median: str, highest: str, rounds: Sequence[Timed]) -> dict[str, float]:
    each_s = [seconds for one in rounds for seconds in one.each_s]
    return {median: statistics.median(each_s), highest: statistics.quantiles(each_s, n=20)[-1]}


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            ImageServerConfig,
            main,
            prog="python -m benchmarks.image_server",
            example="python -m benchmarks.image_server --count 96 --rounds 3",
        )
    )
