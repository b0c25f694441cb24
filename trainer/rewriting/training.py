"""Training of a rewriter: an encoder-decoder learns to write the dense caption of an image from a short one.

Teacher forcing with cross entropy, AdamW, linear warm-up and decay. The order of the pairs and the first weights follow from
the seed alone, there is no dropout, and the state is saved every `checkpoint_steps`: a killed training resumes bit-equal.
Tensor legend: B pairs, L tokens of the longest prompt, M tokens of the longest caption.
"""

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foundry.errors import UserError
from foundry.hardware import resolve_dtype
from foundry.reporting.lines import say
from foundry.storage.folder import new_file, new_folder
from model.encoders.frozen_parts import find_part
from model.encoders.text_encoder import TextEncoder, TextEncoderConfig, load_text_encoder
from model.formats.checkpoint import PIPELINE, PartConfig, find_checkpoint, read_pipeline_config
from model.formats.json_files import write_json
from model.rewriting.rewriter import RECORD, LocalRewriter, RewriterRecord, open_rewriter
from model.rewriting.stated import lost_words
from trainer.rewriting.config import FitRewriterConfig
from trainer.rewriting.pairs import Pair, read_pairs, split_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE, REWRITER = "training/state.safetensors", "rewriter"
_IGNORED = -100
_DECAY_SHARE = 0.4
_MAX_GRADIENT_NORM = 1.0
_VALIDATION_BATCH = 64
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def fit_rewriter(config: FitRewriterConfig) -> Path:
    """Trains what is still to be trained, writes the rewriter and returns its folder. Raises UserError."""
    out = Path(config.out)
    if (out / REWRITER / RECORD).is_file():
        say(f"{out / REWRITER} is finished; to train another one, give another folder")
        return out / REWRITER
    if config.checkpoint is not None:
        read_pipeline_config(find_checkpoint(config.checkpoint))  # one that is missing is said before the training
    torch.manual_seed(config.seed)
    encoder = load_text_encoder(
        TextEncoderConfig(name=config.text_encoder, dtype="float32", max_caption_tokens=config.max_caption_tokens)
    )
    training, validation = split_pairs(_fitting(read_pairs(config), encoder), num_validation=config.validation_pairs)
    model, tokenizer = _new_model(config, encoder)
    say(f"{len(training)} pairs to train on, {len(validation)} prompts to validate on")
    state = _Training(config, model, tokenizer)
    state.run(training, validation)
    record = RewriterRecord(
        text_encoder_fingerprint=encoder.fingerprint(),
        max_caption_tokens=config.max_caption_tokens,
        ignored_words=config.ignored_words,
        synonyms=config.synonyms,
        licence=config.licence,
    )
    _save(out / REWRITER, model, tokenizer, record)
    rewriter = open_rewriter(str(out / REWRITER))
    _report(rewriter, validation)
    if config.checkpoint is not None:
        _name_in_checkpoint(config.checkpoint, rewriter)
    return out / REWRITER


class _Training:
    """Model, optimiser and number of steps done."""

    def __init__(self, config: FitRewriterConfig, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.path = Path(config.out) / STATE
        self.step = self._load()

    def run(self, training: Sequence[Pair], validation: Sequence[Pair]) -> None:
        """Trains to the last step."""
        config, since, losses = self.config, time.monotonic(), []
        dtype = getattr(torch, resolve_dtype(config.dtype, "cpu"))
        while self.step < config.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr * lr_share(config, self.step)
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                loss = self._loss(batch_of_step(training, step=self.step, batch_size=config.batch_size, seed=config.seed))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_GRADIENT_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            self.step += 1
            if self.step % config.checkpoint_steps == 0 or self.step == config.steps:
                if not torch.isfinite(loss):
                    raise UserError(f"the loss is {losses[-1]} at step {self.step}: train with a lower rate", setting="lr")
                self._save()
                rate = len(losses) * config.batch_size / (time.monotonic() - since)
                mean, measured = sum(losses) / len(losses), self._validation_loss(validation)
                say(
                    f"step {self.step}/{config.steps}, {rate:.0f} pairs/s, loss {mean:.4f}, validation {measured:.4f}",
                )
                since, losses = time.monotonic(), []

    def _loss(self, pairs: Sequence[Pair]) -> "torch.Tensor":
        inputs = self.tokenizer([pair.prompt.lower() for pair in pairs], padding=True, return_tensors="pt")  # (B, L)
        targets = self.tokenizer([pair.caption.lower() for pair in pairs], padding=True, return_tensors="pt")  # (B, M)
        labels = targets.input_ids.masked_fill(targets.attention_mask == 0, _IGNORED)
        loss: torch.Tensor = self.model(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, labels=labels, use_cache=False
        ).loss
        return loss

    @torch.no_grad()
    def _validation_loss(self, pairs: Sequence[Pair]) -> float:
        parts = [pairs[start : start + _VALIDATION_BATCH] for start in range(0, len(pairs), _VALIDATION_BATCH)]
        return sum(self._loss(part).item() * len(part) for part in parts) / max(1, len(pairs))

    def _save(self) -> None:
        from safetensors.torch import save_file

        tensors = {f"model.{name}": tensor for name, tensor in self.model.named_parameters()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": moments[name] for name in _MOMENTS}
        tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        with new_file(self.path) as partial:
            save_file(tensors, partial, metadata={"step": str(self.step), "config": _identity(self.config)})

    def _load(self) -> int:
        """Loads the state, if there is one, and returns its step. Raises UserError for that of another training."""
        from safetensors import safe_open

        if not self.path.is_file():
            return 0
        with safe_open(self.path, framework="pt") as file:
            metadata = file.metadata()
            if metadata["config"] != _identity(self.config):
                raise UserError(f"{self.path} is of a training with other settings: give another folder", setting="out")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        number = len(list(self.model.parameters()))
        states = {index: {name: tensors[f"optimizer.{index}.{name}"] for name in _MOMENTS} for index in range(number)}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": states})
        say(f"resumes after step {metadata['step']}")
        return int(metadata["step"])


def batch_of_step(pairs: Sequence[Pair], *, step: int, batch_size: int, seed: int) -> list[Pair]:
    """The pairs of a step: each epoch is a permutation that follows from the seed; a batch may end one and begin the next."""
    found = []
    for number in range(step * batch_size, (step + 1) * batch_size):
        epoch, position = divmod(number, len(pairs))
        found.append(pairs[_permutation(len(pairs), f"{seed}/{epoch}")[position]])
    return found


_permutations: dict[tuple[int, str], list[int]] = {}


def _permutation(number: int, seed: str) -> list[int]:
    if (number, seed) not in _permutations:
        _permutations.clear()
        _permutations[number, seed] = random.Random(seed).sample(range(number), number)
    return _permutations[number, seed]


def lr_share(config: FitRewriterConfig, step: int) -> float:
    """Share of the peak learning rate in the step after `step` steps: linear warm-up, constant, linear decay to 0."""
    rising = (step + 1) / (config.warmup_steps + 1)
    falling = (config.steps - step) / max(1.0, config.steps * _DECAY_SHARE)
    return min(1.0, rising, falling)


def _fitting(pairs: Sequence[Pair], encoder: TextEncoder) -> list[Pair]:
    """Pairs whose captions the text encoder reads to the end; prints how many do not fit."""
    cut = encoder.count_cut_tokens([pair.caption for pair in pairs])
    fitting = [pair for pair, number in zip(pairs, cut, strict=True) if not number]
    if len(fitting) < len(pairs):
        say(f"{len(pairs) - len(fitting)} of {len(pairs)} pairs are left out: their captions exceed the text encoder's limit")
    return fitting


def _new_model(config: FitRewriterConfig, encoder: TextEncoder) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The encoder-decoder before its first step, in float32, and its tokenizer. Raises UserError."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

    from foundry.storage.model_files import load_network

    if config.base is not None:
        part = find_part(config.base, "rewriter")
        model = load_network(AutoModelForSeq2SeqLM.from_pretrained, part.folder, what="an encoder-decoder", dtype=torch.float32)
        return model.train(), AutoTokenizer.from_pretrained(part.tokenizer_folder)
    of_text = encoder.model.config
    if config.encoder_layers > of_text.num_layers:
        raise UserError(f"the text encoder has {of_text.num_layers} layers: take that many at most", setting="encoder_layers")
    values = of_text.to_dict()
    kept = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "feed_forward_proj", "relative_attention_num_buckets")
    model = T5ForConditionalGeneration(
        T5Config(
            **{name: values[name] for name in kept},
            num_layers=config.encoder_layers,
            num_decoder_layers=config.decoder_layers,
            dropout_rate=0.0,
            tie_word_embeddings=True,
            pad_token_id=of_text.pad_token_id,
            eos_token_id=of_text.eos_token_id,
            decoder_start_token_id=of_text.pad_token_id,
        )
    )
    own = model.state_dict()
    model.load_state_dict({name: tensor for name, tensor in encoder.model.state_dict().items() if name in own}, strict=False)
    return model.train(), encoder.tokenizer


def _save(folder: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", record: RewriterRecord) -> None:
    """Writes the rewriter in bf16, the folder at once."""
    with new_folder(folder) as partial:
        model.to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / RECORD).write_text(json.dumps(record.to_dict(), indent=2) + "\n", encoding="utf-8")


def _report(rewriter: LocalRewriter, validation: Sequence[Pair]) -> None:
    texts = dict(rewriter.rewrite([pair.prompt for pair in validation]))
    record = rewriter.record
    kept = sum(not lost_words(pair.prompt, texts[index], record) for index, pair in enumerate(validation))
    say(f"{kept} of {len(validation)} rewritten validation prompts keep every word of theirs, or a synonym")


def _name_in_checkpoint(checkpoint: str, rewriter: LocalRewriter) -> None:
    """Writes the rewriter's folder and fingerprint into pipeline.json of the checkpoint."""
    root = find_checkpoint(checkpoint)
    part = PartConfig(name=str(rewriter.part.folder.resolve()), fingerprint=rewriter.fingerprint)
    with new_file(root / PIPELINE) as partial:
        write_json(partial, replace(read_pipeline_config(root), rewriter=part).to_dict())
    say(f"{root / PIPELINE} names it as this checkpoint's rewriter")


def _identity(config: FitRewriterConfig) -> str:
    """The settings that decide the weights."""
    free = ("out", "checkpoint", "checkpoint_steps", "validation_pairs", "licence", "ignored_words", "synonyms")
    values: dict[str, Any] = {name: value for name, value in asdict(config).items() if name not in free}
    return json.dumps(values | {"dtype": resolve_dtype(config.dtype, "cpu")}, sort_keys=True)
