"""Engines of the captioner compared on the same scenes: `python -m benchmarks.engines`.

Each engine captions them twice: by `captioner.run`, with Ray, units, commits and counting, and in its own loop, which has none
of these (benchmarks/engine_loop.py; the transformers engine in one single-threaded process per core, as its replicas). vLLM
runs where an environment has it; without one, what needs it is left out, and a line says so. All compute in float32, so that
captions are equal.

transformers_images_per_s   captioner.run --engine transformers
vllm_images_per_s           captioner.run --engine vllm
endpoint_images_per_s       captioner.run --engine endpoint, asking vLLM's own server
serve_images_per_s          the same, asking captioner.serve
endpoint_share_of_vllm      endpoint_images_per_s over vllm_images_per_s
units_overhead              the largest share that a run loses against its engine's own loop, of the engines above
captions_equal              share of the scenes that have one and the same caption by all engines, in runs and loops
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.captioning import run_dtype, run_speed
from benchmarks.commands import run_module
from benchmarks.report import print_report
from captioner.engines.model_source import MINI
from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.hardware import cpu_environment

_FLOAT32 = ["--generation.dtype", "float32"]
_SHORT = ["--vllm.max_model_len", "512", "--vllm.args", '{"enforce_eager": true}']
_VLLM_SERVER = ["--served-model-name", "mini", "--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
_VLLM_SERVER += ["--limit-mm-per-prompt", '{"image": 1}', "--generation-config", "vllm", "--host", "127.0.0.1"]
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "no_proxy": "127.0.0.1"}
_OVERLAPPING = ("--ray.num_replicas", "2", "--unit_size", "125")
"""Two replicas ask the server at once, so that it has the next unit's requests while the last ones of a unit are answered."""
_START_S = 600.0
MODEL = "mini"


@dataclass(frozen=True)
class EnginesConfig:
    """Settings of the benchmark."""

    count: int = 500
    """Number of scenes."""
    rounds: int = 1
    """Number of times that each side is timed, in turn."""
    vllm_python: str | None = None
    """Interpreter of an environment with vLLM; default: the environment variable VLLM_PYTHON."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.rounds < 1:
            raise ValueError("count and rounds must be 1 or more")

    @property
    def python(self) -> str:
        """The interpreter with vLLM; "" if there is none."""
        return self.vllm_python or os.environ.get("VLLM_PYTHON", "")


@dataclass(frozen=True, kw_only=True)
class Side:
    """An engine as it is timed: options of both commands, of captioner.run alone; the loop's interpreter and processes."""

    options: tuple[str, ...]
    run_options: tuple[str, ...] = ()
    python: str = sys.executable
    num_processes: int = 1
    server_start_up_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A side's figures in one round, and the captions by key of its run and its loop."""

    figures: dict[str, float]
    captions: tuple[dict[str, str], dict[str, str]]


def main(config: EnginesConfig) -> int:
    """Prints the figures; returns 0."""
    if not config.python:
        print("no environment with vLLM: vllm and its server are left out; name one with --vllm_python or VLLM_PYTHON")
    timed: dict[str, list[Timed]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        scenes = Path(directory) / "scenes"
        options = ["--count", str(config.count), "--seed", "7", "--split", "unseen"]
        run_module("examples.openmoji.scenes", *options, "--out", str(scenes))
        for turn in range(config.rounds):
            for name, side in _sides(config):
                one = _timed(side, scenes, Path(directory) / f"{name}-{turn}", loop_first=bool(turn % 2))
                timed[name].append(one)
                print(
                    f"{name}: run {one.figures['images_per_s']:.1f}, loop {one.figures['loop_images_per_s']:.1f} images/s",
                    flush=True,
                )
        dtype = run_dtype(Path(directory) / "transformers-0")
    print_report("Engines", _figures(timed), dtype=dtype)
    return 0


def _sides(config: EnginesConfig) -> Iterator[tuple[str, Side]]:
    """The sides in turn; the server of one runs until the next is asked for."""
    engine = ("--engine", "transformers")
    yield "transformers", Side(options=engine, run_options=("--unit_size", "64"), num_processes=os.cpu_count() or 1)
    if config.python:
        options = ("--engine", "vllm", *_SHORT)
        run_options = ("--ray.replica_python", config.python, "--ray.num_replicas", "1", "--unit_size", "250")
        yield "vllm", Side(options=options, run_options=run_options, python=config.python)
        with _server(
            [config.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MINI), *_VLLM_SERVER]
        ) as server:
            yield "endpoint", server
    with _server([sys.executable, "-m", "captioner.serve", "--model", MODEL, *_FLOAT32]) as server:
        yield "serve", server


@contextmanager
def _server(command: Sequence[str]) -> Iterator[Side]:
    """A server on loopback until the block ends, as a side that asks it. Raises UserError if it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        environment = {**os.environ, **_ENVIRONMENT}
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            while not _answers(f"{url}/health"):
                if process.poll() is not None or time.perf_counter() - started > _START_S:
                    log.seek(0)
                    raise UserError(
                        f"{' '.join(command[:4])} did not start: {(log.read().strip() or 'no output').splitlines()[-1]}"
                    )
                time.sleep(0.2)
            options = ("--engine", "endpoint", "--endpoint.url", f"{url}/v1")
            yield Side(options=options, run_options=_OVERLAPPING, server_start_up_s=time.perf_counter() - started)
        finally:
            process.terminate()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


def _timed(side: Side, scenes: Path, out: Path, *, loop_first: bool) -> Timed:
    """The run and the loop of a side, one after the other."""
    if loop_first:
        looped, loop = _loop(side, scenes)
        ran, run = _run(side, scenes, out)
    else:
        ran, run = _run(side, scenes, out)
        looped, loop = _loop(side, scenes)
    server = {} if side.server_start_up_s is None else {"server_start_up_s": side.server_start_up_s}
    return Timed(figures={**run, **loop, **server}, captions=(ran, looped))


def _run(side: Side, scenes: Path, out: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Captions and figures of captioner.run."""
    from dataset_builder.sql.run_files import open_run

    dtype = [] if "endpoint" in side.options else _FLOAT32
    arguments = ["--images", str(scenes), "--out", str(out), "--model", MODEL, *dtype, *side.options, *side.run_options]
    speed = run_speed(run_module("captioner.run", *arguments, environment=_ENVIRONMENT))
    with open_run(str(out)) as database:
        rows = database.fetch("SELECT key, caption_raw FROM captions").to_pylist()
    captions = {row["key"]: row["caption_raw"] for row in rows}
    return captions, {"images_per_s": speed.images_per_s, "start_up_s": speed.start_up_s}


def _loop(side: Side, scenes: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Captions and figures of the engine's own loop, in as many processes as the side has."""
    threads = (os.cpu_count() or 1) // side.num_processes
    environment = {**_ENVIRONMENT, **cpu_environment(num_threads=max(1, threads))}
    options = ["--images", str(scenes), *side.options, *([] if "endpoint" in side.options else _FLOAT32)]

    def part(index: int) -> dict[str, Any]:
        arguments = [*options, "--part", str(index), "--parts", str(side.num_processes)]
        output = run_module("benchmarks.engine_loop", *arguments, environment=environment, python=side.python)
        line = next(line for line in reversed(output.splitlines()) if line.startswith('{"start_up_s"'))  # vLLM may log after it
        found: dict[str, Any] = json.loads(line)
        return found

    with ThreadPoolExecutor(side.num_processes) as pool:
        found = list(pool.map(part, range(side.num_processes)))
    captions = {key: caption for one in found for key, caption in one["captions"].items()}
    start_up_s, images_per_s = max(one["start_up_s"] for one in found), sum(one["images_per_s"] for one in found)
    return captions, {"loop_images_per_s": images_per_s, "loop_start_up_s": start_up_s}


def _figures(timed: Mapping[str, Sequence[Timed]]) -> dict[str, float]:
    """Medians over the rounds; ratios and overheads within a round."""
    found = {
        f"{name}_{figure}": statistics.median(one.figures[figure] for one in rounds)
        for name, rounds in timed.items()
        for figure in rounds[0].figures
    }
    overheads = {
        f"{name}_overhead": statistics.median(
            1 - one.figures["images_per_s"] / one.figures["loop_images_per_s"] for one in rounds
        )
        for name, rounds in timed.items()
    }
    said = [captions for rounds in timed.values() for one in rounds for captions in one.captions]
    equal = sum(len({captions.get(key) for captions in said}) == 1 for key in said[0])
    summary = {"units_overhead": max(overheads.values()), "captions_equal": equal / len(said[0])}
    if "vllm" in timed:
        pairs = zip(timed["endpoint"], timed["vllm"], strict=True)
        ratios = [asked.figures["images_per_s"] / own.figures["images_per_s"] for asked, own in pairs]
        summary["endpoint_share_of_vllm"] = statistics.median(ratios)
    return {**found, **overheads, **summary}


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            EnginesConfig,
            main,
            prog="python -m benchmarks.engines",
            example="python -m benchmarks.engines --vllm_python vllm-env/bin/python",
        )
    )
