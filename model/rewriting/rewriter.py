"""Rewriter of prompts: a local encoder-decoder or instruct model, which writes greedily.

An encoder-decoder that `trainer.fit_rewriter` trained has rewriter.json next to its weights: which text encoder reads what it
writes, and how many tokens of it. Any other model is an instruct model, asked by INSTRUCTION through its chat template.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from foundry.errors import UserError
from foundry.hardware import auto_dtype
from foundry.storage.model_files import load_network
from model.encoders.frozen_parts import FrozenPart, find_part, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECORD = "rewriter.json"
FORMAT_VERSION = 1
INSTRUCTION = (
    "Rewrite the prompt below for a text-to-image model as one caption of the finished picture. Keep all that is stated: "
    "every object, number, colour, size, place, relation, name and quoted text, in the prompt's own words. Decide what is "
    "open: where each object is, what it looks like, the background, the light and the style. Add no further objects of the "
    "kinds that are named. Write plain sentences, at most {max_words} words. Answer with the caption alone."
)
"""Instruction of an instruct model; {max_words} follows from the text encoder's limit."""
_WORDS_PER_TOKEN = 0.6
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class RewriterRecord:
    """Content of rewriter.json."""

    text_encoder_fingerprint: str = ""
    """Fingerprint of the text encoder that reads what is written; empty: any."""
    max_caption_tokens: int = 120
    """Number of that text encoder's tokens that it was trained to stay within."""
    ignored_words: tuple[str, ...] = ()
    """Words of prompts that may be left out; see stated.py."""
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Words that may replace a prompt's word."""
    licence: str = ""
    """Licence of the weights and terms of their training data."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}


class Rewriter(Protocol):
    """Rewrites prompts."""

    record: RewriterRecord

    @property
    def identity(self) -> str:
        """Says what decides the texts: the model and its weights, or its address, and the instruction."""
        ...

    def rewrite(self, prompts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Index and text of each prompt, as the model wrote it and as it is done. Raises UserError if it is unavailable."""
        ...


class LocalRewriter:
    """A model of transformers. Deterministic."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        part: FrozenPart,
        record: RewriterRecord,
        instruction: str | None,
        max_new_tokens: int,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.part = part
        self.record = record
        self.instruction = instruction
        """None: the model was trained to rewrite, and needs none."""
        self.max_new_tokens = max_new_tokens

    @property
    def identity(self) -> str:
        """The weights' fingerprint and the instruction."""
        return json.dumps([self.fingerprint, self.instruction, self.max_new_tokens])

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the weights."""
        return fingerprint(self.model.named_parameters())

    def rewrite(self, prompts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Index and text of each prompt, without special tokens; prompts of like length are written together."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            yield from zip(batch, self._generate([prompts[index] for index in batch]), strict=True)

    def _generate(self, prompts: Sequence[str]) -> Iterator[str]:
        import torch

        inputs = self._inputs(prompts).to(self.model.device)
        with torch.inference_mode():
            written = self.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens)
        if not self.model.config.is_encoder_decoder:
            written = written[:, inputs["input_ids"].shape[1] :]
        ended = (written == self._end).any(dim=1)
        for text, is_whole in zip(self.tokenizer.batch_decode(written, skip_special_tokens=True), ended.tolist(), strict=True):
            yield text.strip() if is_whole else ""

    @property
    def _end(self) -> int:
        end = self.model.generation_config.eos_token_id
        return int(end[0] if isinstance(end, list) else end)

    def _inputs(self, prompts: Sequence[str]) -> Any:
        if self.instruction is None:
            return self.tokenizer([prompt.lower() for prompt in prompts], padding=True, return_tensors="pt")
        messages = [chat_messages(prompt, self.instruction) for prompt in prompts]
        texts = [
            self.tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True, enable_thinking=False)
            for one in messages
        ]
        return self.tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")


def open_rewriter(
    name: str, *, revision: str | None = None, device: str = "cpu", max_tokens: int | None = None
) -> LocalRewriter:
    """A rewriter by name: a folder or a hub id. `max_tokens`: how many tokens the text encoder reads.

    A trained one computes in float32, an instruct model in the number format that the device is quickest in.

    Raises UserError if it is missing, is no model that writes, or is an instruct model without a chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    part = find_part(name, "rewriter", revision=revision)
    is_trained = (part.folder / RECORD).is_file()
    record = _read_record(part.folder / RECORD) if is_trained else RewriterRecord(max_caption_tokens=max_tokens or 120)
    try:
        tokenizer = AutoTokenizer.from_pretrained(part.tokenizer_folder)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{part.tokenizer_folder} cannot be read as a tokenizer ({error!r}): fetch it again") from error
    dtype = "float32" if is_trained else auto_dtype(device)
    kind, what = (AutoModelForSeq2SeqLM, "an encoder-decoder") if is_trained else (AutoModelForCausalLM, "a language model")
    model = load_network(kind.from_pretrained, part.folder, what=what, dtype=getattr(torch, dtype)).to(device).eval()
    if not is_trained and not tokenizer.chat_template:
        raise UserError(
            f"{part.name} has no chat template and no {RECORD}: give an instruct model, or a rewriter of trainer.fit_rewriter"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    limit = max_tokens or record.max_caption_tokens
    return LocalRewriter(
        model,
        tokenizer,
        part=part,
        record=record,
        instruction=None if is_trained else instruction_for(limit),
        max_new_tokens=2 * limit,  # other tokens than the text encoder's; what is too long for that is found out
    )


def chat_messages(prompt: str, instruction: str) -> list[dict[str, str]]:
    """The conversation with an instruct model: one message, since not every chat template has a system's."""
    return [{"role": "user", "content": f"{instruction}\n\nPrompt: {prompt}"}]


def instruction_for(max_tokens: int) -> str:
    """INSTRUCTION for a text encoder that reads this many tokens."""
    return INSTRUCTION.format(max_words=max(10, int(max_tokens * _WORDS_PER_TOKEN)))


def _read_record(path: Path) -> RewriterRecord:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(f"expected format_version {FORMAT_VERSION}, found {version}")
        return RewriterRecord(**values | {"ignored_words": tuple(values.get("ignored_words", ()))})
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path} is not the record of a rewriter ({error}): train it again") from error
