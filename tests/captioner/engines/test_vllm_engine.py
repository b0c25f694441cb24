"""The engine `vllm` says what transformers says, and loses nothing when its engine process is killed. Needs VLLM_PYTHON."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from captioner.config import CaptionConfig
from captioner.engines.generation import Generation, GenerationSettings
from captioner.engines.model_source import resolve_model
from captioner.engines.vllm_engine import VllmEngine, VllmModel, _arguments, _generation, find_vllm_model
from captioner.engines.vllm_settings import VllmSettings
from captioner.runs.captioning import replica_settings
from captioner.runs.job import vllm_settings
from dataset_builder.sql.run_files import open_run
from foundry.errors import UserError
from foundry.units.cluster import RaySettings

VLLM_PYTHON = os.environ.get("VLLM_PYTHON", "")
"""The interpreter of an environment with vLLM and Ray; see docs/captioning.md."""
ROOT = Path(__file__).resolve().parents[3]


def test_without_vllm_one_line_says_what_to_do() -> None:
    with pytest.raises(UserError, match="needs vLLM, which .*python.* lacks: install it"):
        find_vllm_model(resolve_model("mini"), VllmSettings(), python=sys.executable)
    with pytest.raises(UserError, match="/nowhere/python cannot be run"):
        find_vllm_model(resolve_model("mini"), VllmSettings(), python="/nowhere/python")
    with pytest.raises(UserError, match="needs vLLM"):
        VllmEngine(resolve_model("mini"), GenerationSettings(), VllmSettings())


def test_an_adapter_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a folder with adapter_config\.json"):
        find_vllm_model(resolve_model("mini"), VllmSettings(lora=str(tmp_path)), python=sys.executable)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"tensor_parallel_size": 0}, "vllm.tensor_parallel_size must be 1 or more"),
        ({"gpu_memory_utilization": 1.5}, "vllm.gpu_memory_utilization must be above 0 and at most 1"),
        ({"args": {"model": "x"}}, "vllm.args must be without model"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        VllmSettings(**settings)  # type: ignore[arg-type]


def adapter(folder: Path, **config: object) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_arguments_are_those_that_are_asked_for(tmp_path: Path) -> None:
    lora = adapter(tmp_path / "adapter", r=20)
    settings = VllmSettings(tensor_parallel_size=2, quantization="awq", lora=lora, args={"enforce_eager": True})
    found = _arguments(resolve_model("mini"), GenerationSettings(dtype="bfloat16"), settings)
    assert found["model"].endswith("llava-mini")
    del found["model"]
    assert found == {
        "dtype": "bfloat16",
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "generation_config": "vllm",
        "tensor_parallel_size": 2,
        "max_num_seqs": 256,
        "gpu_memory_utilization": 0.9,
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        "enforce_eager": True,
        "quantization": "awq",
        "enable_lora": True,
        "max_lora_rank": 32,
        "distributed_executor_backend": "mp",
    }


@pytest.mark.parametrize(
    ("config", "rank"), [({"r": 16}, 16), ({"r": 17}, 32), ({"r": 8, "rank_pattern": {"q_proj": 64}}, 64), ({}, 1)]
)
def test_vllm_is_set_up_for_the_rank_of_the_adapter(tmp_path: Path, config: dict[str, object], rank: int) -> None:
    settings = VllmSettings(lora=adapter(tmp_path / "adapter", **config))
    assert _arguments(resolve_model("mini"), GenerationSettings(), settings)["max_lora_rank"] == rank


def test_an_adapter_of_too_large_a_rank_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has rank 1024, vLLM takes at most 512"):
        find_vllm_model(resolve_model("mini"), VllmSettings(lora=adapter(tmp_path / "a", r=1024)), python=sys.executable)


def test_a_replica_gets_the_gpus_of_its_model_and_shares_the_memory_of_one() -> None:
    def config(ray: RaySettings, **vllm: Any) -> CaptionConfig:
        return CaptionConfig(images=["x"], out="y", model="mini", engine="vllm", vllm=VllmSettings(**vllm), ray=ray)

    assert replica_settings(config(RaySettings(), tensor_parallel_size=4)).gpus_per_replica == 4
    staged = config(RaySettings(), tensor_parallel_size=2, args={"pipeline_parallel_size": 2})
    assert replica_settings(staged).gpus_per_replica == 4
    half = config(RaySettings(gpus_per_replica=0.5), gpu_memory_utilization=0.8)
    assert replica_settings(half).gpus_per_replica == 0.5
    assert vllm_settings(half).gpu_memory_utilization == 0.4
    assert vllm_settings(config(RaySettings(gpus_per_replica=0))).gpu_memory_utilization == 0.9
    same = RaySettings(gpus_per_replica=4)
    assert replica_settings(config(same, tensor_parallel_size=4)).gpus_per_replica == 4
    with pytest.raises(UserError, match="gpus_per_replica 4 needs a model that is split .* with vllm.tensor_parallel_size 4"):
        config(same)
    with pytest.raises(UserError, match="gpus_per_replica 4 needs .* give engine vllm"):
        CaptionConfig(images=["x"], out="y", model="mini", ray=same)


def test_arguments_that_decide_what_a_caption_is_are_part_of_the_run() -> None:
    def described(**args: Any) -> dict[str, Any]:
        return VllmModel(**vars(resolve_model("mini")), settings=VllmSettings(args=args), version="0.32.0").describe()

    assert described(enforce_eager=True, max_num_batched_tokens=8192) == described()
    assert described(kv_cache_dtype="fp8", enforce_eager=True)["args"] == {"kv_cache_dtype": "fp8"}


_REPLICA = """
import subprocess, sys, time
from captioner.engines.vllm_engine import _start_reaper
reaper = _start_reaper()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, reaper.pid, flush=True)
time.sleep(600)
"""


def test_what_a_killed_replica_leaves_behind_is_killed() -> None:
    """Such as vLLM's engine process, which would hold the memory of the GPU."""
    replica = subprocess.Popen([sys.executable, "-c", _REPLICA], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert replica.stdout is not None
    child, reaper = (psutil.Process(int(pid)) for pid in replica.stdout.readline().split())
    time.sleep(2.5)  # it looks for children once a second
    assert child.is_running() and reaper.is_running()
    replica.kill()
    replica.communicate()
    _, alive = psutil.wait_procs([child, reaper], timeout=10)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_log_probabilities_are_those_of_the_chosen_tokens() -> None:
    steps = [{7: SimpleNamespace(logprob=-0.5), 9: SimpleNamespace(logprob=-0.1)}, {3: SimpleNamespace(logprob=-1.5)}]
    said = SimpleNamespace(text=" an owl ", token_ids=[7, 3], logprobs=steps, finish_reason="stop")
    assert _generation(SimpleNamespace(outputs=[said], prompt_token_ids=[1, 2, 3])) == Generation(
        text="an owl", finish_reason="stop", num_tokens=2, mean_logprob=-1.0, min_logprob=-1.5, num_input_tokens=3
    )


def _start(scenes: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = ["--images", str(scenes), "--out", str(out), "--model", "mini", "--unit_size", "10", "--ray.num_replicas", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1"}
    arguments = [*command, "--generation.dtype", "float32", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "captioner.run", *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


def _captions(run: Path) -> Sequence[tuple[str, str]]:
    with open_run(str(run)) as database:
        rows = database.fetch("SELECT key, caption FROM captions ORDER BY key").to_pylist()
    return [(row["key"], row["caption"]) for row in rows]


@pytest.mark.slow
@pytest.mark.skipif(not VLLM_PYTHON, reason="VLLM_PYTHON names no environment with vLLM")
def test_captions_are_those_of_transformers_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    scenes, by_vllm, by_transformers = tmp_path / "scenes", tmp_path / "vllm", tmp_path / "transformers"
    command = ["-m", "examples.openmoji.scenes", "--count", "200", "--seed", "7", "--split", "unseen", "--out", str(scenes)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    assert _start(scenes, by_transformers).wait(300) == 0
    vllm = ("--engine", "vllm", "--ray.replica_python", VLLM_PYTHON, "--vllm.max_model_len", "512")
    run = _start(scenes, by_vllm, *vllm, "--vllm.args", '{"enforce_eager": true}')
    deadline = time.monotonic() + 300
    while len(list(by_vllm.glob("commits/*.json"))) < 2:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    engines = [one for one in psutil.Process(run.pid).children(recursive=True) if "VLLM::" in " ".join(one.cmdline())]
    assert engines, "there was nothing to kill"
    for one in engines:
        one.kill()
    assert run.wait(300) == 0
    assert _captions(by_vllm) == _captions(by_transformers)
    assert len(_captions(by_vllm)) == 200


_LONG_QUESTIONS = """
import json
from pathlib import Path
import numpy as np
from captioner.engines.generation import GenerationSettings
from captioner.engines.model_source import resolve_model
from captioner.engines.vllm_engine import VllmEngine
from captioner.engines.vllm_settings import VllmSettings

if __name__ == "__main__":
    settings = VllmSettings(max_model_len=256, gpu_memory_utilization=0.3, args={"enforce_eager": True})
    engine = VllmEngine(resolve_model("mini"), GenerationSettings(dtype="float32", max_new_tokens=20), settings)
    pixels = list(np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8))
    prompts = ["an owl", "owl " * 400, "a key", "owl " * 0, "owl"]
    (alone,) = engine.caption(pixels[:1], prompts[:1], ["a"])
    prompts[3] = "owl " * (256 - alone.num_input_tokens - 10)
    said = engine.caption(pixels, prompts, list("abcde"))
    same = [engine.caption([pixels[row]], [prompts[row]], ["k"])[0].text == said[row].text for row in (0, 2, 4)]
    found = {"failures": [one.failure for one in said], "same": same, "texts": [one.text for one in said]}
    Path("found.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not VLLM_PYTHON, reason="VLLM_PYTHON names no environment with vLLM")
def test_a_question_that_exceeds_the_context_fails_alone(tmp_path: Path) -> None:
    """One that vLLM refuses, and one after which it would cut the caption; the others of the unit are answered."""
    script = tmp_path / "questions.py"
    script.write_text(_LONG_QUESTIONS)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([VLLM_PYTHON, str(script)], cwd=tmp_path, env=environment, check=True, timeout=300)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [bool(failure) for failure in found["failures"]] == [False, True, False, True, False]
    assert "maximum context length is 256 tokens" in found["failures"][1]
    assert "and a caption up to 20 more; the context has 256" in found["failures"][3]
    assert found["same"] == [True] * 3 and all(found["texts"][row] for row in (0, 2, 4))


SCHEMA = {
    "type": "object",
    "properties": {
        "what": {"type": "string", "enum": ["apple", "owl", "key"]},
        "bbox": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 4, "maxItems": 4},
        "left": {"type": "boolean"},
    },
    "required": ["what", "bbox", "left"],
    "additionalProperties": False,
}
COMPACT = '{"backend": "guidance", "disable_any_whitespace": true}'
"""What the engine asks of vLLM; a model as small as llava-mini would write white space for ever."""


def _structured(tmp_path: Path) -> tuple[Path, list[str]]:
    """Scenes, and the arguments that have them described by SCHEMA, which llava-mini, left alone, never follows."""
    scenes, prompts = tmp_path / "scenes", tmp_path / "prompts.yaml"
    command = ["-m", "examples.openmoji.scenes", "--count", "20", "--seed", "7", "--out", str(scenes)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    content = {"name": "small", "version": "1", "prompts": [{"name": "part", "text": "Name one thing", "schema": SCHEMA}]}
    prompts.write_text(json.dumps(content))
    return scenes, ["--prompts", str(prompts), "--generation.max_new_tokens", "60", "--t5.tokenizer", "mini"]


def _check_structured(run: Path) -> None:
    with open_run(str(run)) as database:
        found = database.fetch("SELECT value FROM captions WHERE prompt = 'part' AND status = 'ok' AND finish_reason = 'stop'")
        values = [json.loads(row["value"]) for row in found.to_pylist()]
        boxes = database.fetch("SELECT y0, x0, y1, x1, center_x FROM caption_objects").to_pylist()
    assert len(values) == len(boxes) == 20
    assert all(list(value) == ["what", "bbox", "left"] and value["what"] in ("apple", "owl", "key") for value in values)
    assert [row["center_x"] for row in boxes] == [(row["x0"] + row["x1"]) / 2 for row in boxes]


@pytest.mark.slow
@pytest.mark.skipif(not VLLM_PYTHON, reason="VLLM_PYTHON names no environment with vLLM")
def test_constrained_answers_follow_their_schema(tmp_path: Path) -> None:
    scenes, structured = _structured(tmp_path)
    vllm = ["--engine", "vllm", "--ray.replica_python", VLLM_PYTHON, "--vllm.max_model_len", "512"]
    vllm += ["--vllm.gpu_memory_utilization", "0.3", "--vllm.args", '{"enforce_eager": true}']
    assert _start(scenes, tmp_path / "run", *vllm, *structured).wait(300) == 0
    _check_structured(tmp_path / "run")


@contextmanager
def _served() -> Iterator[str]:
    """The address of vLLM's own server of llava-mini, as the model `mini`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [VLLM_PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(resolve_model("mini").path_or_id)]
    command += ["--served-model-name", "small-llava", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "512", "--gpu-memory-utilization", "0.3"]
    command += ["--limit-mm-per-prompt", '{"image": 1}', "--structured-outputs-config", COMPACT]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        return bool(response.status == 200)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not VLLM_PYTHON, reason="VLLM_PYTHON names no environment with vLLM")
def test_vllms_own_server_follows_the_schema_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    scenes, structured = _structured(tmp_path)
    with _served() as url:
        endpoint = ["--engine", "endpoint", "--model", "small-llava", "--endpoint.url", url, "--generation.dtype", "auto"]
        assert _start(scenes, tmp_path / "run", *endpoint, *structured).wait(300) == 0
    _check_structured(tmp_path / "run")
