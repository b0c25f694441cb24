"""LLaVA engine: images and a prompt in, captions with their log-probabilities out, through transformers.

Any checkpoint of AutoModelForImageTextToText with a chat template will do: LLaVA 1.5, NeXT, OneVision, llava-mini.
Rows are padded on the left and masked, so that in float32 a caption does not depend on the other images of its batch;
in bf16 it may, by rounding, so batches are a fixed function of the unit, until memory runs out: from there on, this engine's
batches are smaller.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from captioner.engines.generation import NOT_FINITE, Generation, GenerationSettings, sampling_seed
from captioner.engines.model_input import ImageFit, PromptFormat, end_ids, load_processor
from captioner.engines.model_source import ModelSource
from foundry.errors import UserError
from foundry.hardware import resolve_dtype
from foundry.storage.model_files import load_network

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class TransformersModel(ModelSource):
    """A model that transformers will load."""

    def load(self, generation: GenerationSettings) -> "LlavaEngine":
        """The engine, on this process's device."""
        return LlavaEngine(self, generation)


class LlavaEngine:
    """A loaded model and its processor. Deterministic: the same images, prompts and keys give the same captions.

    `batch_size` is that of the settings, or what memory was found to hold. Nothing but its end tokens is taken from the
    checkpoint's generation_config: a repetition penalty in it would make greedy captions and log-probabilities something else.
    """

    def __init__(self, source: ModelSource, settings: GenerationSettings, *, keep_logprobs: bool = False) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, GenerationConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.settings = settings
        self.keep_logprobs = keep_logprobs
        self.batch_size = settings.batch_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        self.model.generation_config = GenerationConfig()  # what `generate` is not told, it takes from here

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

        Raises what the model raises; running out of memory at a batch of one among it.
        """
        generations: list[Generation] = []
        while len(generations) < len(images):
            size = 1 if one_by_one else self.batch_size
            batch = slice(len(generations), len(generations) + size)
            try:
                generations += self._caption_batch(
                    images[batch], prompts[batch], keys[batch], max_new_tokens=self.settings.max_new_tokens
                )
            except RuntimeError as error:
                if not _is_out_of_memory(error) or size == 1:
                    raise
                self.batch_size = min(size, len(images[batch])) // 2 or 1
            else:
                continue
            self._free_memory()
        return generations

    def check(self, image: np.ndarray, prompt: str, *, schema: str | None = None) -> None:  # noqa: ARG002 - as above
        """Has the model say one token about an image, uint8 (H, W, 3).

        Raises what the model raises, and UserError where it computes NaN or an infinity.
        """
        (said,) = self._caption_batch([image], [prompt], ["check"], max_new_tokens=1)
        if not said.is_finite:
            raise UserError(
                f"the model computes NaN or infinity in {str(self.model.dtype).removeprefix('torch.')}: {NOT_FINITE}"
            )

    def _caption_batch(
        self, images: Sequence[np.ndarray], prompts: Sequence[str], keys: Sequence[str], *, max_new_tokens: int
    ) -> list[Generation]:
        import torch
        from transformers import LogitsProcessorList

        inputs = self._inputs(images, prompts)
        chooser = TokenChooser(
            self.settings, seeds=[sampling_seed(self.settings.seed, *pair) for pair in zip(keys, prompts, strict=True)]
        )
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                logits_processor=LogitsProcessorList([chooser]),
                pad_token_id=self.processor.tokenizer.pad_token_id,
                eos_token_id=self.end_ids,
            )
        tokens = output[:, inputs["input_ids"].shape[1] :].cpu()  # (B, L)
        logprobs = torch.stack(chooser.logprobs, dim=1).cpu()  # (B, L)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        return [self._generation(*row) for row in zip(tokens, logprobs, lengths, strict=True)]

    def _inputs(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> Any:
        import torch

        pixels = [torch.tensor(self._fit(image)).permute(2, 0, 1) for image in images]  # (3, H, W)
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

    def _free_memory(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class TokenChooser:
    """The last logits processor: chooses each row's next token itself and keeps its log-probability.

    Greedy, or by the Gumbel-max trick with a generator per row, which makes a sample independent of its batch. All but the
    chosen token are set to -inf, so that the argmax of `generate` takes it. The logits of all steps are never held.
    """

    def __init__(self, settings: GenerationSettings, *, seeds: Sequence[int]) -> None:
        import torch

        self.settings = settings
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, _input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """Scores (B, V) float32 of the next token; returns them with a single finite entry per row."""
        import torch

        logprobs = scores.log_softmax(dim=-1)  # (B, V)
        chosen = (self._perturbed(logprobs) if self.settings.temperature else scores).argmax(dim=-1, keepdim=True)  # (B, 1)
        self.logprobs.append(logprobs.gather(1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    def _perturbed(self, logprobs: "torch.Tensor") -> "torch.Tensor":
        import torch
        from transformers import TopPLogitsWarper

        scores = (logprobs / self.settings.temperature).log_softmax(dim=-1)
        if self.settings.top_p < 1:
            scores = TopPLogitsWarper(self.settings.top_p)(None, scores)
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=one) for one in self.generators])
        return scores - noise.log().to(scores.device)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it, the CPU's allocator only a message."""
    import torch

    return (
        isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error) or "can't allocate memory" in str(error)
    )
