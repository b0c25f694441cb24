"""Settings of the engine `vllm`: parallelism, memory, quantisation and adapters."""

from dataclasses import dataclass, field
from typing import Any

_OWN = (
    "model",
    "revision",
    "dtype",
    "limit_mm_per_prompt",
    "generation_config",
    "tensor_parallel_size",
    "max_model_len",
    "max_num_seqs",
    "gpu_memory_utilization",
    "quantization",
    "enable_lora",
    "data_parallel_size",
)
"""Arguments of vLLM that other settings decide, or that this engine does not work with."""
_SPEED_ALONE = frozenset(
    [
        "enforce_eager",
        "pipeline_parallel_size",
        "distributed_executor_backend",
        "max_num_batched_tokens",
        "max_lora_rank",
        "enable_prefix_caching",
        "enable_chunked_prefill",
        "async_scheduling",
        "compilation_config",
        "load_format",
        "seed",
        "mm_encoder_tp_mode",
        "mm_processor_cache_gb",
        "mm_processor_cache_type",
        "cpu_offload_gb",
        "block_size",
        "kv_cache_memory_bytes",
        "download_dir",
        "disable_log_stats",
        "disable_custom_all_reduce",
        "safetensors_load_strategy",
    ]
)
"""Arguments that change captions by rounding alone."""


@dataclass(frozen=True)
class VllmSettings:
    """Settings of the engine `vllm`. Those of memory and parallelism change captions by rounding alone."""

    tensor_parallel_size: int = 1
    """Number of GPUs of a node that share a replica of the model."""
    max_model_len: int | None = None
    """Maximum number of tokens of a request and its answer; default: the model's own, which may take much memory."""
    max_num_seqs: int = 256
    """Maximum number of requests decoded at a time."""
    gpu_memory_utilization: float = 0.9
    """Share of its GPU's memory (0 to 1) that a replica uses; if ray.gpus_per_replica is below 1, the share of its part."""
    quantization: str | None = None
    """Quantisation method of the checkpoint, such as awq, gptq or fp8; default: as its config.json says."""
    lora: str | None = None
    """Folder of a LoRA adapter of the language model, in the format of PEFT."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's engine, by name, such as {"enforce_eager": true}."""

    def __post_init__(self) -> None:
        problems = [
            f"vllm.{name} must be {bound}, not {getattr(self, name)}"
            for name, bound, holds in [
                ("tensor_parallel_size", "1 or more", self.tensor_parallel_size >= 1),
                ("max_model_len", "1 or more", self.max_model_len is None or self.max_model_len >= 1),
                ("max_num_seqs", "1 or more", self.max_num_seqs >= 1),
                ("args", "a whole number of GPUs in pipeline_parallel_size", isinstance(self._num_stages, int)),
                ("gpu_memory_utilization", "above 0 and at most 1", 0 < self.gpu_memory_utilization <= 1),
                ("args", f"without {', '.join(_OWN)}", not set(_OWN) & self.args.keys()),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def num_gpus(self) -> int:
        """Number of GPUs of a replica."""
        return self.tensor_parallel_size * self._num_stages

    @property
    def deciding_args(self) -> dict[str, Any]:
        """The `args` that can change captions, such as kv_cache_dtype or mm_processor_kwargs."""
        return {name: value for name, value in self.args.items() if name not in _SPEED_ALONE}

    @property
    def _num_stages(self) -> int:
        return self.args.get("pipeline_parallel_size", 1)  # type: ignore[no-any-return]
