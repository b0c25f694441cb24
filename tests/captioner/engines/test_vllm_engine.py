"""The engine `vllm` says what transformers says, and loses nothing when its engine process is killed. Needs VLLM_PYTHON."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from captioner.engines.generation import Generation, GenerationSettings
from captioner.engines.model_source import resolve_model
from captioner.engines.vllm_engine import VllmEngine, _arguments, _generation, find_vllm_model
from captioner.engines.vllm_settings import VllmSettings
from dataset_builder.sql.run_files import open_run
from foundry.errors import UserError

VLLM_PYTHON = os.environ.get("VLLM_PYTHON", "")
"""The interpreter of an environment with vLLM and Ray; see docs/captioning.md."""
ROOT = Path(__file__).resolve().parents[3]


def test_without_vllm_one_line_says_what_to_do() -> None:
    with pytest.raises(UserError, match="needs vLLM, which .*python.* lacks: install it"):
        find_vllm_model(resolve_model("mini"), VllmSettings(), python=sys.executable)
    with pytest.raises(UserError, match="ray.replica_python /nowhere/python cannot be run"):
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


def test_arguments_are_those_that_are_asked_for() -> None:
    settings = VllmSettings(tensor_parallel_size=2, quantization="awq", lora="adapter", args={"enforce_eager": True})
    found = _arguments(resolve_model("mini"), GenerationSettings(dtype="bfloat16"), settings)
    assert found["model"].endswith("llava-mini")
    del found["model"]
    assert found == {
        "dtype": "bfloat16",
        "limit_mm_per_prompt": {"image": 1},
        "generation_config": "vllm",
        "tensor_parallel_size": 2,
        "max_num_seqs": 256,
        "gpu_memory_utilization": 0.9,
        "enforce_eager": True,
        "quantization": "awq",
        "enable_lora": True,
    }


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
    command = ["-m", "examples.openmoji.scenes", "--count", "100", "--seed", "7", "--split", "unseen", "--out", str(scenes)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    assert _start(scenes, by_transformers).wait(300) == 0
    vllm = ("--engine", "vllm", "--ray.replica_python", VLLM_PYTHON, "--vllm.max_model_len", "512")
    run = _start(scenes, by_vllm, *vllm, "--vllm.args", '{"enforce_eager": true}')
    deadline = time.monotonic() + 300
    while len(list(by_vllm.glob("commits/*.json"))) < 2:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    subprocess.run(["pkill", "-9", "-f", "VLLM::EngineCore"], check=True)
    assert run.wait(300) == 0
    assert _captions(by_vllm) == _captions(by_transformers)
    assert len(_captions(by_vllm)) == 100
