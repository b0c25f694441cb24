"""Training steps and sampling of our network against diffusers': `python -m benchmarks.dit_step`.

Width 1152, 16 heads, batch 8, 32 x 32 latents, captions of 60 tokens in 120 places; forward and backward
in the number format that `auto` means here.
Sampling: 20 steps of DPM-Solver++ with guidance, bf16 weights, caption embeddings in, latents out; diffusers by its pipeline.

eager_ratio, compiled_ratio    our images per second, eager and compiled, over diffusers' eager
compiled_vs_compiled           ours over diffusers', both compiled
memory_ratio                   peak memory of a training step above the weights, ours over diffusers'; a process each
sampling_ratio                 our images per second over the diffusers pipeline's, both eager
compiled_sampling_ratio        ours with compiled blocks over the same
of_matmul_floor                time of the matrix products alone over the time of our compiled (else eager) step
"""

import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.report import print_report
from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.hardware import auto_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from model.dit import DiT

_SIDE, _PLACES, _TOKENS, _WIDTH = 32, 120, 60, 1152
_KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn_linear", "convolution"),
    "attention": ("scaled_dot_product", "softmax"),
    "activation": ("gelu", "silu"),
    "norms": ("layer_norm",),
    "casts and copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::fill_", "aten::zero_", "aten::index"),
    "elementwise and sums": ("aten::add", "aten::mul", "aten::sum", "aten::sub", "aten::div"),
    "compiled kernels": ("graph_", "cpp_fused", "CompiledFunction", "triton_"),
}


@dataclass(frozen=True)
class DiTStepConfig:
    """Settings of the benchmark."""

    depth: int = 4
    """Blocks."""
    batch: int = 8
    """Images of a training step; half as many are sampled, since guidance doubles them."""
    rounds: int = 9
    """Number of times that each side is timed, in turn; of the rounds' ratios the median counts."""
    compile: bool = True
    """Time compiled networks too."""
    attention: Literal["default", "plain"] = "default"
    """Kernel of attention on both sides. default: whatever torch picks; plain: its reference in bf16, since on a CPU the
    default's backward pass takes several times as long as that."""
    profile: bool = True
    """Show where the time of an eager step goes."""
    memory_of: str = ""
    """Internal: print the peak memory of a step of `ours` or `diffusers`."""


def main(config: DiTStepConfig) -> int:
    """Prints the figures; returns 0."""
    with _attention(config.attention):
        if config.memory_of:
            print(json.dumps(_peak_memory(config)))
        else:
            print_report("DiT step", _figures(config), dtype=auto_dtype())
    return 0


@contextmanager
def _attention(kind: Literal["default", "plain"]) -> Iterator[None]:
    """The kernels of scaled_dot_product_attention inside the block."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if kind == "default":
        yield
        return
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # on CPUs too: else it computes in float32
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _figures(config: DiTStepConfig) -> dict[str, float]:
    steps = {"ours": _our_step(config), "diffusers": _their_step(config)}
    if config.compile:
        steps |= {"ours compiled": _our_step(config, compiled=True), "diffusers compiled": _their_step(config, compiled=True)}
    floor = _matrix_products(config)
    seconds = _in_turn(steps | {"matrix products": floor}, rounds=config.rounds)
    best = "ours compiled" if config.compile else "ours"
    figures = {
        "eager_ratio": _ratio(seconds, "diffusers", over="ours"),
        "memory_ratio": _memory("ours", config) / _memory("diffusers", config),
        "of_matmul_floor": _ratio(seconds, "matrix products", over=best),
        **{f"{name.replace(' ', '_')}_s": statistics.median(values) for name, values in seconds.items()},
    }
    if config.compile:
        figures["compiled_ratio"] = _ratio(seconds, "diffusers", over=best)
        figures["compiled_vs_compiled"] = _ratio(seconds, "diffusers compiled", over=best)
    samplings = {"ours": _our_sampling(config), "diffusers": _their_sampling(config)}
    if config.compile:
        samplings["ours compiled"] = _our_sampling(config, compiled=True)
    sampling = _in_turn(samplings, rounds=config.rounds)
    figures["sampling_ratio"] = _ratio(sampling, "diffusers", over="ours")
    if config.compile:
        figures["compiled_sampling_ratio"] = _ratio(sampling, "diffusers", over="ours compiled")
    if config.profile:
        _print_profile({name: _where_time_goes(steps[name]) for name in ("ours", "diffusers")})
    return figures


def _in_turn(sides: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """The seconds of each side in each round, after two unmeasured calls (compilation); every other round runs backwards."""
    for side in sides.values():
        side()
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            started = time.perf_counter()
            sides[name]()
            times[name].append(time.perf_counter() - started)
    return times


def _ratio(times: Mapping[str, Sequence[float]], side: str, *, over: str) -> float:
    """The median of the rounds' ratios: what slows a machine for a while slows both sides of a round."""
    return statistics.median(a / b for a, b in zip(times[side], times[over], strict=True))


@dataclass(frozen=True, eq=False)
class _Inputs:
    latents: "Tensor"
    timesteps: "Tensor"
    embeddings: "Tensor"
    mask: "Tensor"
    target: "Tensor"


def _inputs(num: int) -> _Inputs:
    import torch

    generator = torch.Generator().manual_seed(0)
    return _Inputs(
        latents=torch.randn(num, 4, _SIDE, _SIDE, generator=generator),
        timesteps=torch.rand(num, generator=generator) * 1000,
        embeddings=torch.randn(num, _PLACES, 4096, generator=generator),
        mask=(torch.arange(_PLACES) < _TOKENS).expand(num, _PLACES),
        target=torch.randn(num, 8, _SIDE, _SIDE, generator=generator),
    )


def _our_network(config: DiTStepConfig) -> "DiT":
    import torch

    from model.dit import DiT, DiTConfig

    return DiT(DiTConfig(depth=config.depth, sample_size=_SIDE, width=_WIDTH)).initialise(torch.Generator().manual_seed(0))


def _their_network(config: DiTStepConfig) -> Any:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_layers=config.depth, sample_size=_SIDE, caption_channels=4096, use_additional_conditions=False
    )


def _our_step(config: DiTStepConfig, *, compiled: bool = False) -> Callable[[], None]:
    from model.dit import Captions

    network, inputs = _our_network(config), _inputs(config.batch)
    captions = Captions.from_padded(inputs.embeddings, inputs.mask)
    if compiled:
        network.compile_blocks()
    return _training_step(network, lambda: network(inputs.latents, inputs.timesteps, captions=captions), inputs.target)


def _their_step(config: DiTStepConfig, *, compiled: bool = False) -> Callable[[], None]:
    import torch

    network, inputs = _their_network(config), _inputs(config.batch)
    call = torch.compile(network) if compiled else network
    return _training_step(
        network,
        lambda: (
            call(
                inputs.latents,
                encoder_hidden_states=inputs.embeddings,
                timestep=inputs.timesteps,
                encoder_attention_mask=inputs.mask.long(),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample
        ),
        inputs.target,
    )


def _training_step(network: Any, forward: Callable[[], "Tensor"], target: "Tensor") -> Callable[[], None]:
    import torch

    def step() -> None:
        with torch.autocast("cpu", dtype=_dtype(), enabled=_dtype() != torch.float32):
            output = forward()
        torch.nn.functional.mse_loss(output.float(), target).backward()
        network.zero_grad(set_to_none=True)

    return step


def _dtype() -> "torch.dtype":
    """The number format that this processor is fast in."""
    import torch

    found: torch.dtype = getattr(torch, auto_dtype())
    return found


def _our_sampling(config: DiTStepConfig, *, compiled: bool = False) -> Callable[[], object]:

    from model.diffusion import Diffusion
    from model.dit import Captions
    from model.sampling import Conditioning, SamplingConfig, sample_latents

    network, inputs = _our_network(config).to(_dtype()).eval(), _inputs(config.batch // 2)
    if compiled:
        network.compile_blocks()
    captions = Captions.from_padded(inputs.embeddings.to(_dtype()), inputs.mask)
    conditioning = Conditioning(captions=captions, negative_captions=captions)
    return lambda: sample_latents(network, Diffusion(), conditioning, noise=inputs.latents, config=SamplingConfig())


def _their_sampling(config: DiTStepConfig) -> Callable[[], object]:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline

    from model.diffusion import Diffusion

    inputs = _inputs(config.batch // 2)
    scheduler = DPMSolverMultistepScheduler.from_config(Diffusion().scheduler_config("dpm-solver++"))
    network = _their_network(config).to(_dtype()).eval()
    pipeline = PixArtAlphaPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=network, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    embeddings, mask = inputs.embeddings.to(_dtype()), inputs.mask.long()
    return lambda: pipeline(
        negative_prompt=None,
        prompt_embeds=embeddings,
        prompt_attention_mask=mask,
        negative_prompt_embeds=embeddings,
        negative_prompt_attention_mask=mask,
        latents=inputs.latents.to(_dtype()),
        num_inference_steps=20,
        guidance_scale=4.5,
        height=8 * _SIDE,
        width=8 * _SIDE,
        use_resolution_binning=False,
        output_type="latent",
    )


def _matrix_products(config: DiTStepConfig) -> Callable[[], None]:
    """All matrix products of our step, forward and both backward ones, on bf16 tensors that are there already."""
    import torch

    image, text, width = config.batch * _SIDE**2 // 4, config.batch * _TOKENS, _WIDTH
    block = [(image, 1, 3), (image, 1, 1), (image, 1, 1), (text, 1, 2), (image, 1, 1), (image, 1, 4), (image, 4, 1)]
    shapes = [(rows, k * width, n * width) for rows, k, n in block] * config.depth + [(text, 4096, width), (text, width, width)]
    tensors = [tuple(torch.randn(shape, dtype=_dtype()) for shape in ((rows, k), (n, k), (rows, n))) for rows, k, n in shapes]
    places = config.batch * 16
    pairs = [(_SIDE**2 // 4, _SIDE**2 // 4), (_SIDE**2 // 4, _TOKENS)] * config.depth
    heads = [
        tuple(torch.randn(shape, dtype=_dtype()) for shape in ((places, n, 72), (places, m, 72), (places, n, m)))
        for n, m in pairs
    ]

    def products() -> None:
        for x, weight, gradient in tensors:
            torch.nn.functional.linear(x, weight)
            gradient @ weight
            gradient.T @ x
        for query, key, score in heads:
            for _ in range(2):  # scores, and the values' turn; for each its two backward products
                query @ key.mT
                score @ key
                score.mT @ query

    return products


def _memory(side: str, config: DiTStepConfig) -> float:
    """Peak memory of one side's step in bytes, measured in its own process."""
    command = [sys.executable, "-m", "benchmarks.dit_step", f"--memory_of={side}", f"--depth={config.depth}"]
    command += [f"--batch={config.batch}", f"--attention={config.attention}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"measuring the memory of {side} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def _peak_memory(config: DiTStepConfig) -> int:
    step = {"ours": _our_step, "diffusers": _their_step}[config.memory_of](config)
    before = _memory_status("VmRSS")
    for _ in range(3):
        step()
    return _memory_status("VmHWM") - before


def _memory_status(name: str) -> int:
    """A line of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def _where_time_goes(step: Callable[[], None]) -> Counter[str]:
    """Milliseconds of one step by kind of operation."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    times: Counter[str] = Counter()
    for event in profiler.key_averages():
        kind = next((kind for kind, names in _KINDS.items() if any(name in event.key for name in names)), "the rest")
        times[kind] += event.self_cpu_time_total / 1000
    return times


def _print_profile(times: Mapping[str, Counter[str]]) -> None:
    print(f"{'one eager step, ms':<22}" + "".join(f"{name:>12}" for name in times))
    for kind in [*_KINDS, "the rest"]:
        if any(times[name][kind] for name in times):
            print(f"  {kind:<20}" + "".join(f"{times[name][kind]:>12.0f}" for name in times))


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            DiTStepConfig, main, prog="python -m benchmarks.dit_step", example="python -m benchmarks.dit_step --rounds 9"
        )
    )
