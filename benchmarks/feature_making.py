"""Speed of making features: trainer.precompute on Ray, bare forward passes, the original scheme; see benchmarks/features.py.

Each side is timed in its own processes, in turn, with all cores and the same models and precision. What is timed:
- on Ray, two runs of different lengths: what the longer one takes more is the time of the samples that it has more. So start-up
  and loading fall out, and nothing that the pipeline does ahead is left out;
- bare, the forward passes of the same units in the same batches, nothing read or written: by one single-threaded process per
  core, at the same time and each over its part of the units, and by one process with all cores;
- the original, a sample at a time, captions padded to the limit, the files written as its tools write them.
"""

import json
import os
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.commands import run_module
from foundry.command_line import run_command
from foundry.hardware import cpu_environment
from foundry.units.cluster import RaySettings

if TYPE_CHECKING:
    from model.encoders.text_encoder import TextEncoder
    from model.encoders.vae import VAE
    from trainer.features.buckets import Pixels
    from trainer.features.config import PrecomputeConfig

LIMIT = 120
LENGTHS = (40, 80, 120)
SIDE_PX = 256
SHORT_UNITS = 2
"""Units of the shorter run on Ray."""
ORIGINAL_SAMPLES = 24
BATCH_TOKENS, BATCH_IMAGES = 1024, 4
"""Sizes of the encoders' batches: enough to keep the cores busy, few enough to pad little and to stay in their caches."""


@dataclass(frozen=True)
class FeatureMakingConfig:
    """Settings of one timed side in its own process."""

    root: str
    """Folder with the models and the data set."""
    side: Literal["bare", "original"] = "bare"
    """Scheme to time."""
    units: int = 8
    """Units that are timed, as many as the longer run on Ray has more than the shorter one."""
    unit_size: int = 48
    """Samples of a unit."""
    part: int = 0
    """Index of the part of the units that this process takes."""
    parts: int = 1
    """Number of parts into which the units are divided."""


def making_figures(directory: Path, *, units: int, unit_size: int, rounds: int, cpus_per_replica: int) -> dict[str, float]:
    """Samples per second of the sides, the medians of the rounds, and their ratios."""
    root = directory / "making"
    _save_models(root)
    for count in (SHORT_UNITS, SHORT_UNITS + units):
        _write_dataset(root / f"dataset-{count}", count=count * unit_size)
    cores = os.cpu_count() or 1
    speeds: dict[str, list[float]] = {"ray": [], "processes": [], "bare": [], "original": []}
    for turn in range(rounds):
        short, long = (
            _seconds_on_ray(
                _precompute_config(
                    root,
                    root / f"features-{count}-{turn}",
                    units=count,
                    unit_size=unit_size,
                    cpus_per_replica=cpus_per_replica,
                )
            )
            for count in (SHORT_UNITS, SHORT_UNITS + units)
        )
        speeds["ray"].append(units * unit_size / (long - short))
        options = ["--root", str(root), "--units", str(units), "--unit_size", str(unit_size)]
        speeds["processes"].append(_bare_speed(options, num_processes=min(cores, units), num_threads=1))
        speeds["bare"].append(_bare_speed(options, num_processes=1, num_threads=cores))
        speeds["original"].append(_speed_of([*options, "--side", "original"], num_threads=cores))
    ray, processes, bare, original = (statistics.median(values) for values in speeds.values())
    return {
        "precompute_efficiency": ray / processes,
        "precompute_over_one_process": ray / bare,
        "precompute_ratio": ray / original,
        "precompute_samples_per_s": ray,
        "processes_samples_per_s": processes,
        "one_process_samples_per_s": bare,
        "original_scheme_samples_per_s": original,
    }


def making_dtype(directory: Path) -> str:
    """The number formats in which the encoders of a timed run on Ray computed, as its features.json records them."""
    from foundry.storage.folder import Folder
    from trainer.features.info import read_info

    store = next((directory / "making").glob(f"features-{SHORT_UNITS}-*/alignment/{SIDE_PX}"))
    info = read_info(Folder(str(store)))
    same = info.vae_dtype == info.text_encoder_dtype
    return info.vae_dtype if same else f"VAE {info.vae_dtype}, T5 {info.text_encoder_dtype}"


def _bare_speed(options: list[str], *, num_processes: int, num_threads: int) -> float:
    """Samples per second of processes that run the forward passes at the same time, each of its part of the units."""

    def speed(part: int) -> float:
        return _speed_of([*options, "--part", str(part), "--parts", str(num_processes)], num_threads=num_threads)

    with ThreadPoolExecutor(num_processes) as pool:
        return sum(pool.map(speed, range(num_processes)))


def _speed_of(options: list[str], *, num_threads: int) -> float:
    output = run_module("benchmarks.feature_making", *options, environment=cpu_environment(num_threads=num_threads))
    found: float = json.loads(output.splitlines()[-1])["samples_per_s"]
    return found


def main(config: FeatureMakingConfig) -> int:
    """Times one side and prints one line of JSON; returns 0."""
    from trainer.features.job import Encoders
    from trainer.features.preparation import prepare

    root = Path(config.root)
    out = root / f"{config.side}-{os.getpid()}"
    settings = _precompute_config(root, out, units=SHORT_UNITS + config.units, unit_size=config.unit_size)
    prepared = prepare(settings, describe=Encoders.describe)
    vae, encoder = prepared.job.encoders.load_vae(), prepared.job.encoders.load_text_encoder()
    seconds, num_samples = 0.0, 0
    warm_up, *timed = prepared.units[: config.units + 1]
    for number, unit in enumerate([warm_up, *timed[config.part :: config.parts]]):
        payload, _ = prepared.job.prepare(unit, range(unit.num_images))
        pixels, texts = payload.pixels[SIDE_PX], list(payload.texts)
        started = time.perf_counter()
        if config.side == "bare":
            _bare(pixels, texts, vae, encoder)
        else:
            _original_scheme(pixels, texts, vae, encoder, out=out)
        if number:  # the first unit warms up
            seconds, num_samples = seconds + time.perf_counter() - started, num_samples + len(texts)
        if config.side == "original" and num_samples >= ORIGINAL_SAMPLES:
            break
    print(json.dumps({"samples_per_s": num_samples / seconds}))
    return 0


def _bare(pixels: "Pixels", texts: list[str], vae: "VAE", encoder: "TextEncoder") -> None:
    """The forward passes alone, in the batches in which trainer.precompute makes them."""
    import torch

    from trainer.features.buckets import to_signed

    for images in torch.from_numpy(pixels).split(BATCH_IMAGES):
        vae.encode(to_signed(images))
    encoder.encode(texts)


def _original_scheme(pixels: "Pixels", texts: list[str], vae: "VAE", encoder: "TextEncoder", *, out: Path) -> None:
    """PixArt-alpha's tools/extract_features.py: one sample at a time, captions padded, a compressed file for each."""
    import numpy as np
    import torch

    from trainer.features.buckets import to_signed

    for number, (image, text) in enumerate(zip(pixels, texts, strict=True)):
        found = vae.encode(to_signed(torch.from_numpy(image[None])))
        np.save(
            out / f"{number}.npy",
            torch.cat([part for part in (found.mean, found.log_variance) if part is not None], dim=1)[0].numpy(),
        )
        asked = encoder.tokenizer(text.lower(), padding="max_length", max_length=LIMIT, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            tokens = encoder.model(input_ids=asked.input_ids, attention_mask=asked.attention_mask).last_hidden_state
        features = tokens.float().numpy()
        np.savez_compressed(out / f"{number}.npz", caption_feature=features, attention_mask=asked.attention_mask.numpy())


def _save_models(root: Path) -> None:
    """Random weights: two of T5-XXL's 24 layers, with the small tokenizer; SD's VAE at an eighth of its width.

    Narrow convolutions are slow on CPUs. At this width the VAE takes about a quarter of T5's time, as the real ones' operations
    are shared out (0.27 to 1.1 TFLOP for 256 px and 120 tokens).
    """
    import shutil

    import torch
    from diffusers import AutoencoderKL
    from transformers import T5Config, T5EncoderModel

    from model.encoders.frozen_parts import find_part

    torch.manual_seed(0)
    part = find_part("mini", "text_encoder")
    sizes = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 2}
    model = T5EncoderModel(T5Config.from_pretrained(part.folder, **sizes))
    model.to(torch.bfloat16).save_pretrained(root / "t5")
    for path in part.tokenizer_folder.glob("*token*.json"):
        shutil.copy(path, root / "t5")
    channels = (16, 32, 64, 64)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(
        block_out_channels=channels, layers_per_block=2, norm_num_groups=8, sample_size=SIDE_PX, **blocks
    ).save_pretrained(root / "vae")


def _write_dataset(folder: Path, *, count: int) -> None:
    """A data set of images with captions of LENGTHS tokens."""
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    from dataset_builder.schema import DATASET_VERSION, SAMPLE_CAPTION, SAMPLES
    from foundry.storage.folder import Folder
    from foundry.units.commits import table_bytes

    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    empty: dict[str, Any] = {field.name: "" for field in SAMPLE_CAPTION}
    empty |= {field.name: 0 for field in SAMPLE_CAPTION if pa.types.is_primitive(field.type)}
    rows = []
    for number in range(count):
        path = folder / "images" / f"{number}.jpg"
        corners = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(corners).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(path)
        caption = {**empty, "prompt": "dense", "caption": "owl " * (LENGTHS[number % 3] - 1)}
        row = {"key": str(number), "run": "", "split": "train", "uri": str(path), "content_hash": "", "bucket": "1.0"}
        rows.append(row | {"width": SIDE_PX, "height": SIDE_PX, "captions": [caption], "nouns": [[]]})
    name = "samples/train/part-00000.parquet"
    Folder(str(folder)).write(name, table_bytes(pa.Table.from_pylist(rows, schema=SAMPLES)))
    files = [{"kind": "samples", "split": "train", "path": name, "rows": count}]
    record = {"schema_version": DATASET_VERSION, "runs": [], "files": files}
    (folder / "dataset.json").write_text(json.dumps(record))


def _precompute_config(root: Path, out: Path, *, units: int, unit_size: int, cpus_per_replica: int = 1) -> "PrecomputeConfig":
    from model.encoders.text_encoder import TextEncoderConfig
    from model.encoders.vae import VAEConfig
    from trainer.features.config import PrecomputeConfig

    return PrecomputeConfig(
        dataset=str(root / f"dataset-{units}"),
        out=str(out),
        stage="alignment",
        resolution=[SIDE_PX],
        square=True,
        unit_size=unit_size,
        batch_px=BATCH_IMAGES * SIDE_PX**2,
        vae=VAEConfig(name=str(root / "vae"), sliced=False),
        text_encoder=TextEncoderConfig(name=str(root / "t5"), max_caption_tokens=LIMIT, max_batch_tokens=BATCH_TOKENS),
        ray=RaySettings(cpus_per_replica=cpus_per_replica),
    )


def _seconds_on_ray(config: "PrecomputeConfig") -> float:
    """Seconds that trainer.precompute reports, once the encoders are loaded."""
    settings = Path(f"{config.out}.json")  # JSON is YAML
    settings.write_text(json.dumps(asdict(config)))
    found = re.search(r"then \d+ images in ([\d.]+) s", run_module("trainer.precompute", "--config", str(settings)))
    assert found, f"the summary of foundry.units.run in the output for {settings}"
    return float(found[1])


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            FeatureMakingConfig,
            main,
            prog="python -m benchmarks.feature_making",
            example="python -m benchmarks.feature_making --root models --side bare",
        )
    )
