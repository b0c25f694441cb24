"""GPUs as plans and logs know them: peak, memory and price per hour. Imports no torch.

Peak: dense matrix products in bf16 (V100: fp16) without sparsity, from the makers' data sheets. Price: a rough default, since
it changes by month and contract: A100 as the paper's $28,400 for 753 days imply, V100 that price by the paper's factor of 2.2,
the others as RunPod listed them for single GPUs on demand in spring 2026; none if we know no source.
"""

import re
from dataclasses import dataclass

PAPER_A100_PER_V100 = 2.2
"""V100-days that an A100-day is worth. Source: PixArt-alpha, Table 4."""
PAPER_A100_PRICE = 1.57
"""Dollars per A100-hour: $28,400 / (753 x 24), to the cent. Source: PixArt-alpha (v3), abstract."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    device_name: str
    """Part of its CUDA or ROCm device name, not followed by another letter or digit: an L40 is no L4."""
    peak_flops: float
    """Floating-point operations a second."""
    memory_bytes: int
    """Memory."""
    price: float | None = None
    """Dollars an hour."""
    float32_flops: float | None = None
    """Peak in float32 of a GPU without bfloat16, on which trainer.fit computes in float32; None for the others."""
    watts: float | None = None
    """Power of the board at most, from the maker's data sheet."""


GPUS: dict[str, Gpu] = {
    "v100": Gpu(
        device_name="V100",
        watts=300,
        peak_flops=125e12,
        memory_bytes=32 * 10**9,
        price=round(PAPER_A100_PRICE / PAPER_A100_PER_V100, 2),
        float32_flops=15.7e12,
    ),
    "a100-40gb": Gpu(device_name="A100-SXM4-40GB", watts=400, peak_flops=312e12, memory_bytes=40 * 10**9),
    "a100": Gpu(device_name="A100", watts=400, peak_flops=312e12, memory_bytes=80 * 10**9, price=PAPER_A100_PRICE),
    "a10": Gpu(device_name="A10", watts=150, peak_flops=125e12, memory_bytes=24 * 10**9),
    "l4": Gpu(device_name="L4", watts=72, peak_flops=121e12, memory_bytes=24 * 10**9),
    "l40s": Gpu(device_name="L40S", watts=350, peak_flops=362e12, memory_bytes=48 * 10**9, price=0.79),
    "rtx3090": Gpu(device_name="RTX 3090", watts=350, peak_flops=71e12, memory_bytes=24 * 10**9),
    "rtx4090": Gpu(device_name="RTX 4090", watts=450, peak_flops=165e12, memory_bytes=24 * 10**9, price=0.34),
    "h100-pcie": Gpu(device_name="H100 PCIe", watts=350, peak_flops=756e12, memory_bytes=80 * 10**9),
    "h100": Gpu(device_name="H100", watts=700, peak_flops=989e12, memory_bytes=80 * 10**9, price=2.69),
    "h200": Gpu(device_name="H200", watts=700, peak_flops=989e12, memory_bytes=141 * 10**9, price=3.59),
    "b200": Gpu(device_name="B200", watts=1000, peak_flops=2250e12, memory_bytes=180 * 10**9, price=5.98),
    "mi300x": Gpu(device_name="MI300X", watts=750, peak_flops=1307e12, memory_bytes=192 * 10**9),
}
"""GPUs by the name that `--gpu` takes."""


def gpu_of_device(device_name: str) -> Gpu | None:
    """The GPU that torch.cuda.get_device_name() names; None for one that is not in the table."""
    matches = [gpu for gpu in GPUS.values() if re.search(rf"{re.escape(gpu.device_name)}(?![0-9A-Za-z])", device_name)]
    return max(matches, key=lambda gpu: len(gpu.device_name), default=None)
