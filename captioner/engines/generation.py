"""Generation of captions: its settings, the answer about one image, and the engine that gives it."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from foundry.errors import UserError

if TYPE_CHECKING:
    import numpy as np

IMAGE_FITS = ("auto", "pad", "processor")
DTYPES = ("auto", "float32", "bfloat16", "float16")
NOT_FINITE = "give the number format float32 or bfloat16 (float16 overflows), or fetch the model again"
"""Advice for a model that computes NaN or infinity."""


@dataclass(frozen=True)
class GenerationSettings:
    """Decoding settings of captions. All of them enter the run_id."""

    dtype: str = "auto"
    """Number format that the model computes in: float32, bfloat16, float16, or auto: bfloat16 if the hardware of all replicas
    supports it, otherwise float32."""
    batch_size: int = 64
    """Number of images per batch; a replica that runs out of memory halves it from then on."""
    max_new_tokens: int = 300
    """Maximum number of tokens of a caption; a longer one is cut, with finish_reason `length`."""
    temperature: float = 0.0
    """Sampling temperature, with a seed for each image and prompt; 0: greedy decoding."""
    top_p: float = 1.0
    """Share of the probability mass (0 to 1) that sampling draws from."""
    seed: int = 0
    """Random seed for sampling."""
    image_fit: str = "auto"
    """Fit of images that are not square: `pad` adds borders of the mean colour; `processor` leaves it to the model's image
    processor (that of LLaVA 1.5 crops the middle square); auto: pad for LLaVA 1.5, otherwise processor."""
    image_side_px: int | None = None
    """Maximum length of the shorter side of an image that the model is shown, in pixels; default: what the model can use, and
    at most 1024 for models that take any size (Qwen-VL), for which fewer pixels mean fewer tokens."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {bound}"
            for name, bound, holds in [
                ("dtype", f"one of {', '.join(DTYPES)}", self.dtype in DTYPES),
                ("batch_size", "1 or more", self.batch_size >= 1),
                ("max_new_tokens", "1 or more", self.max_new_tokens >= 1),
                ("temperature", "0 or more", self.temperature >= 0),
                ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
                ("image_side_px", "32 or more", self.image_side_px is None or self.image_side_px >= 32),
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
    num_input_tokens: int = 0
    """Tokens of the request, the image's among them; 0 if the engine does not count them."""
    logprobs: tuple[float, ...] = ()
    """Log-probability of each token; empty if the engine was not told to keep them."""
    is_refusal: bool = False
    """Whether the server's content filter withheld or cut the answer, or the model declined in a separate field;
    `finish_reason` then says which."""
    failure: str = ""
    """Reason why there is no answer about this one image, for people: then the text means nothing; "" if there is an answer."""

    @classmethod
    def failed(cls, failure: str, *, num_input_tokens: int = 0) -> "Generation":
        """No answer about an image, and why."""
        return cls(
            text="",
            finish_reason="",
            num_tokens=0,
            mean_logprob=None,
            min_logprob=None,
            num_input_tokens=num_input_tokens,
            failure=failure,
        )

    @property
    def is_finite(self) -> bool:
        """False where the model computed NaN or an infinity: the text means nothing then."""
        return self.mean_logprob is None or math.isfinite(self.mean_logprob)


class Engine(Protocol):
    """A loaded model, or a server that has one."""

    def caption(
        self,
        images: "Sequence[Any]",
        prompts: Sequence[str],
        keys: Sequence[str],
        *,
        one_by_one: bool = False,
        schema: str | None = None,
    ) -> list[Generation]:
        """Captions for images, with a prompt and a key (for the seed) each, in order.

        An image is pixels, uint8 (H, W, 3), or its web address where the model says `sends_urls`.
        `one_by_one` asks for the smallest batches. `schema` is a JSON schema, as JSON text: an engine that can constrain its
        answers to it does so, another one ignores it. Raises what the model raises.
        """

    def check(self, image: "np.ndarray", prompt: str, *, schema: str | None = None) -> None:
        """Has the model say one token about an image. Raises what the model raises, and UserError for one that cannot work."""


class CaptionModel(Protocol):
    """A model that was found, before it is loaded: what a run has to know of it. Can be pickled."""

    @property
    def name(self) -> str:
        """Its name, as the user gave it."""

    @property
    def image_side_px(self) -> int:
        """Maximum length of the shorter side of an image that is worth decoding, in pixels."""

    @property
    def prompt_format(self) -> str:
        """The text that prompts are put into, where that is not the model's own chat template ("")."""

    @property
    def listed(self) -> Mapping[str, Any]:
        """Its entry in the server's list of models; empty if there is none."""

    @property
    def is_mini(self) -> bool:
        """Whether this is the shipped toy."""

    @property
    def is_served(self) -> bool:
        """Whether it runs on a server of the user's, so that number formats and GPUs are that server's."""

    @property
    def sends_urls(self) -> bool:
        """Whether its engine takes the web address of an image in place of pixels."""

    @property
    def num_parameters(self) -> int:
        """Number of parameters in a replica; 0: unknown, or none."""

    def image_fit(self, asked: str) -> str:
        """`pad` or `processor`, whichever of them `auto` means for this model."""

    def describe(self) -> dict[str, Any]:
        """Everything that determines a caption, except prompts and decoding: part of the run's identity."""

    def load(self, generation: GenerationSettings) -> Engine:
        """The engine, on this process's device."""


def check_context(said: Generation, settings: GenerationSettings, *, most: int) -> None:
    """Raises UserError if a request such as this one and its caption take more tokens than the `most` of the context."""
    if not (problem := too_long(said.num_input_tokens, settings.max_new_tokens, most=most)):
        return
    shorter = "take a shorter prompt (a JSON schema is part of it), lower generation.image_side_px"
    advice = shorter if said.num_input_tokens >= most else f"lower generation.max_new_tokens, {shorter}"
    raise UserError(f"{problem}: {advice}, or use a model with a longer context")


def too_long(num_input_tokens: int, max_new_tokens: int, *, most: int) -> str:
    """Reason why a request has no answer: with its caption it may take more than the `most` tokens of the context; "" if they
    fit.

    What a model says beyond its context means nothing, so it is not asked.
    """
    if num_input_tokens + max_new_tokens <= most:
        return ""
    return (
        f"the image and the question take {num_input_tokens} tokens, and a caption up to {max_new_tokens} more; "
        f"the context has {most}"
    )


def sampling_seed(seed: int, key: str, prompt: str) -> int:
    """Seed of an image and prompt, 63 bits: a sample depends on nothing else."""
    digest = hashlib.blake2b(f"{seed}\0{key}\0{prompt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
