"""Prompts of a checkpoint rewritten, checked and kept: each prompt is rewritten once for a rewriter.

A text that is empty, longer than the text encoder reads, or lost a word of its prompt (stated.py) is not used: the prompt is
drawn as it was written, and its `problem` says why. Nothing else changes a prompt.

The cache is a folder with a file for each rewriter and prompt. A file is created whole or not at all, and the first one stays:
processes that write at the same time read the same text.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.errors import UserError
from foundry.storage.folder import Folder, store_errors
from model.encoders.frozen_parts import UNNAMED, find_part
from model.encoders.text_encoder import clean_captions
from model.formats.checkpoint import PipelineConfig, find_checkpoint, read_pipeline_config, read_transformer_config
from model.rewriting.config import OF_CHECKPOINT, RewriteConfig
from model.rewriting.stated import lost_words

if TYPE_CHECKING:
    from model.rewriting.rewriter import Rewriter


@dataclass(frozen=True, kw_only=True)
class RewrittenPrompt:
    """A prompt and what became of it."""

    prompt: str
    text: str
    """Text as the rewriter wrote it."""
    problem: str = ""
    """Reason why the text is not used; empty if it is."""

    @property
    def drawn(self) -> str:
        """The prompt that images are drawn of."""
        return self.prompt if self.problem else self.text


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """All prompts of a command, by what they were written as."""

    rewriter: str
    """Name of the rewriter."""
    identity: str
    """Hash of what decides its texts."""
    prompts: dict[str, RewrittenPrompt]

    def drawn(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """Texts that are drawn for these prompts, in order."""
        return tuple(self.prompts[prompt].drawn for prompt in prompts)

    def summary(self) -> str:
        """One line: how many prompts were rewritten, and why the others were not, with the first of them."""
        left = [one for one in self.prompts.values() if one.problem]
        first = f"; drawn as written: {len(left)}, the first: {left[0].prompt[:80]} ({left[0].problem})" if left else ""
        return f"{len(self.prompts) - len(left)} of {len(self.prompts)} prompts rewritten by {self.rewriter}{first}"


class PromptRewriter:
    """A rewriter with what its texts are checked by. See `open_prompt_rewriter`."""

    def __init__(self, rewriter: "Rewriter", *, name: str, count_tokens: Callable[[str], int], max_tokens: int) -> None:
        self.name = name
        self.identity = hashlib.sha256(rewriter.identity.encode()).hexdigest()[:16]
        """Hash of what decides the texts."""
        self._rewriter = rewriter
        self._count_tokens = count_tokens
        self._max_tokens = max_tokens

    def rewrite(self, prompts: Sequence[str], *, cache: str | None) -> Rewriting:
        """Each prompt rewritten, from the folder `cache` or now. Raises UserError if the rewriter is away."""
        folder = Folder(cache) if cache else None
        texts = _rewritten(list(dict.fromkeys(prompts)), self._rewriter, identity=self.identity, cache=folder)
        checked = {
            prompt: RewrittenPrompt(prompt=prompt, text=text, problem=self._problem(prompt, text))
            for prompt, text in texts.items()
        }
        return Rewriting(rewriter=self.name, identity=self.identity, prompts=checked)

    def _problem(self, prompt: str, text: str) -> str:
        if not text:
            return "the rewriter wrote nothing, or did not finish"
        if (number := self._count_tokens(text)) > self._max_tokens:
            return f"{number} tokens, of which the text encoder reads {self._max_tokens}"
        if lost := lost_words(prompt, text, self._rewriter.record):
            return f"the rewritten prompt no longer says: {', '.join(lost)}"
        return ""


def open_prompt_rewriter(
    config: RewriteConfig, *, checkpoint: str, text_encoder: str | None = None, device: str = "cpu"
) -> PromptRewriter:
    """The rewriter of a checkpoint's prompts. `text_encoder` says where else the checkpoint's text encoder is.

    Raises UserError for a rewriter that is missing or belongs to another text encoder.
    """
    root = find_checkpoint(checkpoint)
    pipeline, max_tokens = read_pipeline_config(root), read_transformer_config(root).max_caption_tokens
    rewriter, name = _open(config, pipeline, max_tokens=max_tokens, device=device)
    return PromptRewriter(rewriter, name=name, count_tokens=_token_counter(pipeline, text_encoder), max_tokens=max_tokens)


def _open(config: RewriteConfig, pipeline: PipelineConfig, *, max_tokens: int, device: str) -> "tuple[Rewriter, str]":
    """The rewriter and its name. Raises UserError for one that is missing, or belongs to another text encoder."""
    from model.rewriting.endpoint import EndpointRewriter
    from model.rewriting.rewriter import open_rewriter

    assert config.model is not None
    if config.url is not None:
        return EndpointRewriter(config, max_tokens=max_tokens), config.model
    name, revision, expected = config.model, config.revision, ""
    if name == OF_CHECKPOINT:
        name, revision, expected = pipeline.rewriter.name, pipeline.rewriter.revision, pipeline.rewriter.fingerprint
        if name == UNNAMED:
            raise UserError(
                "pipeline.json of this checkpoint names no rewriter: give a folder, a hub id or an endpoint",
                setting="rewrite.model",
            )
    rewriter = open_rewriter(name, revision=revision, device=device, max_tokens=max_tokens)
    if expected and rewriter.fingerprint != expected:
        raise UserError(
            f"pipeline.json expects a rewriter with the fingerprint {expected}, but {name} has {rewriter.fingerprint}: give "
            "the right one by its folder",
            setting="rewrite.model",
        )
    of_rewriter, of_checkpoint = rewriter.record.text_encoder_fingerprint, pipeline.text_encoder.fingerprint
    if of_rewriter and of_checkpoint and of_rewriter != of_checkpoint:
        raise UserError(
            f"the rewriter {name} writes for a text encoder with the fingerprint {of_rewriter}, but this checkpoint's has "
            f"{of_checkpoint}: train one for it (python -m trainer.fit_rewriter), or give an instruct model",
            setting="rewrite.model",
        )
    return rewriter, name


def _rewritten(prompts: Sequence[str], rewriter: "Rewriter", *, identity: str, cache: Folder | None) -> dict[str, str]:
    """The text of each prompt, from the cache or written now; each is kept as soon as it is there."""
    names = {prompt: f"{hashlib.sha256(json.dumps([identity, prompt]).encode()).hexdigest()}.json" for prompt in prompts}
    texts: dict[str, str] = {}
    if cache is not None:
        with store_errors(cache):
            present = set(cache.names())
            kept = cache.read_many([name for name in names.values() if name in present])
        texts = {prompt: _text(kept[name], cache.location(name)) for prompt, name in names.items() if name in kept}
    missing = [prompt for prompt in prompts if prompt not in texts]
    for index, written in rewriter.rewrite(missing):
        prompt, text = missing[index], written
        if cache is not None:
            data = json.dumps({"prompt": prompt, "rewritten": written, "rewriter": json.loads(rewriter.identity)}, indent=2)
            with store_errors(cache):
                if not cache.create(names[prompt], data.encode()):
                    text = _text(cache.read(names[prompt]), cache.location(names[prompt]))
        texts[prompt] = text
    return {prompt: texts[prompt] for prompt in prompts}


def _text(data: bytes, location: str) -> str:
    try:
        return str(json.loads(data)["rewritten"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{location} holds no rewritten prompt: remove it", setting="rewrite.cache") from error


def _token_counter(pipeline: PipelineConfig, text_encoder: str | None) -> Callable[[str], int]:
    """Counts the tokens of a prompt as the checkpoint's text encoder reads it."""
    from transformers import AutoTokenizer

    part = find_part(
        text_encoder or pipeline.text_encoder.name,
        "text_encoder",
        revision=None if text_encoder else pipeline.text_encoder.revision,
    )
    tokenizer = AutoTokenizer.from_pretrained(Path(part.tokenizer_folder))
    return lambda text: len(tokenizer(clean_captions([text], pipeline.caption_cleaning)[0], verbose=False).input_ids)
