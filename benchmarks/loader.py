"""Loading of stored features by one rank, on one core: `python -m benchmarks.loader`.

Features at T5-XXL's width of 4096 with captions of 40, 80 and 120 tokens alike, and latents of 256 px, from a warm page cache.
One thread reads batches as `trainer.fit` reads the part of one GPU; nothing is computed on them: int8 is expanded on the GPU.

images_per_s_int8, images_per_s_bf16    images that one core reads in a second
gb_per_s_int8, gb_per_s_bf16            the same in GB
cores_per_gpu                           cores for three times what a GPU reads by the plan, with int8

The part of one rank of a global batch, over a store of --images images (no features are read), in milliseconds:

order_ms, order_whole_ms                samples in their order: of this rank; and of all ranks, as each rank did before
captions_ms, captions_one_by_one_ms     random numbers of the caption choice: at once; and by a generator for each sample
noise_cpu_ms                            noise on one core; on a GPU it is drawn there
"""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import print_report
from foundry.command_line import run_command

_ROUNDS = 9
"""Passes over each store, in turn."""


@dataclass(frozen=True)
class LoaderBenchConfig:
    """Settings of the benchmark."""

    count: int = 960
    """Samples that are stored."""
    gpu_images_per_s: float = 332.0
    """Images a second that a GPU trains on: of an H100 by `python -m trainer.plan --stage alignment --gpu h100 --num_gpus 8`,
    2,657 over 8."""
    batch_size: int = 11_392
    """Images of a global batch, of all ranks."""
    ranks: int = 64
    """GPUs that share it."""
    images: int = 10_000_000
    """Images of the store whose order is timed."""


def main(config: LoaderBenchConfig) -> int:
    """Prints the figures; returns 0."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        figures = loading_figures(config, Path(directory)) | drawing_figures(config)
    print_report("Loading of features", figures)
    return 0


def loading_figures(config: LoaderBenchConfig, directory: Path) -> dict[str, float]:
    """Images and bytes that one core loads in a second."""
    import torch

    from benchmarks.features import LATENT, LENGTHS, WIDTH, write_store

    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(LENGTHS[number % 3], WIDTH, generator=generator) / 4 for number in range(config.count)]
    latents = torch.randn(config.count, 2, *LATENT, generator=generator)
    passes: dict[str, Callable[[], tuple[float, float]]] = {}
    for name, storage in (("int8", "int8"), ("bf16", "bfloat16")):
        write_store(directory / storage, tokens, latents, storage)
        passes[name] = _passes(config, directory / storage)
    rounds = [{name: one() for name, one in passes.items()} for _ in range(_ROUNDS + 1)]  # the first warms the page cache
    figures: dict[str, float] = {}
    for name in passes:
        images_per_s, bytes_per_s = (statistics.median(one[name][side] for one in rounds[1:]) for side in (0, 1))
        figures |= {f"images_per_s_{name}": images_per_s, f"gb_per_s_{name}": bytes_per_s / 1e9}
    return figures | {"cores_per_gpu": 3 * config.gpu_images_per_s / figures["images_per_s_int8"]}


def _passes(config: LoaderBenchConfig, store_folder: Path) -> Callable[[], tuple[float, float]]:
    """A function that reads the next pass over a store: its images and its bytes a second."""
    from trainer.data.loader import Loader
    from trainer.data.order import DataOrder
    from trainer.features.store import FeatureStore

    store = FeatureStore.open(str(store_folder))
    batch_size = max(1, config.batch_size // config.ranks)
    order = DataOrder(store.samples("train"), seed=0, batch_size=batch_size)
    steps, loader = max(1, config.count // batch_size), Loader(store, order, num_workers=0)

    def one_pass() -> tuple[float, float]:
        started, read = time.perf_counter(), 0
        for _ in range(steps):
            read += next(loader).read_bytes
        seconds = time.perf_counter() - started
        return steps * batch_size / seconds, read / seconds

    return one_pass


def drawing_figures(config: LoaderBenchConfig) -> dict[str, float]:
    """Milliseconds of ordering and drawing a rank's part."""
    import numpy as np

    from benchmarks.features import LATENT
    from trainer.data.noise import sample_noise
    from trainer.data.order import DataOrder, caption_draws

    own = config.batch_size // config.ranks
    units = {(32, 32): [(unit, 256) for unit in range(config.images // 256)]}
    orders = {part: DataOrder(units, seed=0, batch_size=config.batch_size) for part in (range(own), range(config.batch_size))}
    for order in orders.values():
        order.batch(0, range(1))  # draws the epoch and the order of the units, once a pass

    def one_by_one(step: int) -> None:
        for position in range(step * own, (step + 1) * own):
            key = hashlib.sha256(f"0\0caption\0{position}".encode()).digest()[:16]
            np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(2)

    def positions(step: int) -> range:
        return range(step * own, (step + 1) * own)

    (part, order), (whole, whole_order) = orders.items()
    return {
        "order_ms": _milliseconds(lambda step: order.batch(step, part)),
        "order_whole_ms": _milliseconds(lambda step: whole_order.batch(step, whole)),
        "captions_ms": _milliseconds(lambda step: caption_draws(seed=0, positions=positions(step))),
        "captions_one_by_one_ms": _milliseconds(one_by_one),
        "noise_cpu_ms": _milliseconds(lambda step: sample_noise(LATENT, seed=0, positions=positions(step))),
    }


def _milliseconds(call: Callable[[int], object]) -> float:
    """Milliseconds of a step, the median of steps 1 to 20."""
    found = []
    for step in range(21):
        started = time.perf_counter()
        call(step)
        found.append((time.perf_counter() - started) * 1000)
    return statistics.median(found[1:])


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            LoaderBenchConfig, main, prog="python -m benchmarks.loader", example="python -m benchmarks.loader --ranks 8"
        )
    )
