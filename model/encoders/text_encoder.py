"""Frozen encoder that reads captions: text in, packed token features out. The only home of the null caption, T5("").

T5, the encoder of T5Gemma, or a decoder-only language model (Gemma, Gemma 2 and 3, Qwen3), whose tokens see those before them.
Source: Raffel et al. 2020 (T5); PixArt-alpha, section 2.3 (T5-XXL, 120 tokens).
Shapes: B captions, L tokens of the longest in a batch, T tokens of all captions, D width of the encoder.
"""

import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, get_args

from foundry.errors import UserError
from foundry.hardware import AutoDtype, Halving, resolve_dtype
from foundry.storage.model_files import load_network
from foundry.wording import CHOICE, ModelChoice
from model.encoders.caption_template import PLACE, CaptionTemplate, CaptionTokens, render_chat
from model.encoders.frozen_parts import PUBLISHED, FrozenPart, find_part, fingerprint, stored_tensors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from model.dit import Captions

Quantisation = Literal["none", "int4", "bitsandbytes", "torchao", "bitsandbytes_4bit"]
Cleaning = Literal["none", "lower", "thorough"]

NULL_CAPTION = ""
_VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")
_T5 = "t5"
_CLASSES = {
    _T5: "T5EncoderModel",
    "t5gemma": "T5GemmaEncoderModel",
    "gemma": "GemmaModel",
    "gemma2": "Gemma2Model",
    "gemma3_text": "Gemma3TextModel",
    "qwen3": "Qwen3Model",
}
"""Classes of transformers by the model_type of config.json."""
_SOFTCAPPED = ("t5gemma", "gemma2")
"""Models that cap the logits of attention, which transformers does in its plain attention alone."""


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """Settings of the text encoder."""

    name: str = field(metadata={CHOICE: ModelChoice(real=PUBLISHED[120])})
    """Hub id or folder, also of a whole diffusers pipeline, or `mini`: the small world's toy. There is no default."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    dtype: AutoDtype = "auto"
    """Number format of the encoder and its output; auto: bfloat16 if the hardware supports it, otherwise float32."""
    quantisation: Quantisation = "none"
    """Quantisation of the weights: int4 to 4 bits (T5-XXL takes 2.9 GB instead of 9.5) on any device; by a library
    bitsandbytes or torchao to 8 bits (6 GB or 5 GB), or bitsandbytes_4bit to 4 bits (NF4; 4.3 GB)."""
    cleaning: Cleaning = "lower"
    """Cleaning of captions: none; lower (lower case, no outer blanks); thorough (as in PixArtAlphaPipeline, for web
    captions)."""
    max_caption_tokens: int = 120
    """Maximum number of tokens of a caption, including </s>; longer ones are cut. PixArt-alpha: 120, Sigma: 300."""
    template: str = PLACE
    """Text around a caption, which replaces {caption}, for example an instruction: "Describe the image: {caption}"."""
    chat: bool = False
    """Put the template into the tokenizer's chat template, as the user's message."""
    hidden_state: int = -1
    """Hidden state that is used, counted from the end: -1 is the last one, after the final norm; -2 the one before it."""
    max_batch_tokens: int = 8192
    """Maximum number of tokens encoded together, including padding."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {bound}"
            for name, bound, holds in [
                ("dtype", f"one of {', '.join(get_args(AutoDtype))}", self.dtype in get_args(AutoDtype)),
                ("quantisation", f"one of {', '.join(get_args(Quantisation))}", self.quantisation in get_args(Quantisation)),
                ("cleaning", f"one of {', '.join(get_args(Cleaning))}", self.cleaning in get_args(Cleaning)),
                ("max_caption_tokens", "1 or more", self.max_caption_tokens >= 1),
                ("template", f"a text that has {PLACE} once, as the place of the caption", self.template.count(PLACE) == 1),
                ("hidden_state", "-1 or less", self.hidden_state <= -1),
                ("max_batch_tokens", "max_caption_tokens or more", self.max_batch_tokens >= self.max_caption_tokens),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))


class TextEncoder:
    """Encoder with its tokenizer. Deterministic; a caption's features do not depend on its batch beyond rounding."""

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        config: TextEncoderConfig,
        part: FrozenPart | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.part = part
        self._batches = Halving()
        if config.chat:
            template = render_chat(config.template, tokenizer, name=config.name)
            config = replace(config, template=template, chat=False)
        self.config = config  # with the dtype that `auto` means here, and the whole template
        self._template: CaptionTemplate | None = None
        if model.config.model_type != _T5 or config.template != PLACE:  # T5 alone reads a caption as its tokenizer cuts it
            self._template = CaptionTemplate(config.template, tokenizer, max_caption_tokens=config.max_caption_tokens)
        self._check_limits()

    @property
    def width(self) -> int:
        """Width D of the encoder."""
        return int(self.model.get_input_embeddings().embedding_dim)

    def encode(self, captions: Sequence[str], *, one_by_one: bool = False) -> "Captions":
        """Features of captions, in order, without padding: tokens (T, D) of the encoder's dtype, on its device.

        `one_by_one`: in batches of one caption, for little memory.
        """
        import torch

        from model.dit import Captions

        ids = self._tokenize(captions)
        features: list[torch.Tensor] = [torch.empty(0)] * len(ids)
        with torch.inference_mode():
            max_tokens = 1 if one_by_one else self.config.max_batch_tokens
            for batch in batches_by_length([len(row.ids) for row in ids], max_tokens=max_tokens):
                own = [ids[index].ids for index in batch]
                found = chain.from_iterable(self._batches.run(own, self._forward, cost=max(map(len, own))))
                for index, tokens in zip(batch, found, strict=True):
                    features[index] = tokens[ids[index].num_left_out :]
        empty = torch.empty(0, self.width, dtype=self.model.dtype, device=self.model.device)
        lengths = torch.tensor([row.num_kept for row in ids], dtype=torch.long)
        # A copy outside inference mode, so that a trainer may use the features under autograd.
        return Captions(tokens=torch.cat([empty, *features]).clone(), lengths=lengths)  # (T, D), (B,)

    def null_captions(self, count: int = 1) -> "Captions":
        """The caption of nothing, T5("") with its own mask, `count` times: what guidance and caption dropout use."""
        return self.encode([NULL_CAPTION]).select([0] * count)

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption, </s> included, if none were cut."""
        texts = clean_captions(captions, self.config.cleaning)
        if self._template is not None:
            return self._template.count(texts)
        return [len(row) for row in self.tokenizer(texts, verbose=False).input_ids] if texts else []

    def count_cut_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption that are not read."""
        return [max(0, count - self.config.max_caption_tokens) for count in self.count_tokens(captions)]

    def fingerprint(self) -> str:
        """Fingerprint of weights and vocabulary, the same for every dtype and quantisation."""
        vocabulary = repr(sorted(self.tokenizer.get_vocab().items()))
        if self.config.quantisation == "none":
            return fingerprint(self.model.named_parameters(), also=vocabulary)
        assert self.part is not None
        return fingerprint(stored_tensors(self.part.folder, _parameter_names(self.part)), also=vocabulary)

    def _check_limits(self) -> None:
        """Raises UserError for more tokens than the model has positions, and for a hidden state that it has not."""
        config = self._sizes
        limit = getattr(config, "max_position_embeddings", None)
        before = self._template.num_left_out if self._template else 0
        if limit and self.config.max_caption_tokens + before > limit:
            and_template = f" and {before} of the template" if before else ""
            raise UserError(
                f"{self.config.name} reads at most {limit} tokens, found max_caption_tokens {self.config.max_caption_tokens}"
                f"{and_template}: give fewer",
                setting="text_encoder.max_caption_tokens",
            )
        if -self.config.hidden_state > config.num_hidden_layers + 1:
            raise UserError(
                f"{self.config.name} has {config.num_hidden_layers} layers, found hidden_state {self.config.hidden_state}: "
                f"give one from -1 to {-config.num_hidden_layers - 1}",
                setting="text_encoder.hidden_state",
            )

    @property
    def _sizes(self) -> Any:
        """The configuration of the encoder itself: T5Gemma's has one for each half."""
        return getattr(self.model.config, "encoder", None) or self.model.config

    def _tokenize(self, captions: Sequence[str]) -> list[CaptionTokens]:
        texts = clean_captions(captions, self.config.cleaning)
        if not texts:
            return []
        if self._template is not None:
            return self._template.tokenize(texts)
        found = self.tokenizer(texts, truncation=True, max_length=self.config.max_caption_tokens).input_ids
        return [CaptionTokens(list(ids), 0) for ids in found]

    def _forward(self, ids: Sequence[Sequence[int]]) -> list["torch.Tensor"]:
        """The features (length, D) of each of the captions of a batch."""
        import torch

        device = self.model.device
        lengths = torch.tensor([len(row) for row in ids], device=device)
        padding = int(self._sizes.pad_token_id or 0)  # on the right, so that no token of a causal model sees it
        longest = max(len(row) for row in ids)
        padded = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in ids], device=device)  # (B, L)
        mask = (torch.arange(longest, device=device) < lengths[:, None]).long()  # (B, L)
        options: dict[str, bool] = {} if self.model.config.model_type == _T5 else {"use_cache": False}
        if self.config.hidden_state == -1:
            hidden = self.model(input_ids=padded, attention_mask=mask, **options).last_hidden_state  # (B, L, D)
        else:
            output = self.model(input_ids=padded, attention_mask=mask, output_hidden_states=True, **options)
            hidden = output.hidden_states[self.config.hidden_state]  # (B, L, D)
        return [row[: len(tokens)] for row, tokens in zip(hidden, ids, strict=True)]


def load_text_encoder(config: TextEncoderConfig, *, device: str = "cpu") -> TextEncoder:
    """Loads the encoder and its tokenizer.

    Raises UserError for a name that leads nowhere, a model of another class, and a library that is not installed.
    """
    import torch
    import transformers
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from model.layers.quantised import quantise_layers

    logging.disable_progress_bar()
    config = replace(config, dtype=resolve_dtype(config.dtype, device))
    part = find_part(config.name, "text_encoder", revision=config.revision)
    kind = _model_type(part)
    if not any((part.tokenizer_folder / name).is_file() for name in _VOCABULARIES):  # transformers would make one up
        raise UserError(f"{part.tokenizer_folder} holds no tokenizer: expected {' or '.join(_VOCABULARIES)}")
    options: dict[str, Any] = {"dtype": getattr(torch, config.dtype)}
    if kind in _SOFTCAPPED:
        options["attn_implementation"] = "eager"
    if kind == "t5gemma":
        options["is_encoder_decoder"] = False
    by_library = config.quantisation not in ("none", "int4")
    if by_library:
        options |= {"quantization_config": _quantisation(config), "device_map": {"": device}}
    try:
        tokenizer = AutoTokenizer.from_pretrained(part.tokenizer_folder)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{part.tokenizer_folder} cannot be read as a tokenizer ({error!r}): fetch it again") from error
    what = "a T5 encoder" if kind == _T5 else f"a {_CLASSES[kind]}"
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else it reports the head and the decoder, which are left out on purpose
    try:
        model = load_network(getattr(transformers, _CLASSES[kind]).from_pretrained, part.folder, what=what, **options)
    finally:
        logging.set_verbosity(verbosity)
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(tokenizer) * 2 < vocabulary:
        raise UserError(
            f"{part.tokenizer_folder} has a vocabulary of {len(tokenizer)}, the encoder one of {vocabulary}: "
            "give a folder whose tokenizer.json or spiece.model belongs to it"
        )
    if config.quantisation == "int4":
        linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        quantise_layers(model, linear, "int4")
    return TextEncoder(model.eval() if by_library else model.to(device).eval(), tokenizer, config=config, part=part)


def clean_captions(captions: Sequence[str], cleaning: Cleaning) -> list[str]:
    """Captions as the encoder reads them. `thorough` is the cleaning of diffusers' PixArt pipelines, which runs it twice."""
    if cleaning == "none":
        return list(captions)
    if cleaning == "lower":
        return [caption.lower().strip() for caption in captions]
    from diffusers import PixArtAlphaPipeline
    from diffusers.utils import is_bs4_available, is_ftfy_available

    if not (is_bs4_available() and is_ftfy_available()):
        raise UserError("thorough cleaning of captions needs two more libraries: pip install beautifulsoup4 ftfy")
    # The pipeline's own method; of the pipeline itself it reads a class attribute only.
    clean = PixArtAlphaPipeline._clean_caption
    return [clean(PixArtAlphaPipeline, clean(PixArtAlphaPipeline, caption)) for caption in captions]


def batches_by_length(lengths: Sequence[int], *, max_tokens: int) -> Iterator[list[int]]:
    """Indices of captions that are encoded together: alike in length, at most `max_tokens` with padding, each index once."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _quantisation(config: TextEncoderConfig) -> Any:
    """Settings of transformers for weights of 8 or 4 bits. Raises UserError if the library is not installed."""
    import torch
    from transformers import BitsAndBytesConfig, TorchAoConfig
    from transformers.utils import is_bitsandbytes_available, is_torchao_available

    if config.quantisation == "torchao":
        if not is_torchao_available():
            raise UserError("an 8-bit text encoder through torchao needs that library: pip install torchao")
        return TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())
    if not is_bitsandbytes_available():
        raise UserError(f"quantisation {config.quantisation} needs the library bitsandbytes: pip install bitsandbytes")
    if config.quantisation == "bitsandbytes":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute_dtype = getattr(torch, config.dtype)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)


def _parameter_names(part: FrozenPart) -> list[str]:
    """Names of the encoder's parameters, tied ones once, without loading it."""
    import torch
    import transformers

    kind = _model_type(part)
    config = transformers.AutoConfig.from_pretrained(part.folder)
    if kind == "t5gemma":
        config.is_encoder_decoder = False
    with torch.device("meta"):
        return [name for name, _ in getattr(transformers, _CLASSES[kind])(config).named_parameters()]


def _model_type(part: FrozenPart) -> str:
    """The model_type of config.json. Raises UserError for one that is no text encoder."""
    path = part.folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("model_type", _T5)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): fetch it again") from error
    if found not in _CLASSES:
        raise UserError(f"{path}: expected a text encoder of type {', '.join(_CLASSES)}, found {found}: give another model")
    return str(found)
