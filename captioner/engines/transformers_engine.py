"""Transformers engine: images and a prompt in, captions with their log-probabilities out.

Any checkpoint of AutoModelForImageTextToText with a chat template will do (LLaVA, Qwen-VL, InternVL, Idefics3, SmolVLM,
Gemma 3), and Florence-2, which has an encoder and no template. Rows are padded on the left (an encoder's on the right) and
masked, so that in float32 a caption does not depend on the other images of its batch; in bf16 it may, by rounding, so batches
are a fixed function of the unit, until memory runs out: from there on, this engine's batches are smaller.

A row whose caption has ended leaves its batch, so that the rest is decoded faster; and batches are made of images and
prompts of similar size, so that little is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from captioner.engines.generation import NOT_FINITE, Generation, GenerationSettings, check_context, sampling_seed, too_long
from captioner.engines.model_input import ImageFit, PromptFormat, end_ids, load_processor
from captioner.engines.model_source import ModelSource
from foundry.errors import UserError
from foundry.hardware import Halving, own_device, resolve_dtype
from foundry.storage.model_files import load_network

if TYPE_CHECKING:
    import torch

_LEAVE_TOGETHER = 8
"""Rows leave a batch once this part of it, an eighth, has ended: each time, the key-value cache of the others is copied."""
_ROW_DIMS = {"attention_mask": 0, "decoder_attention_mask": 0, "position_ids": -2, "decoder_position_ids": -2}
_ROW_DIMS |= {"token_type_ids": 0, "mm_token_type_ids": 0, "moe_mm_token_type_ids": 0}
"""What a model carries from step to step, and the dimension of it that counts the rows of the batch."""


@dataclass(frozen=True, kw_only=True)
class TransformersModel(ModelSource):
    """A model that transformers will load."""

    def describe(self) -> dict[str, Any]:
        """Description of the model, and the version of transformers."""
        return {**super().describe(), "engine_version": version("transformers")}

    def load(self, generation: GenerationSettings) -> "TransformersEngine":
        """The engine, on this process's device."""
        return TransformersEngine(self, generation)


class TransformersEngine:
    """A loaded model and its processor. Deterministic: the same images, prompts and keys give the same captions.

    Nothing but its end tokens is taken from the checkpoint's generation_config: a repetition penalty in it would make greedy
    captions and log-probabilities something else.
    """

    def __init__(self, source: ModelSource, settings: GenerationSettings, *, keep_logprobs: bool = False) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, GenerationConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.settings = settings
        self.keep_logprobs = keep_logprobs
        self._batches = Halving()
        self.device = torch.device(own_device())
        self.processor = load_processor(source)
        self._format = PromptFormat(self.processor, source)
        self._fit = ImageFit(self.processor, source, settings.image_fit)
        options: dict[str, Any] = {"revision": source.revision} if source.on_hub else {}
        options["dtype"] = getattr(torch, resolve_dtype(settings.dtype, self.device.type))
        load = AutoModelForImageTextToText.from_pretrained
        model = load_network(load, source.path_or_id, what="a vision-language model", **options)
        self.model = model.to(self.device).eval()
        tokenizer = self.processor.tokenizer
        self.end_ids = end_ids(source, tokenizer)
        if tokenizer.pad_token_id is None:  # what is padded is masked, so that any token will do
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.end_ids[0])
        self._has_decoder = bool(self.model.config.is_encoder_decoder)
        if self._has_decoder:  # an encoder's learned positions count from the left
            tokenizer.padding_side = "right"
        text_config = self.model.config.get_text_config()
        self._context = None if self._has_decoder else getattr(text_config, "max_position_embeddings", None)
        start = self.model.generation_config.decoder_start_token_id
        # What `generate` is not told, it takes from here.
        self.model.generation_config = GenerationConfig(decoder_start_token_id=start)

    @property
    def batch_size(self) -> int:
        """Images of a batch: that of the settings, or what memory was found to hold."""
        return int(min(self.settings.batch_size, self._batches.limit))

    def caption(
        self,
        images: Sequence[np.ndarray],
        prompts: Sequence[str],
        keys: Sequence[str],
        *,
        one_by_one: bool = False,
        schema: str | None = None,  # noqa: ARG002 - transformers constrains nothing to a schema
    ) -> list[Generation]:
        """Captions for images, uint8 (H, W, 3) each, with a prompt and a key (for the seed) each, in order.

        An image whose question and caption exceed the model's context has a `failure` in place of a caption. Raises what the
        model raises; running out of memory at a batch of one among it.
        """
        order = sorted(range(len(images)), key=lambda row: (images[row].size, len(prompts[row])))

        def caption(rows: Sequence[int]) -> list[Generation]:
            return self._caption_batch(
                [images[row] for row in rows],
                [prompts[row] for row in rows],
                [keys[row] for row in rows],
                max_new_tokens=self.settings.max_new_tokens,
            )

        said = self._batches.run(order, caption, size=1 if one_by_one else self.settings.batch_size)
        generations = dict(zip(order, chain.from_iterable(said), strict=True))
        return [generations[row] for row in range(len(images))]

    def check(self, image: np.ndarray, prompt: str, *, schema: str | None = None) -> None:  # noqa: ARG002 - as above
        """Has the model say one token about an image, uint8 (H, W, 3).

        Raises what the model raises, and UserError where it computes NaN or an infinity, or its context is too short.
        """
        (said,) = self._caption_batch([image], [prompt], ["check"], max_new_tokens=1)
        if self._context:
            check_context(said, self.settings, most=self._context)
        if not said.is_finite:
            raise UserError(
                f"the model computes NaN or infinity in {str(self.model.dtype).removeprefix('torch.')}: {NOT_FINITE}"
            )

    def _caption_batch(
        self, images: Sequence[np.ndarray], prompts: Sequence[str], keys: Sequence[str], *, max_new_tokens: int
    ) -> list[Generation]:
        inputs = self._inputs(images, prompts)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        found = {
            row: Generation.failed(problem, num_input_tokens=length)
            for row, length in enumerate(lengths)
            if self._context and (problem := too_long(length, max_new_tokens, most=self._context))
        }
        if not found:
            return self._decoded(inputs, prompts, keys, lengths=lengths, max_new_tokens=max_new_tokens)
        rows = [row for row in range(len(images)) if row not in found]
        if rows:
            said = self._caption_batch(
                [images[row] for row in rows],
                [prompts[row] for row in rows],
                [keys[row] for row in rows],
                max_new_tokens=max_new_tokens,
            )
            found |= dict(zip(rows, said, strict=True))
        return [found[row] for row in range(len(images))]

    def _decoded(
        self, inputs: Any, prompts: Sequence[str], keys: Sequence[str], *, lengths: Sequence[int], max_new_tokens: int
    ) -> list[Generation]:
        """The answers to these inputs of a batch, (B, L), of which this many tokens are not padding."""
        import torch

        chooser = TokenChooser(
            self.settings, seeds=[sampling_seed(self.settings.seed, *pair) for pair in zip(keys, prompts, strict=True)]
        )
        decoding = Decoding(chooser, end_ids=self.end_ids, num_steps=max_new_tokens)
        with torch.inference_mode():
            self.model.generate(
                **inputs,
                custom_generate=decoding.run,
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                pad_token_id=self.processor.tokenizer.pad_token_id,
                eos_token_id=self.end_ids,
            )
        return [self._generation(*row) for row in zip(decoding.tokens.cpu(), decoding.logprobs.cpu(), lengths, strict=True)]

    def _inputs(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> Any:
        import torch

        # A list for each text: some processors take a flat one for the images of a single text.
        pixels = [[torch.tensor(self._fit(image)).permute(2, 0, 1)] for image in images]  # (3, H, W) each
        texts = [self._format(prompt) for prompt in prompts]
        inputs = self.processor(images=pixels, text=texts, padding=True, return_tensors="pt").to(self.device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(self.model.dtype)
        return inputs

    def _generation(self, tokens: "torch.Tensor", logprobs: "torch.Tensor", num_input_tokens: int) -> Generation:
        """One row, (L,) token ids and (L,) log-probabilities, up to and with its end token."""
        ends = [index for index, token in enumerate(tokens.tolist()) if token in self.end_ids]
        length = ends[0] + 1 if ends else len(tokens)
        text = self.processor.tokenizer.decode(tokens[: length - bool(ends)], skip_special_tokens=True).strip()
        said = logprobs[:length]
        return Generation(
            text=text,
            finish_reason="stop" if ends else "length",
            num_tokens=length,
            mean_logprob=float(said.mean()) if length else None,
            min_logprob=float(said.min()) if length else None,
            num_input_tokens=num_input_tokens,
            logprobs=tuple(said.tolist()) if self.keep_logprobs else (),
        )


class Decoding:
    """Loop of `generate` that decodes a batch: rows that have ended leave it, so that none waits for the longest caption.

    `tokens` and `logprobs`, (B, L) each, are what was chosen; nothing after a row's end token means anything.
    """

    def __init__(self, chooser: "TokenChooser", *, end_ids: Sequence[int], num_steps: int) -> None:
        self._chooser = chooser
        self._end_ids = end_ids
        self._num_steps = num_steps

    def run(
        self,
        model: Any,
        input_ids: "torch.Tensor",
        *,
        generation_config: Any,
        logits_processor: Any,  # noqa: ARG002 - `generate` gives it to any loop
        stopping_criteria: Any,  # noqa: ARG002 - likewise
        **state: Any,
    ) -> "torch.Tensor":
        """Decodes; `state` is what the model carries from step to step. Returns `tokens`."""
        import torch

        rows = torch.arange(len(input_ids), device=input_ids.device)  # of the batch, those that are decoded
        ends = torch.tensor(self._end_ids, device=input_ids.device)
        has_ended = torch.zeros_like(rows, dtype=torch.bool)
        self.tokens = ends[0].repeat(len(rows), self._num_steps)  # (B, L)
        self.logprobs = torch.zeros(self.tokens.shape, device=input_ids.device)  # (B, L)
        outputs = model._prefill(input_ids, generation_config, state)
        with model._optimize_model_for_decode():
            for step in range(self._num_steps):
                is_encoder_decoder = model.config.is_encoder_decoder
                state = model._update_model_kwargs_for_generation(outputs, state, is_encoder_decoder=is_encoder_decoder)
                chosen, logprobs = self._chooser(outputs.logits[:, -1].float(), rows.tolist())
                self.tokens[rows, step], self.logprobs[rows, step] = chosen, logprobs
                has_ended |= torch.isin(chosen, ends)
                num_ended = int(has_ended.sum())
                if num_ended == len(rows) or step + 1 == self._num_steps:
                    break
                input_ids = torch.cat([input_ids, chosen[:, None]], dim=1)
                if num_ended * _LEAVE_TOGETHER >= len(rows):
                    kept = (~has_ended).nonzero()[:, 0]
                    rows, input_ids, has_ended = rows[kept], input_ids[kept], has_ended[kept]
                    state = _kept_rows(state, kept)
                inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **state)
                outputs = model(**inputs, return_dict=True)
        return self.tokens


def _kept_rows(state: dict[str, Any], kept: "torch.Tensor") -> dict[str, Any]:
    """The model's state between steps, for only these rows of the batch. The cache is changed in place."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    state["past_key_values"].reorder_cache(kept)
    if "encoder_outputs" in state:
        state["encoder_outputs"] = BaseModelOutput(last_hidden_state=state["encoder_outputs"].last_hidden_state[kept])
    by_row = {name: dim for name, dim in _ROW_DIMS.items() if torch.is_tensor(state.get(name))}
    return state | {name: state[name].index_select(dim, kept) for name, dim in by_row.items()}


class TokenChooser:
    """Chooses each row's next token: greedy, or by the Gumbel-max trick with a generator per row, which makes a sample
    independent of its batch. The logits of all steps are never held."""

    def __init__(self, settings: GenerationSettings, *, seeds: Sequence[int]) -> None:
        import torch

        self.settings = settings
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, scores: "torch.Tensor", rows: Sequence[int]) -> "tuple[torch.Tensor, torch.Tensor]":
        """The chosen tokens, (B,), of scores (B, V) float32, and their log-probabilities, (B,); `rows` of the whole batch."""
        logprobs = scores.log_softmax(dim=-1)  # (B, V)
        chosen = (self._perturbed(logprobs, rows) if self.settings.temperature else scores).argmax(dim=-1)  # (B,)
        return chosen, logprobs.gather(1, chosen[:, None])[:, 0]

    def _perturbed(self, logprobs: "torch.Tensor", rows: Sequence[int]) -> "torch.Tensor":
        import torch
        from transformers import TopPLogitsWarper

        scores = (logprobs / self.settings.temperature).log_softmax(dim=-1)
        if self.settings.top_p < 1:
            scores = TopPLogitsWarper(self.settings.top_p)(None, scores)
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=self.generators[row]) for row in rows])
        return scores - noise.log().to(scores.device)
