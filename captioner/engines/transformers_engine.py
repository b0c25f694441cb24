"""LLaVA engine: images and a prompt in, captions with their log-probabilities out, through transformers.

Any checkpoint of AutoModelForImageTextToText with a chat template will do: LLaVA 1.5, NeXT, OneVision, llava-mini.
Rows are padded on the left and masked, so that in float32 a caption does not depend on the other images of its batch;
in bf16 it may, by rounding, so batches are a fixed function of the unit, until memory runs out: from there on, this engine's
batches are smaller.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from captioner.engines.model_input import PromptFormat, load_processor, padded
from captioner.engines.model_source import IMAGE_FITS, ModelSource
from foundry.errors import UserError
from foundry.hardware import resolve_dtype
from foundry.storage.model_files import load_network

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")
NOT_FINITE = "give --generation.dtype float32 or bfloat16 (float16 overflows), or fetch the model again"
"""What to do where a model computes NaN or an infinity."""


@dataclass(frozen=True)
class GenerationSettings:
    """How captions are generated. All of it enters the run_id."""

    dtype: str = "auto"
    """Number format that the model computes in: float32, bfloat16, float16, or auto: bfloat16 where all replicas' hardware has
    it, else float32."""
    batch_size: int = 64
    """Number of images in a batch; a replica that runs out of memory halves it for the rest of its life."""
    max_new_tokens: int = 300
    """Number of tokens after which a caption is cut, with finish_reason `length`."""
    temperature: float = 0.0
    """Temperature of sampling, with a seed for each image and prompt; 0: greedy decoding."""
    top_p: float = 1.0
    """Share of the probability mass (0 to 1) that sampling draws from."""
    seed: int = 0
    """Random seed of sampling."""
    image_fit: str = "auto"
    """Fit of images to the model: `pad` adds borders of the mean colour, which makes them squares; `processor` leaves it to the
    model's own image processor, and that of LLaVA 1.5 crops the middle square; auto: pad for LLaVA 1.5, else processor."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {bound}"
            for name, bound, holds in [
                ("dtype", f"one of {', '.join(DTYPES)}", self.dtype in DTYPES),
                ("batch_size", "1 or more", self.batch_size >= 1),
                ("max_new_tokens", "1 or more", self.max_new_tokens >= 1),
                ("temperature", "0 or more", self.temperature >= 0),
                ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
                ("image_fit", f"one of {', '.join(IMAGE_FITS)}", self.image_fit in IMAGE_FITS),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True)
class Generation:
    """Answer of the model about one image. Log-probabilities are natural, of the model's own distribution."""

    text: str
    finish_reason: str
    num_tokens: int
    mean_logprob: float | None
    min_logprob: float | None

    @property
    def is_finite(self) -> bool:
        """False where the model computed NaN or an infinity: the text means nothing then."""
        return self.mean_logprob is None or math.isfinite(self.mean_logprob)


class LlavaEngine:
    """A loaded model and its processor. Deterministic: the same images, prompts and keys give the same captions.

    `batch_size` is that of the settings, or what memory was found to hold. Nothing but its end tokens is taken from the
    checkpoint's generation_config: a repetition penalty in it would make greedy captions and log-probabilities something else.
    """

    def __init__(self, source: ModelSource, settings: GenerationSettings) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, GenerationConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.settings = settings
        self.batch_size = settings.batch_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = load_processor(source)
        self._format = PromptFormat(self.processor, source)
        self._square_px = source.image_side_px if source.image_fit(settings.image_fit) == "pad" else None
        options: dict[str, Any] = {"revision": source.revision} if source.on_hub else {}
        options["dtype"] = getattr(torch, resolve_dtype(settings.dtype, self.device.type))
        load = AutoModelForImageTextToText.from_pretrained
        model = load_network(load, source.path_or_id, what="a vision-language model", **options)
        self.model = model.to(self.device).eval()
        tokenizer = self.processor.tokenizer
        self.end_ids = _end_ids(self.model.generation_config.eos_token_id, tokenizer.eos_token_id)
        if tokenizer.pad_token_id is None:  # what is padded is masked, so that any token will do
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.end_ids[0])
        self.model.generation_config = GenerationConfig()  # what `generate` is not told, it takes from here

    def caption(
        self, images: Sequence[np.ndarray], prompts: Sequence[str], keys: Sequence[str], *, one_by_one: bool = False
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

    def check(self, image: np.ndarray, prompt: str) -> None:
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
            self.settings, seeds=[_seed(self.settings.seed, *pair) for pair in zip(keys, prompts, strict=True)]
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
        return [self._generation(row, row_logprobs) for row, row_logprobs in zip(tokens, logprobs, strict=True)]

    def _inputs(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> Any:
        import torch

        pixels = [torch.tensor(self._fitted(image)).permute(2, 0, 1) for image in images]  # (3, H, W)
        texts = [self._format(prompt) for prompt in prompts]
        inputs = self.processor(images=pixels, text=texts, padding=True, return_tensors="pt").to(self.device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(self.model.dtype)
        return inputs

    def _fitted(self, image: np.ndarray) -> np.ndarray:
        """As `image_fit` says, (H, W, 3)."""
        if self._square_px is None:
            return image
        colour = tuple(int(255 * mean) for mean in self.processor.image_processor.image_mean)
        return padded(image, side_px=self._square_px, colour=colour)

    def _generation(self, tokens: "torch.Tensor", logprobs: "torch.Tensor") -> Generation:
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


def _end_ids(*ids: int | list[int] | None) -> list[int]:
    """The distinct end-of-text ids of a generation config and a tokenizer."""
    found: list[int] = []
    for entry in ids:
        found += [one for one in (entry if isinstance(entry, list) else [entry]) if one is not None and one not in found]
    if not found:
        raise UserError("the model names no end-of-text token: its captions would never stop; add eos_token_id to its config")
    return found


def _seed(seed: int, key: str, prompt: str) -> int:
    digest = hashlib.blake2b(f"{seed}\0{key}\0{prompt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it, the CPU's allocator only a message."""
    import torch

    return (
        isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error) or "can't allocate memory" in str(error)
    )
