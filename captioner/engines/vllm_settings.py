"""Settings of the engine `vllm`: parallelism, memory, quantisation and adapters."""

from dataclasses import dataclass, field
from typing import Any

_OWN = ("model", "revision", "dtype", "limit_mm_per_prompt", "generation_config", "tensor_parallel_size", "max_model_len")


@dataclass(frozen=True)
class VllmSettings:
    """Settings of the engine `vllm`. Those of memory and parallelism change captions by rounding alone."""

    tensor_parallel_size: int = 1
    """Number of GPUs that share a replica of the model."""
    max_model_len: int | None = None
    """Maximum number of tokens of a request and its answer; default: the model's own, which may take much memory."""
    max_num_seqs: int = 256
    """Maximum number of requests that are decoded at one time."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory (0 to 1) that vLLM takes."""
    quantization: str | None = None
    """Quantisation method of the checkpoint, such as awq, gptq or fp8; default: what its config.json says."""
    lora: str | None = None
    """Folder of a LoRA adapter of the language model, in the format of PEFT."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's engine by their names, such as {"enforce_eager": true}."""

    def __post_init__(self) -> None:
        problems = [
            f"vllm.{name} must be {bound}, not {getattr(self, name)}"
            for name, bound, holds in [
                ("tensor_parallel_size", "1 or more", self.tensor_parallel_size >= 1),
                ("max_model_len", "1 or more", self.max_model_len is None or self.max_model_len >= 1),
                ("max_num_seqs", "1 or more", self.max_num_seqs >= 1),
                ("gpu_memory_utilization", "above 0 and at most 1", 0 < self.gpu_memory_utilization <= 1),
                ("args", f"without {', '.join(_OWN)}", not set(_OWN) & self.args.keys()),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))
