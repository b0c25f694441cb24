"""Settings of the training of a rewriter. Imports nothing heavy."""

from dataclasses import dataclass, field

from foundry.hardware import AutoDtype
from foundry.wording import CHOICE, ModelChoice
from model.encoders.frozen_parts import PUBLISHED


@dataclass(frozen=True, kw_only=True)
class FitRewriterConfig:
    """Settings of `python -m trainer.fit_rewriter`."""

    out: str
    """Output folder: training/ holds the state that a restart resumes, rewriter/ the finished model."""
    text_encoder: str = field(metadata={CHOICE: ModelChoice(real=PUBLISHED[120])})
    """Text encoder that reads the rewritten prompts, as in the training of the network: a folder, a hub id, or `mini`."""
    captions: tuple[str, ...] = ()
    """Captioning runs or data sets with short and dense captions of the same images, such as `--prompts ladder` writes."""
    short: tuple[str, ...] = ("short", "medium")
    """Names of the captioner's prompts whose captions are rewritten."""
    dense: str = "dense"
    """Name of the captioner's prompt whose captions are the targets."""
    pairs: tuple[str, ...] = ()
    """Parquet files with the columns prompt and caption: further pairs."""
    max_caption_tokens: int = 120
    """Number of the text encoder's tokens that a target may have; longer ones are left out and counted."""
    base: str | None = None
    """Encoder-decoder to fine-tune, a folder or a hub id; default: a new T5 that starts from the text encoder's layers."""
    encoder_layers: int = 3
    """Number of encoder layers of a new T5: the first ones of the text encoder."""
    decoder_layers: int = 2
    """Number of decoder layers of a new T5."""
    steps: int = 3000
    """Number of optimiser steps."""
    batch_size: int = 64
    """Number of pairs per step."""
    lr: float = 1.5e-3
    """Peak learning rate of AdamW, reached after the warm-up; it falls to 0 over the last 40 % of the steps."""
    warmup_steps: int = 100
    """Number of steps until the peak learning rate."""
    checkpoint_steps: int = 200
    """Number of steps between checkpoints and lines of figures."""
    validation_pairs: int = 256
    """Number of prompts, chosen by a hash, that are kept out of the training and measured."""
    seed: int = 0
    """Random seed for initialisation and data order."""
    dtype: AutoDtype = "auto"
    """Number format of matrix products, by autocast; auto: bfloat16 if the hardware supports it, otherwise float32."""
    ignored_words: tuple[str, ...] = ()
    """Words of prompts that a rewritten prompt may leave out, besides articles, prepositions and words such as `picture`."""
    synonyms: dict[str, list[str]] = field(default_factory=dict)
    """Words that may take the place of a prompt's word in its rewritten form, such as {big: [large]}."""
    checkpoint: str | None = None
    """Checkpoint whose pipeline.json names the finished rewriter, for `--rewrite.model checkpoint`; default: none."""
    licence: str = ""
    """Licence of the weights and terms of their training data."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {bound}, found {getattr(self, name)}"
            for name, bound, holds in [
                ("max_caption_tokens", "1 or more", self.max_caption_tokens >= 1),
                ("encoder_layers", "1 or more", self.encoder_layers >= 1),
                ("decoder_layers", "1 or more", self.decoder_layers >= 1),
                ("steps", "1 or more", self.steps >= 1),
                ("batch_size", "1 or more", self.batch_size >= 1),
                ("lr", "above 0", self.lr > 0),
                ("warmup_steps", "0 or more", self.warmup_steps >= 0),
                ("checkpoint_steps", "1 or more", self.checkpoint_steps >= 1),
                ("validation_pairs", "1 or more", self.validation_pairs >= 1),
            ]
            if not holds
        ]
        if not (self.captions or self.pairs):
            problems.append("captions or pairs: expected one of them, a run of captions or a Parquet file")
        if problems:
            raise ValueError("; ".join(problems))
