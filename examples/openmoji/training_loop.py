"""The training loop of the small world's networks: data-parallel processes of one thread each, which resume where they were.

The state (weights, optimizer, samples seen) is only ever read back by this program; the model that others load is written
by `save_pretrained`.
"""

import copy
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn

from examples.openmoji.muon import Muon
from examples.openmoji.training_config import PhaseConfig, ScheduleConfig
from foundry.hardware import Dtype, auto_dtype

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

_MAX_GRADIENT_NORM = 1.0

BatchT = TypeVar("BatchT")
ConfigT = TypeVar("ConfigT")
ModuleT = TypeVar("ModuleT", bound=nn.Module)
Figures = tuple[Tensor, dict[str, float]]
Optimizers = list[torch.optim.Optimizer]


def run_processes(work: Callable[[ConfigT], None], config: ConfigT, *, num_processes: int, seed: int) -> None:
    """Runs `work(config)` in processes that form a group; all have the same seed, so that their weights start equal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    start = torch.multiprocessing.start_processes  # type: ignore[attr-defined]
    arguments = (work, config, (address, num_processes, seed))
    start(_run_rank, args=arguments, nprocs=num_processes, start_method="spawn")  # type: ignore[no-untyped-call]


def _run_rank(rank: int, work: Callable[[ConfigT], None], config: ConfigT, group: tuple[str, int, int]) -> None:
    address, num_processes, seed = group
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=num_processes)
    work(config)
    torch.distributed.destroy_process_group()


def fit(
    name: str,
    module: ModuleT,
    figures_of: Callable[[ModuleT, BatchT], Figures],
    *,
    optimizers: Optimizers,
    schedule: PhaseConfig,
    batches: Callable[[int, tuple[int, int]], Iterator[BatchT]],
    run_dir: Path,
    save: Callable[[], None],
) -> None:
    """Trains `module` from its state in `run_dir`; the first process calls `save` after each checkpoint.

    `optimizers` hold all parameters; each group has its learning rate at the `peak`.
    `figures_of` gives the loss and other figures of a batch; `batches(first, (rank, ranks))` the rank's parts of the batches
    from number `first` on. Noise in `figures_of` comes from torch's generator, which is seeded anew for every step.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    run_dir.mkdir(parents=True, exist_ok=True)
    state = run_dir / f"{name}.pt"
    seen, dtype = _load_state(state, module, optimizers)
    saved = seen
    if rank == 0:
        print(f"{name}: {seen} of {schedule.samples} samples seen, {dtype}", flush=True)
    log = _Log(name, schedule, seen)
    stream = batches(seen // schedule.batch_size, (rank, ranks))
    while seen < schedule.samples:
        for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
            group["lr"] = group["peak"] * schedule.lr_share(seen)
        torch.manual_seed(seen * ranks + rank)
        loss, figures = _step(module, optimizers, figures_of, next(stream), dtype=dtype)
        seen += schedule.batch_size
        if rank == 0:
            log.add(seen, loss, figures)
            if seen >= schedule.samples or seen - saved >= schedule.checkpoint_samples:
                _save_state(state, module, optimizers, seen, dtype=dtype)
                save()
                saved = seen
    torch.distributed.barrier()


def muon_and_adamw(module: nn.Module, inner: list[nn.Parameter], schedule: ScheduleConfig) -> Optimizers:
    """Muon for `inner`, matrices and filters, and AdamW for the rest, of which vectors have no weight decay."""
    to_muon = {id(parameter) for parameter in inner}
    rest = [parameter for parameter in module.parameters() if id(parameter) not in to_muon]
    decayed = [
        {"params": [p for p in rest if p.ndim > 1], "peak": schedule.lr, "weight_decay": schedule.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "peak": schedule.lr, "weight_decay": 0.0},
    ]
    muon = Muon([{"params": inner, "peak": schedule.muon_lr}], lr=0.0, momentum=0.95, weight_decay=schedule.weight_decay)
    return [muon, torch.optim.AdamW(decayed, betas=(0.9, 0.98), fused=True)]


def autocast(dtype: Dtype) -> torch.autocast:
    """Matrix products in this number format."""
    return torch.autocast("cpu", dtype=getattr(torch, dtype), enabled=dtype != "float32")


def save_pretrained(
    model: "PreTrainedModel | ModelMixin",
    out: Path,
    *,
    processor: "ProcessorMixin | PreTrainedTokenizerBase | None" = None,
    finish: Callable[[Path], None] = lambda _: None,
) -> None:
    """Writes the weights in bf16, with configuration and processor or tokenizer; each file replaces the old one whole.

    `finish` may change what was written, in the folder that it is given, before anything is replaced.
    """
    out.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).to(torch.bfloat16)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        half.save_pretrained(folder)
        finish(Path(folder))
        if processor is not None:
            processor.save_pretrained(folder)
        for path in Path(folder).iterdir():
            path.chmod(0o644)
            os.replace(path, out / path.name)


def _step(
    module: ModuleT, optimizers: Optimizers, figures_of: Callable[[ModuleT, BatchT], Figures], batch: BatchT, *, dtype: Dtype
) -> tuple[float, dict[str, float]]:
    """One step on the batch that all processes share; the figures are of this process's part."""
    with autocast(dtype):
        loss, figures = figures_of(module, batch)
    loss.backward()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # Zeros for what this part of the batch did not ask about: another part may have.
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    flat *= torch.clamp(_MAX_GRADIENT_NORM / (flat.norm() + 1e-6), max=1.0)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        # A copy: it takes the layout of the parameter, which fused AdamW expects.
        parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape))
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item(), figures


class _Log:
    """Prints the means since the last line."""

    def __init__(self, name: str, schedule: PhaseConfig, seen: int) -> None:
        self.name, self.schedule = name, schedule
        self._start(seen)

    def _start(self, seen: int) -> None:
        self.since, self.first, self.values = time.monotonic(), seen, dict[str, list[float]]()

    def add(self, seen: int, loss: float, figures: dict[str, float]) -> None:
        for key, value in {"loss": loss, **figures}.items():
            self.values.setdefault(key, []).append(value)
        seconds = time.monotonic() - self.since
        if seconds > self.schedule.log_interval_s:
            means = " ".join(f"{key} {sum(values) / len(values):.4f}" for key, values in self.values.items())
            rate = (seen - self.first) / seconds
            print(f"{self.name} {seen}/{self.schedule.samples} samples, {rate:.0f}/s, {means}", flush=True)
            self._start(seen)


def _load_state(path: Path, module: nn.Module, optimizers: Optimizers) -> tuple[int, Dtype]:
    """Loads the state if there is one; returns the samples seen and the number format, which a training keeps.

    The peaks of the configuration are kept.
    """
    if not path.exists():
        return 0, auto_dtype()
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        peaks = [group["peak"] for group in optimizer.param_groups]
        optimizer.load_state_dict(saved)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
    return state["samples_seen"], state.get("dtype", "bfloat16")  # the only one there was


def _save_state(path: Path, module: nn.Module, optimizers: Optimizers, seen: int, *, dtype: Dtype) -> None:
    unfinished = path.with_suffix(".unfinished")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": module.state_dict(), "optimizers": states, "samples_seen": seen, "dtype": dtype}, unfinished)
    os.replace(unfinished, path)
