"""The training of llava-mini: one loop for both phases, which resumes from the state in the run folder.

The state (weights, optimizer, images seen) is only ever read back by this program; the model that others load is written
by `save_pretrained`. Tensor legend: B batch, L tokens, D width, V vocabulary.
"""

import math
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.openmoji.llava_mini import IMAGE_TOKEN, NUM_IMAGE_TOKENS, build_model, build_processor
from examples.openmoji.llava_warmup import PatchLabeller, normalized, patch_figures
from examples.openmoji.train_llava import PhaseConfig, TrainLlavaConfig
from examples.openmoji.training_batches import IGNORED, Batch, batches

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

_VISION = ("vision_tower", "tower")
_MAX_GRADIENT_NORM = 1.0
_FINAL_LR_SHARE = 0.05

Figures = tuple[Tensor, dict[str, float]]


def train(config: TrainLlavaConfig) -> None:
    """Runs both phases, each from where its state stands."""
    from examples.openmoji.train_tokenizers import llava_tokenizer

    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    llava_tokenizer(run_dir / "tokenizer")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    processes = torch.multiprocessing.start_processes  # type: ignore[attr-defined]
    processes(_train_rank, args=(config, address), nprocs=config.num_processes, start_method="spawn")  # type: ignore[no-untyped-call]


def _train_rank(rank: int, config: TrainLlavaConfig, address: str) -> None:
    """One of the processes that share each batch; all hold the same weights."""
    from examples.openmoji.train_tokenizers import llava_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=config.num_processes)
    tokenizer_folder = Path(config.run_dir) / "tokenizer"
    tokenizer = llava_tokenizer(tokenizer_folder)
    model = build_model(tokenizer)
    model.set_attn_implementation("eager")  # faster than SDPA for short sequences on a CPU
    if _compiles(config.compile, rank=rank):
        for layer in [*model.model.vision_tower.encoder.layers, *model.model.language_model.layers]:
            layer.compile(dynamic=False)  # one layer at a time: all share one compilation
    labeller, captioner = PatchLabeller(model.model.vision_tower), CaptionTrainer(model, tokenizer)
    run_phase("warmup", labeller, patch_figures_of, config=config, phase=config.warmup)
    run_phase(
        "captions",
        captioner,
        caption_figures,
        config=config,
        phase=config.captions,
        tokenizer_folder=str(tokenizer_folder),
        save=lambda: save_pretrained(model, tokenizer, Path(config.out)),
    )
    torch.distributed.destroy_process_group()


def _compiles(choice: str, *, rank: int) -> bool:
    """Whether to compile; `auto` falls back with one line where torch would find no compiler."""
    if choice != "auto":
        return choice == "true"
    found = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    if not found and rank == 0:
        print("no C++ compiler here: training goes on uncompiled and slower", flush=True)
    return found


class CaptionTrainer(nn.Module):
    """The model's parts in training order; the image's tokens stand at the same place in every row."""

    def __init__(self, model: "LlavaForConditionalGeneration", tokenizer: "PreTrainedTokenizerFast") -> None:
        super().__init__()
        self.vision_tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        self.language_model, self.lm_head = model.model.language_model, model.lm_head
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def forward(self, pixels: Tensor, input_ids: Tensor, image_start: int, answer_start: int) -> Tensor:
        """pixels (B, 3, 64, 64), input_ids (B, L) -> logits (B, L - answer_start, V) of input_ids[:, answer_start:]."""
        patches = self.projector(self.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:])  # (B, 64, D)
        text = self.language_model.get_input_embeddings()(input_ids)  # (B, L, D)
        after = image_start + NUM_IMAGE_TOKENS
        embeddings = torch.cat([text[:, :image_start], patches.to(text.dtype), text[:, after:]], dim=1)
        # Padding is on the right and attention is causal: no mask is needed.
        hidden = self.language_model(inputs_embeds=embeddings[:, :-1], use_cache=False).last_hidden_state
        logits: Tensor = self.lm_head(hidden[:, answer_start - 1 :])
        return logits


def patch_figures_of(model: nn.Module, batch: Batch) -> Figures:
    """Loss and accuracies of the warm-up."""
    figures = patch_figures(model, batch)
    return figures.loss, figures.accuracy


def caption_figures(model: nn.Module, batch: Batch) -> Figures:
    """Loss per token of the captions, and the share of tokens predicted."""
    assert batch.input_ids is not None and batch.answer_mask is not None
    logits = model(normalized(batch.pixels), batch.input_ids, batch.image_start, batch.answer_start).float()
    answer = batch.input_ids[:, batch.answer_start :].masked_fill(~batch.answer_mask, IGNORED)
    loss = cross_entropy(logits.flatten(0, 1), answer.flatten(), ignore_index=IGNORED)
    right = (logits.argmax(-1) == answer)[batch.answer_mask].float().mean().item()
    return loss, {f"token_accuracy_{batch.prompt}": right}


def run_phase(
    name: str,
    module: nn.Module,
    figures_of: Callable[[nn.Module, Batch], Figures],
    *,
    config: TrainLlavaConfig,
    phase: PhaseConfig,
    tokenizer_folder: str | None = None,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Trains `module` for the phase; `save` is called by the first process after each checkpoint."""
    rank = torch.distributed.get_rank()
    state = Path(config.run_dir) / f"{name}.pt"
    optimizer = torch.optim.AdamW(_parameter_groups(module, phase), betas=(0.9, 0.98), fused=True)
    seen = _load_state(state, module, optimizer)
    stream = batches(
        seed=config.seed,
        batch_size=phase.batch_size,
        first_batch=seen // phase.batch_size,
        share=(rank, config.num_processes),
        tokenizer_folder=tokenizer_folder,
    )
    log = _Log(name, phase.images, config.log_interval_s, seen)
    saved = seen
    while seen < phase.images:
        _set_lr(optimizer, _lr_share(seen, phase))
        loss, figures = _step(module, optimizer, figures_of, next(stream))
        seen += phase.batch_size
        if rank == 0:
            log.add(seen, loss, figures)
            if seen >= phase.images or seen - saved >= config.checkpoint_images:
                _save_state(state, module, optimizer, seen)
                save()
                saved = seen
    torch.distributed.barrier()


def _step(
    module: nn.Module, optimizer: torch.optim.Optimizer, figures_of: Callable[[nn.Module, Batch], Figures], batch: Batch
) -> tuple[float, dict[str, float]]:
    """One step on the batch that all processes share; the figures are of this process's part."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, figures = figures_of(module, batch)
    loss.backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    flat *= torch.clamp(_MAX_GRADIENT_NORM / (flat.norm() + 1e-6), max=1.0)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), figures


class _Log:
    """Prints the means since the last line."""

    def __init__(self, name: str, images: int, interval_s: float, seen: int) -> None:
        self.name, self.images, self.interval_s = name, images, interval_s
        self._start(seen)

    def _start(self, seen: int) -> None:
        self.since, self.first, self.values = time.monotonic(), seen, dict[str, list[float]]()

    def add(self, seen: int, loss: float, figures: dict[str, float]) -> None:
        for key, value in {"loss": loss, **figures}.items():
            self.values.setdefault(key, []).append(value)
        seconds = time.monotonic() - self.since
        if seconds > self.interval_s:
            means = " ".join(f"{key} {sum(values) / len(values):.4f}" for key, values in self.values.items())
            rate = (seen - self.first) / seconds
            print(f"{self.name} {seen}/{self.images} images, {rate:.0f} images/s, {means}", flush=True)
            self._start(seen)


def _parameter_groups(module: nn.Module, phase: PhaseConfig) -> list[dict[str, Any]]:
    """Four groups: vision or not, matrix or not (the others have no weight decay); `peak` is the group's learning rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        is_vision = name.startswith(_VISION)
        parameter.requires_grad_(not is_vision or phase.vision_lr > 0)
        groups.setdefault((is_vision, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": members, "peak": phase.vision_lr if is_vision else phase.lr, "weight_decay": phase.weight_decay * is_matrix}
        for (is_vision, is_matrix), members in groups.items()
    ]


def _lr_share(seen: int, phase: PhaseConfig) -> float:
    """The share of the peak learning rate: a linear warm-up, then a cosine."""
    if seen < phase.warmup_images:
        return (seen + phase.batch_size) / (phase.warmup_images + phase.batch_size)
    progress = (seen - phase.warmup_images) / max(1, phase.images - phase.warmup_images)
    return _FINAL_LR_SHARE + (1 - _FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))


def _set_lr(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def _load_state(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads the state if there is one; returns the images seen. The peaks of the configuration are kept."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["model"])
    peaks = [group["peak"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["peak"] = peak
    images_seen: int = state["images_seen"]
    return images_seen


def _save_state(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, seen: int) -> None:
    unfinished = path.with_suffix(".unfinished")
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict(), "images_seen": seen}, unfinished)
    os.replace(unfinished, path)


def save_pretrained(model: "LlavaForConditionalGeneration", tokenizer: "PreTrainedTokenizerFast", out: Path) -> None:
    """Writes model (bf16) and processor; each file replaces the old one whole."""
    import copy
    import tempfile

    from transformers import GenerationConfig

    out.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=160,
    )
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        half.save_pretrained(folder)
        build_processor(tokenizer).save_pretrained(folder)
        for path in Path(folder).iterdir():
            path.chmod(0o644)
            os.replace(path, out / path.name)
