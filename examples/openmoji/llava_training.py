"""The training of llava-mini: what its two phases train, on the loop that the small world's networks share.

Tensor legend: B batch, L tokens, D width, V vocabulary.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.openmoji.llava_mini import IMAGE_TOKEN, NUM_IMAGE_TOKENS, build_model, build_processor, use_hub_names
from examples.openmoji.llava_warmup import PatchLabeller, normalized, patch_figures
from examples.openmoji.train_llava import LlavaPhaseConfig, TrainLlavaConfig
from examples.openmoji.training_batches import IGNORED, Batch, batches
from examples.openmoji.training_loop import Figures, fit, run_processes, save_pretrained

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

_VISION = ("vision_tower", "tower")


def train(config: TrainLlavaConfig) -> None:
    """Runs both phases, each from its saved state."""
    from examples.openmoji.train_tokenizers import llava_tokenizer

    llava_tokenizer(_tokenizer_folder(config))
    run_processes(_train_rank, config, num_processes=config.num_processes, seed=config.seed)


def _train_rank(config: TrainLlavaConfig) -> None:
    """One of the processes that share each batch; all hold the same weights."""
    from examples.openmoji.train_tokenizers import llava_tokenizer

    tokenizer = llava_tokenizer(_tokenizer_folder(config))
    model = build_model(tokenizer)
    model.set_attn_implementation("eager")  # faster than SDPA for short sequences on a CPU
    if _compiles(config.compile, rank=torch.distributed.get_rank()):
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
        tokenizer_folder=str(_tokenizer_folder(config)),
        save=lambda: _save(model, tokenizer, Path(config.out)),
    )


def _tokenizer_folder(config: TrainLlavaConfig) -> Path:
    return Path(config.run_dir) / "tokenizer"


def _compiles(choice: str, *, rank: int) -> bool:
    """Whether to compile; `auto` falls back with one line where torch would find no compiler."""
    if choice != "auto":
        return choice == "true"
    found = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    if not found and rank == 0:
        print("no C++ compiler here: training continues uncompiled, which is slower", flush=True)
    return found


class CaptionTrainer(nn.Module):
    """The model's parts in training order; the image's tokens are at the same positions in every row."""

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
    phase: LlavaPhaseConfig,
    tokenizer_folder: str | None = None,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Trains `module` for the phase; `save` is called by the first process after each checkpoint."""

    def parts(first: int, share: tuple[int, int]) -> Iterator[Batch]:
        return batches(
            seed=config.seed,
            batch_size=phase.batch_size,
            first_batch=first,
            tokenizer_folder=tokenizer_folder,
            share=share,
        )

    fit(
        name,
        module,
        figures_of,
        optimizers=[torch.optim.AdamW(_parameter_groups(module, phase), betas=(0.9, 0.98), fused=True)],
        schedule=phase,
        batches=parts,
        run_dir=Path(config.run_dir),
        save=save,
    )


def _parameter_groups(module: nn.Module, phase: LlavaPhaseConfig) -> list[dict[str, Any]]:
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


def _save(model: "LlavaForConditionalGeneration", tokenizer: "PreTrainedTokenizerFast", out: Path) -> None:
    """Writes model and processor, the weights under the names that LLaVA 1.5 has on the hub."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=160,
    )
    save_pretrained(model, out, processor=build_processor(tokenizer), finish=use_hub_names)
