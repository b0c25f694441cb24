"""The meaning of `auto` on each kind of hardware; freed memory is kept."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from foundry import hardware
from foundry.errors import UserError
from foundry.hardware import (
    AUTO_VARIABLE,
    Halving,
    auto_dtype,
    cpu_computes_in_bfloat16,
    cpu_environment,
    cpu_limit,
    resolve_dtype,
    set_up_threads,
)

AVX2 = frozenset({"sse4_2", "avx", "avx2", "fma"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"}
ZEN4 = AVX512 | {"avx512_bf16"}
SAPPHIRE_RAPIDS = ZEN4 | {"amx_bf16", "amx_tile"}


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (AUTO_VARIABLE, "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        (frozenset(), {}, False),
        (AVX2, {}, False),
        (AVX512, {}, False),  # here oneDNN claims to support bfloat16, and emulates it
        (ZEN4, {}, True),
        (SAPPHIRE_RAPIDS, {}, True),
        (AVX2 | {"amx_bf16"}, {}, True),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, False),
        (SAPPHIRE_RAPIDS, {"DNNL_MAX_CPU_ISA": "avx512_core_vnni"}, False),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, True),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, True),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": ""}, True),
    ],
)
def test_a_processor_computes_in_bfloat16_where_its_flags_say_so(
    flags: frozenset[str], environment: dict[str, str], expected: bool
) -> None:
    assert cpu_computes_in_bfloat16(flags, environment) is expected


@pytest.mark.parametrize(("flags", "expected"), [(AVX2, "float32"), (SAPPHIRE_RAPIDS, "bfloat16")])
def test_auto_on_a_processor(flags: frozenset[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: flags)
    assert auto_dtype("cpu") == resolve_dtype("auto", "cpu") == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 0), "float32"), ((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_auto_on_a_gpu_is_bfloat16_from_ampere_on(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert auto_dtype("cuda") == auto_dtype("cuda:1") == expected


@pytest.mark.parametrize("is_fast", [True, False])
def test_auto_on_apples_gpus_is_measured(is_fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_is_as_fast_in_bfloat16", lambda _device: is_fast)
    assert auto_dtype("mps") == ("bfloat16" if is_fast else "float32")


@pytest.mark.parametrize(("seconds", "expected"), [((2.0, 1.0), True), ((2.0, 2.0), True), ((1.0, 2.0), False)])
def test_the_probe_compares_the_two_formats(
    seconds: tuple[float, float], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of the test: six products in float32, then six in bfloat16, each this many seconds long."""
    ticks = [tick for length in seconds for _ in range(6) for tick in (0.0, length)]
    monkeypatch.setattr(hardware, "_PROBE_SIDE", 8)
    monkeypatch.setattr("foundry.hardware.time.perf_counter", lambda: ticks.pop(0))
    assert hardware._is_as_fast_in_bfloat16.__wrapped__("cpu") is expected and not ticks


def test_a_device_that_cannot_be_measured_gets_float32() -> None:
    assert auto_dtype("xpu") == "float32"
    assert hardware._is_as_fast_in_bfloat16("mps") is False  # torch on Linux has no such device


def test_an_environment_variable_overrules_the_hardware_and_what_was_asked_for_overrules_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for forced in ("float32", "bfloat16"):
        monkeypatch.setenv(AUTO_VARIABLE, forced)
        assert auto_dtype("cpu") == auto_dtype("cuda") == forced
    assert resolve_dtype("float32", "cpu") == "float32" and resolve_dtype("auto", "cpu") == "bfloat16"
    monkeypatch.setenv(AUTO_VARIABLE, "float16")
    with pytest.raises(UserError, match="T2I_AUTO_DTYPE must be float32 or bfloat16, found float16"):
        auto_dtype("cpu")


def test_the_processor_is_read_from_the_file_that_linux_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: other\n")
    monkeypatch.setattr(hardware, "_CPU_INFO", info)
    assert hardware.cpu_flags.__wrapped__() == {"fpu", "avx2"}
    assert hardware._cpu_info("model name") == "AMD EPYC 7763"
    monkeypatch.setattr(hardware, "_CPU_INFO", tmp_path / "missing")
    assert hardware.cpu_flags.__wrapped__() == frozenset()


# Faults of the pages of a block of 64 MB, once for each of twenty blocks that are freed again; or for the first one alone.
_FAULTS = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from foundry.hardware import keep_freed_memory
if sys.argv[2] == "keep":
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = bytearray(64_000_000)
    del block
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 64e6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux does")
def test_a_process_that_keeps_freed_memory_faults_its_pages_in_once() -> None:
    def blocks_faulted_in(how: str) -> float:
        command = [sys.executable, "-c", _FAULTS, str(Path(__file__).parents[2]), how]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return float(done.stdout)

    assert blocks_faulted_in("hand back") > 15
    assert blocks_faulted_in("keep") < 2


def test_idle_threads_sleep_soon_unless_the_user_has_said_how_they_wait() -> None:
    for environment, expected in (
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
    ):
        set_up_threads(environment)
        assert {name: value for name, value in environment.items() if name != "OMP_NUM_THREADS"} == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_the_limit_of_a_container_is_read_from_its_control_group(
    files: dict[str, str], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_limit(tmp_path) == expected
    monkeypatch.setattr(hardware, "cpu_limit", lambda: expected)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    environment: dict[str, str] = {}
    set_up_threads(environment)
    assert environment.get("OMP_NUM_THREADS") == (None if expected is None else str(expected))


def test_a_worker_gets_its_threads_and_the_same_memory_settings() -> None:
    environment = cpu_environment(num_threads=3)
    assert environment["OMP_NUM_THREADS"] == "3" and int(environment["GOMP_SPINCOUNT"]) <= 1000
    done = subprocess.run([sys.executable, "-c", "print(1)"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n" and not done.stderr  # glibc knows the names of the tunables


def test_batches_are_halved_for_good_where_memory_runs_out() -> None:
    """Items of 10 bytes and memory for 25: the batch of 8 is halved twice, and nothing is done twice or left out."""
    halving, tried = Halving(), list[int]()

    def work(batch: Sequence[int]) -> list[int]:
        tried.append(len(batch))
        if 10 * len(batch) > 25:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(batch)

    assert [item for part in halving.run(range(7), work, size=80, cost=10) for item in part] == list(range(7))
    assert tried == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert halving.run("abc", len, size=1) == [1, 1, 1]
    tried.clear()
    assert len(halving.run(range(20), work, size=80, cost=5)) == 10, "items of half the size, twice as many"
    assert set(tried) == {2}


def test_an_item_that_does_not_fit_and_other_errors_are_raised() -> None:
    tried: list[int] = []

    def never(batch: Sequence[int]) -> None:
        tried.append(len(batch))
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes")

    with pytest.raises(RuntimeError, match="can't allocate"):
        Halving().run(range(4), never)
    assert tried == [4, 2, 1]

    def broken(batch: Sequence[int]) -> None:
        tried.append(len(batch))
        raise RuntimeError("shapes do not fit")

    tried.clear()
    with pytest.raises(RuntimeError, match="shapes"):
        Halving().run(range(4), broken)
    assert tried == [4]
