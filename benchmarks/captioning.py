"""Accuracy of llava-mini's captions, and the cost of running on Ray: `python -m benchmarks.captioning`.

Quality: scenes of held-out combinations go through `captioner.run`; the captions are compared with the ground truth. Speed: the
same scenes are captioned by `captioner.run`, by one single-threaded process per core, each with the same work in a plain loop,
without Ray and without commits, and by one such process with all cores, in turn. The start-up is a separate figure.

pipeline_efficiency    images per second of captioner.run over those of one process per core: the most that the cores give
over_one_process       the same over those of one process with all cores, of which a small model leaves some idle
"""

import json
import os
import re
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commands import run_module
from benchmarks.report import print_report
from foundry.command_line import run_command
from foundry.hardware import cpu_environment

_TIMED = "speed-{}"
"""Name of the folder of a timed run."""
_SUMMARY = re.compile(r"start-up ([\d.]+) s, then (\d+) images in ([\d.]+) s")


@dataclass(frozen=True)
class CaptioningConfig:
    """Settings of the benchmark."""

    quality_count: int = 1000
    """Unseen scenes for the quality."""
    speed_count: int = 2048
    """Scenes for the speed."""
    rounds: int = 2
    """Number of times that each side is timed, in turn."""
    model: str = "mini"
    """Model, as for captioner.run."""
    loop_images: str = ""
    """Internal: caption this folder in a plain loop and print the speed."""
    loop_part: int = 0
    """Internal: index of the part of the units that the loop takes."""
    loop_parts: int = 1
    """Internal: number of parts into which the units are divided."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One timed side: seconds until the model is loaded, and images per second from then on."""

    start_up_s: float
    images_per_s: float


def main(config: CaptioningConfig) -> int:
    """Prints the figures; returns 0."""
    if config.loop_images:
        _loop(config)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        figures = _quality(config, Path(directory))
        figures |= _speed(config, Path(directory))
        dtype = run_dtype(Path(directory) / _TIMED.format(0))
    print_report("Captioning", figures, dtype=dtype)
    return 0


def run_dtype(run: Path) -> str:
    """The number format in which the model of a captioning run computed, as its run.json records it."""
    from foundry.storage.folder import Folder
    from foundry.storage.run_record import RunRecord

    record = RunRecord.read(Folder(str(run)))
    assert record is not None, f"{run} is a captioning run"
    return str(record.settings["generation"]["dtype"])


def run_speed(output: str) -> Timing:
    """Speed that captioner.run printed."""
    summary = _SUMMARY.search(output)
    assert summary is not None, output
    return Timing(start_up_s=float(summary[1]), images_per_s=int(summary[2]) / float(summary[3]))


def _quality(config: CaptioningConfig, directory: Path) -> dict[str, float]:
    from dataset_builder.sql.run_files import open_run
    from examples.openmoji.scene_files import TRUTH_FILE
    from examples.openmoji.truth import judge, read_truths

    scenes, run = directory / "unseen", directory / "quality"
    run_module("examples.openmoji.scenes", "--count", str(config.quality_count), "--seed", "7", "--split", "unseen",
          "--out", str(scenes), "--format", "tar")  # fmt: skip
    run_module("captioner.run", "--images", str(scenes), "--out", str(run), *_model(config))
    with open_run(str(run)) as database:
        captions = {row["key"]: row["caption"] for row in database.fetch("SELECT key, caption FROM captions").to_pylist()}
    truths = read_truths(str(scenes / TRUTH_FILE))
    figures = judge([captions[key] for key in truths], list(truths.values()))
    names = ["object_precision", "object_recall", "object_f1", "background", "place", "hallucination_rate"]
    return {name: getattr(figures, name) for name in names}


def _model(config: CaptioningConfig) -> list[str]:
    return ["--model", config.model, "--t5.tokenizer", "mini"]  # scenes are the small world's, whatever describes them


def _speed(config: CaptioningConfig, directory: Path) -> dict[str, float]:
    scenes = directory / "speed"
    run_module(
        "examples.openmoji.scenes", "--count", str(config.speed_count), "--seed", "8", "--out", str(scenes), "--format", "tar"
    )
    loops: list[Timing] = []
    processes: list[Timing] = []
    runs: list[Timing] = []
    words_per_s: list[float] = []
    cores = os.cpu_count() or 1
    for turn in range(config.rounds):
        loop, words = _time_loops(config, scenes, num_processes=1, num_threads=cores)
        loops.append(loop)
        words_per_s.append(words)
        processes.append(_time_loops(config, scenes, num_processes=cores, num_threads=1)[0])
        out = str(directory / _TIMED.format(turn))
        runs.append(run_speed(run_module("captioner.run", "--images", str(scenes), "--out", out, *_model(config))))
    run, loop_speed, all_processes = (
        statistics.median(side.images_per_s for side in sides) for sides in (runs, loops, processes)
    )
    return {
        "pipeline_efficiency": run / all_processes,
        "over_one_process": run / loop_speed,
        "run_images_per_s": run,
        "processes_images_per_s": all_processes,
        "one_process_images_per_s": loop_speed,
        "run_start_up_s": statistics.median(side.start_up_s for side in runs),
        "loop_start_up_s": statistics.median(side.start_up_s for side in loops),
        "tagger_words_per_s": statistics.median(words_per_s),
    }


def _time_loops(config: CaptioningConfig, scenes: Path, *, num_processes: int, num_threads: int) -> tuple[Timing, float]:
    """Plain loops at the same time, each over its part of the units: their speed together, and words/s tagged by one."""
    environment = cpu_environment(num_threads=num_threads)  # what a replica gets
    options = ["--model", config.model, "--loop_images", str(scenes), "--loop_parts", str(num_processes)]

    def loop(part: int) -> dict[str, float]:
        output = run_module("benchmarks.captioning", *options, "--loop_part", str(part), environment=environment)
        figures: dict[str, float] = json.loads(output.splitlines()[-1])
        return figures

    with ThreadPoolExecutor(num_processes) as pool:
        found = list(pool.map(loop, range(num_processes)))
    timing = Timing(start_up_s=max(one["start_up_s"] for one in found), images_per_s=sum(one["images_per_s"] for one in found))
    return timing, found[0]["tagger_words_per_s"]


def _loop(config: CaptioningConfig) -> None:
    """One process: the same decoding, generation, cleaning and counting, unit after unit; prints one line of JSON."""
    from captioner.config import CaptionConfig
    from captioner.runs.captioning import plan_run
    from captioner.runs.job import caption_job
    from dataset_builder.concepts.t5_view import T5Config
    from dataset_builder.concepts.tagger import NounTagger
    from foundry.images.sources import find_sources
    from foundry.storage.folder import Folder

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        run = CaptionConfig(images=[config.loop_images], out=f"{out}/run", model=config.model, t5=T5Config(tokenizer="mini"))
        job = caption_job(run)
        _, plan = plan_run(run, Folder(run.out), job, find_sources(run.images), before=None)
        units = plan.units()[config.loop_part :: config.loop_parts]
        engine = job.load_engine()
        job.warm_up()
        loaded = time.perf_counter()
        captions: list[str] = []
        for unit in units:
            payload, facts = job.prepare(unit, range(unit.num_images))
            tables = job.tables(facts, job.process(engine, payload, one_by_one=False))
            captions += tables["captions"]["caption"].to_pylist()
        ended = time.perf_counter()
    tagger = NounTagger(run.tagger)
    tagger.tag(captions[:8])
    tagging = time.perf_counter()
    tagger.tag(captions)
    num_words = sum(len(caption.split()) for caption in captions)
    figures = {
        "start_up_s": loaded - started,
        "images_per_s": len(captions) / (ended - loaded),
        "tagger_words_per_s": num_words / (time.perf_counter() - tagging),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            CaptioningConfig, main, prog="python -m benchmarks.captioning", example="python -m benchmarks.captioning --rounds 3"
        )
    )
