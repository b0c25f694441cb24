"""Size of stored features, and the speed of reading and making them: `python -m benchmarks.features`.

Storage and reading at T5-XXL's width of 4096, with captions of 40, 80 and 120 tokens alike. The original layout is one
compressed .npz with the caption padded in float32 and one .npy with the latents for each sample (PixArt-alpha's
tools/extract_features.py). The values are bf16, held in float32 there, as encoders in bf16 give them: zlib takes half of such a
file off, of float32 noise nearly nothing. All sides read the same samples in turn, from a warm page cache, in one thread.

storage_ratio            bytes of a caption of the original layout, compressed, over ours in bf16
read_ratio               samples per second of ours over the original's, most of whose time is zlib
read_ratio_uncompressed  the same over the original layout in .npz without compression

Making: trainer.precompute on Ray against the bare forward passes of the same models, by one single-threaded process per core
(precompute_efficiency) and by one process with all cores (precompute_over_one_process), and against the original scheme, one
sample at a time, padded to the limit, files compressed, in the same number format (precompute_ratio). The models have random
weights and are large enough for a batch to take about a second. benchmarks/feature_making.py says what is timed.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import print_report
from foundry.command_line import run_command

if TYPE_CHECKING:
    import torch

    from foundry.units.commits import Commit
    from trainer.features.store import FeatureStore, SampleRequest

WIDTH = 4096
LIMIT = 120
LENGTHS = (40, 80, 120)
LATENT = (4, 32, 32)
"""Latents of an image of 256 x 256."""
_ORIGINALS = ("original", "uncompressed")


@dataclass(frozen=True)
class FeaturesBenchConfig:
    """Settings of the benchmark."""

    count: int = 240
    """Samples that are stored and read."""
    batch_size: int = 30
    """Samples of a batch that is read."""
    rounds: int = 5
    """Number of times that each side of reading is timed, in turn."""
    units: int = 8
    """Units whose making is timed, after two that warm up."""
    unit_size: int = 48
    """Samples of such a unit."""
    cpus_per_replica: int = 1
    """Cores of a replica on Ray, which holds both VAE and T5; the machine gets as many replicas as its cores allow."""
    making_rounds: int = 2
    """Number of times that each side of making is timed, in turn."""
    making: bool = True
    """Time precompute too, which takes minutes."""


def main(config: FeaturesBenchConfig) -> int:
    """Prints the figures; returns 0."""
    dtype = None  # storing and reading compute nothing
    with tempfile.TemporaryDirectory() as directory:
        figures = storage_figures(config, Path(directory))
        if config.making:
            from benchmarks.feature_making import making_dtype, making_figures

            figures |= making_figures(
                Path(directory),
                units=config.units,
                unit_size=config.unit_size,
                rounds=config.making_rounds,
                cpus_per_replica=config.cpus_per_replica,
            )
            dtype = making_dtype(Path(directory))
    print_report("Features", figures, dtype=dtype)
    return 0


def storage_figures(config: FeaturesBenchConfig, directory: Path) -> dict[str, float]:
    """Bytes of a stored caption, and the speed of reading against the original layout."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    tokens = [_encoded((LENGTHS[place % 3], WIDTH), generator) / 4 for place in range(config.count)]
    latents = _encoded((config.count, 2, *LATENT), generator)
    stores = {storage: write_store(directory / storage, tokens, latents, storage) for storage in ("bfloat16", "int8")}
    originals = {name: _write_original(directory / name, tokens, latents, compressed=name == "original") for name in _ORIGINALS}
    num_tokens = sum(len(one) for one in tokens)
    payload = {"bfloat16": num_tokens * WIDTH * 2, "int8": num_tokens * (WIDTH + 4)}
    sizes = {storage: sum(commit.files["captions"].num_bytes for commit in commits) for storage, commits in stores.items()}
    overhead = max((sizes[storage] - payload[storage]) / config.count for storage in sizes)
    speeds = _reading_speeds(config, directory)
    return {
        "bytes_bf16": sizes["bfloat16"] / config.count,
        "bytes_int8": sizes["int8"] / config.count,
        "bytes_original": float(LIMIT * WIDTH * 4),
        "bytes_original_compressed": originals["original"] / config.count,
        "storage_ratio": originals["original"] / sizes["bfloat16"],
        "overhead_bytes": overhead,
        "read_ratio": speeds["bfloat16"] / speeds["original"],
        "read_ratio_uncompressed": speeds["bfloat16"] / speeds["uncompressed"],
        "read_ratio_int8": speeds["int8"] / speeds["original"],
        "read_samples_per_s": speeds["bfloat16"],
        "original_samples_per_s": speeds["original"],
    }


def _encoded(shape: "Sequence[int]", generator: "torch.Generator") -> "torch.Tensor":
    """Values as an encoder in bf16 gives them, held in float32."""
    import torch

    return torch.randn(*shape, generator=generator).bfloat16().float()


def write_store(folder: Path, tokens: "Sequence[torch.Tensor]", latents: "torch.Tensor", storage: "str") -> "list[Commit]":
    """A store of units of 60 samples, as trainer.precompute writes it; returns its commits."""
    import json
    from dataclasses import asdict

    import torch
    from safetensors.torch import save

    from foundry.storage.folder import Folder
    from foundry.units.commits import commit_unit, read_commits
    from model.dit import Captions
    from model.encoders.vae import LatentDistribution
    from model.formats.checkpoint import PartConfig
    from trainer.features.info import FEATURES_FILE, NULL_CAPTION_FILE, NULL_CAPTION_NAME, FeaturesInfo
    from trainer.features.plan import PlannedUnit
    from trainer.features.tables import SampleFacts, captions_table, latents_table

    store, unit_size = Folder(str(folder)), 60
    info = FeaturesInfo(
        stage="alignment",
        resolution=256,
        buckets=((256, 256),),
        latent_channels=LATENT[0],
        downsampling=8,
        scaling_factor=0.18215,
        shift_factor=0.0,
        vae=PartConfig(name="random"),
        text_encoder=PartConfig(name="random"),
        caption_storage="int8" if storage == "int8" else "bfloat16",
        caption_width=WIDTH,
        max_caption_tokens=LIMIT,
    )
    store.write(FEATURES_FILE, info.to_json())
    store.write(NULL_CAPTION_FILE, save({NULL_CAPTION_NAME: tokens[0][:1].bfloat16()}))
    units = []
    for number, start in enumerate(range(0, len(tokens), unit_size)):
        part = list(tokens[start : start + unit_size])
        size = len(part)
        unit = PlannedUnit(number=number, part="", row_group=0, num_images=size, split="train", buckets={256: (256, 256)})
        facts = [
            SampleFacts(key=f"sa_{start + row}", height=256, width=256, class_label=None, captions=(("dense", "text"),))
            for row in range(size)
        ]
        both = latents[start : start + size]
        captions = Captions(tokens=torch.cat(part), lengths=torch.tensor([len(one) for one in part]))
        tables = {
            "latents": latents_table(facts, LatentDistribution(both[:, 0], both[:, 1])),
            "captions": captions_table([["dense"]] * size, captions, as_int8=storage == "int8"),
        }
        commit_unit(store, run_id="benchmark", unit=unit, tables=tables, arrow=list(tables))
        units.append(asdict(unit))
    store.write("plan/0.json", json.dumps({"units": units, "validation_share": 0.0}).encode())
    return read_commits(store)


def _write_original(folder: Path, tokens: "Sequence[torch.Tensor]", latents: "torch.Tensor", *, compressed: bool) -> int:
    """The original layout; returns the bytes of its captions. Its padded positions hold features too: T5 computes them."""
    import numpy as np
    import torch

    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    for number, (one, both) in enumerate(zip(tokens, latents, strict=True)):
        padded = torch.cat([one, _encoded((LIMIT - len(one), WIDTH), generator) / 4])
        mask = (torch.arange(LIMIT) < len(one)).short()
        save = np.savez_compressed if compressed else np.savez
        save(folder / f"{number}.npz", caption_feature=padded[None].numpy(), attention_mask=mask[None].numpy())
        np.save(folder / f"{number}.npy", both.flatten(0, 1).numpy())
    return sum(path.stat().st_size for path in folder.glob("*.npz"))


def _reading_speeds(config: FeaturesBenchConfig, directory: Path) -> dict[str, float]:
    """Samples per second of each layout, the median of the rounds."""
    from trainer.features.store import FeatureStore, SampleRequest

    stores = {storage: FeatureStore.open(str(directory / storage)) for storage in ("bfloat16", "int8")}
    units = stores["bfloat16"].samples("train")[LATENT[1:]]
    requests = [SampleRequest(unit=unit, row=row, caption=0) for unit, rows in units for row in range(rows)]
    times: dict[str, list[float]] = {"bfloat16": [], "int8": [], **{name: [] for name in _ORIGINALS}}
    for _ in range(config.rounds + 1):  # the first round warms the page cache
        for side, seconds in times.items():
            started = time.perf_counter()
            if side in _ORIGINALS:
                _read_original(directory / side, config)
            else:
                _read_store(stores[side], requests, config.batch_size)
            seconds.append(time.perf_counter() - started)
    return {side: config.count / statistics.median(seconds[1:]) for side, seconds in times.items()}


def _read_store(store: "FeatureStore", requests: "Sequence[SampleRequest]", batch_size: int) -> None:
    for start in range(0, len(requests), batch_size):
        store.read(requests[start : start + batch_size])


def _read_original(folder: Path, config: FeaturesBenchConfig) -> None:
    """Reads like the original data set with the default collation: every sample's two files, then stacked."""
    import numpy as np
    import torch

    for start in range(0, config.count, config.batch_size):
        latents, captions, masks = [], [], []
        for number in range(start, start + config.batch_size):
            latents.append(torch.from_numpy(np.load(folder / f"{number}.npy")))
            with np.load(folder / f"{number}.npz") as file:
                captions.append(torch.from_numpy(file["caption_feature"]))
                masks.append(torch.from_numpy(file["attention_mask"]))
        torch.stack(latents), torch.stack(captions), torch.stack(masks)


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            FeaturesBenchConfig, main, prog="python -m benchmarks.features", example="python -m benchmarks.features --rounds 3"
        )
    )
