"""Hardware of this machine: the number format that `auto` means, and threads, memory and batches of a process.

A processor without bfloat16 instructions emulates them, 30 to 100 times slower than float32. So `auto` follows the hardware:
bfloat16 on NVIDIA GPUs from compute capability 8.0 on (Ampere), on processors with AMX-BF16 or AVX512-BF16, and on Apple's GPUs
where it is as fast as float32; float32 everywhere else; float16 never. `T2I_AUTO_DTYPE=float32` (or bfloat16) overrules it.
"""

import ctypes
import math
import os
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from foundry.errors import UserError

Dtype = Literal["float32", "bfloat16"]
AutoDtype = Literal["auto", "float32", "bfloat16"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

AUTO = "auto"
AUTO_VARIABLE = "T2I_AUTO_DTYPE"
"""Environment variable: what `auto` means, whatever the hardware."""
_FIRST_WITH_BFLOAT16 = (8, 0)
_BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}
_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_ISAS_WITH_BFLOAT16 = ("BF16", "FP16", "AMX", "AVX10", "DEFAULT", "ALL")
_CPU_INFO = Path("/proc/cpuinfo")
_PROBE_SIDE = 1024

_SPINS = 1000
"""Rounds that an idle thread of OpenMP spins before it sleeps: microseconds."""

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MMAP_THRESHOLD_BYTES, _TRIM_THRESHOLD_BYTES, _TOP_PAD_BYTES = 1 << 30, 1 << 34, 1 << 28
_LARGEST_INT = (1 << 31) - 1


def own_device() -> str:
    """This process's GPU, where Ray or the user gave it one; else its CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_dtype(dtype: str, device: str) -> Dtype:
    """`dtype` itself, or what `auto` means on a torch device (cpu, cuda, cuda:1, mps). Raises UserError as auto_dtype."""
    return auto_dtype(device) if dtype == AUTO else dtype  # type: ignore[return-value]


def auto_dtype(device: str = "cpu") -> Dtype:
    """The number format in which this machine computes fastest on a torch device. Imports torch only for a GPU.

    Raises UserError if the environment variable T2I_AUTO_DTYPE holds something else than float32 or bfloat16.
    """
    if forced := os.environ.get(AUTO_VARIABLE):
        if forced not in ("float32", "bfloat16"):
            raise UserError(f"{AUTO_VARIABLE} must be float32 or bfloat16, found {forced}: correct it, or unset it")
        return forced  # type: ignore[return-value]
    kind = device.partition(":")[0]
    if kind == "cpu":
        computes = cpu_computes_in_bfloat16(cpu_flags(), os.environ)
    elif kind == "cuda":
        computes = _cuda_capability(device) >= _FIRST_WITH_BFLOAT16
    else:
        computes = kind == "mps" and _is_as_fast_in_bfloat16(device)
    return "bfloat16" if computes else "float32"


def cpu_computes_in_bfloat16(flags: frozenset[str], environment: Mapping[str, str]) -> bool:
    """Whether a processor with these flags multiplies bfloat16 matrices itself, and oneDNN may use that.

    oneDNN's own answer is of no use: it says yes on AVX-512 without BF16 too, where it emulates.
    """
    allowed = next((environment[name].upper() for name in _ISA_VARIABLES if environment.get(name)), "ALL")
    return bool(flags & _BFLOAT16_FLAGS) and any(part in allowed for part in _ISAS_WITH_BFLOAT16)


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor, as Linux names them; empty elsewhere."""
    return frozenset(_cpu_info("flags").split())


@cache
def cpu_name() -> str:
    """The processor's model, as Linux names it, with what decides about bfloat16: `AMD EPYC 7763 (AVX2)`."""
    kinds = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
    kind = next((name for flag, name in kinds.items() if flag in cpu_flags()), "")
    return f"{_cpu_info('model name') or 'unknown processor'}{f' ({kind})' if kind else ''}"


def _cpu_info(field: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty if there is none."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def _cuda_capability(device: str) -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability(device)


@cache
def _is_as_fast_in_bfloat16(device: str) -> bool:
    """Measures it: the median of five matrix products in either format."""
    import torch

    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        try:
            matrix = torch.ones(_PROBE_SIDE, _PROBE_SIDE, dtype=dtype, device=device)
            times = []
            for _ in range(6):
                started = time.perf_counter()
                (matrix @ matrix)[0, 0].item()  # waits for the device
                times.append(time.perf_counter() - started)
        except (RuntimeError, TypeError):
            return False
        seconds[dtype] = sorted(times[1:])[2]
    return seconds[torch.bfloat16] <= seconds[torch.float32]


def cpu_environment(*, num_threads: int) -> dict[str, str]:
    """Environment variables of a process that runs a model on CPUs; they are read when a process starts.

    glibc hands large blocks back to the kernel at once, so that each step of a growing key-value cache faults its pages in
    again: half of the time of llava-mini's decoding. The tunables keep the blocks.
    """
    sizes = {"mmap_threshold": _MMAP_THRESHOLD_BYTES, "trim_threshold": _TRIM_THRESHOLD_BYTES, "top_pad": _TOP_PAD_BYTES}
    tunables = ["hugetlb=1", *(f"{name}={size}" for name, size in sizes.items())]
    return {
        "OMP_NUM_THREADS": str(num_threads),
        "GOMP_SPINCOUNT": str(_SPINS),
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{tunable}" for tunable in tunables),
    }


def set_up_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets this process's environment variables of OpenMP, before torch reads them, where the user has not.

    Idle threads spin shortly and then sleep. By default they spin for so long that two trainings on the same cores run at a
    fifth of their speed each; sleeping at once costs one training alone a sixth. A container's limit on CPU time bounds the
    number of threads: torch counts all cores of the host.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(_SPINS))
    limit = cpu_limit()
    if limit is not None and limit < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(limit))


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, where the system tells (macOS does not)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Cores that a container's limit on CPU time amounts to, rounded up; None if there is no limit."""
    try:  # version 2 of control groups, then version 1
        quota, period = (root / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        try:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        except OSError:
            return None
    if quota.strip() in ("max", "-1"):
        return None
    return max(1, -(-int(quota) // int(period)))


def keep_freed_memory() -> None:
    """Has this process keep large freed blocks for its next tensors, as `cpu_environment` does for one that starts.

    Does nothing where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, size in (
        (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
    ):
        mallopt(parameter, min(size, _LARGEST_INT))


class Halving:
    """Batches of a model on one device. One that does not fit in memory is halved, and so are all later ones."""

    def __init__(self) -> None:
        self.limit = math.inf
        """What memory was found to hold, in units of `cost`."""

    def run(
        self, items: Sequence[ItemT], work: Callable[[Sequence[ItemT]], ResultT], *, size: float = math.inf, cost: float = 1
    ) -> list[ResultT]:
        """The results of `work` for consecutive batches of the items, which together cost at most `size`, with `cost` for each.

        Raises what `work` raises; running out of memory at a batch of one item among it.
        """
        found: list[ResultT] = []
        done = 0
        while done < len(items):
            most = min(size, self.limit) / cost
            batch = items[done:] if most >= len(items) - done else items[done : done + max(1, int(most))]
            try:
                found.append(work(batch))
                done += len(batch)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
            self.limit = len(batch) // 2 * cost
            _free_device_memory()  # here, where the error no longer holds the tensors of the failed batch
        return found


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device has too little memory. CUDA has a class for it, the CPU's allocator only a message."""
    import torch

    words = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in words or "can't allocate memory" in words


def _free_device_memory() -> None:
    """Gives memory that torch keeps on a GPU back, so that what is left is in one piece."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
