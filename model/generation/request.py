"""Generation requests, their prompts encoded, and their results: prompts and seeds, and images that record both."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foundry.errors import UserError
from model.sampling import SamplingConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from model.dit import Captions


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Prompts, or captions that are encoded already, each drawn several times with its own seed."""

    prompts: tuple[str, ...] | None = None
    """Prompts, one or more."""
    captions: "Captions | None" = None
    """Features of captions in place of prompts, as TextEncoder.encode gives them."""
    negative_prompt: str = ""
    """Negative prompt; "" is the null caption."""
    negative_captions: "Captions | None" = None
    """Features of captions in place of the negative prompt: one caption, or one for each prompt."""
    num_images_per_prompt: int = 1
    """Number of images of each prompt."""
    seed: int = 0
    """Seed: the k-th image of each prompt has the seed `seed + k`, so that a prompt gives the same images in any list."""
    seeds: tuple[int, ...] | None = None
    """Seeds in place of `seed`: one for each image, those of the first prompt first."""
    noise: "torch.Tensor | None" = None
    """Starting noise (images, C, h, w) in place of seeds."""
    height: int | None = None
    """Height in pixels; default: the resolution of the checkpoint."""
    width: int | None = None
    """Width in pixels; default: the resolution of the checkpoint."""
    resolution_binning: bool = True
    """Draw at the nearest of the sizes that PixArt was trained on, then scale and crop; where there are such sizes."""
    image: "Image.Image | None" = None
    """Image that all images of the request begin from, in place of noise alone; it gives their size."""
    mask_image: "Image.Image | None" = None
    """Mask over the image, of its size: white is drawn anew, black is kept; none: all of it is drawn anew."""
    strength: float = 0.8
    """Change of the image: share of the steps that are taken, from 0 (none) to 1 (as if there were no image)."""
    paste_kept: bool = False
    """Put the image's own pixels back where the mask is black; else they are what the VAE makes of them."""
    control_image: "Image.Image | None" = None
    """Control image of all images of the request, for a network with a control; scaled and cropped to what is drawn."""
    compute_edges: bool = False
    """Compute the edges of the control image, a picture; else it is an edge map already."""
    control_latents: "torch.Tensor | None" = None
    """Latents (1 or images, C, h, w) in place of the control image."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampler, steps, guidance."""

    def __post_init__(self) -> None:
        images = self.num_images
        problems = [
            message
            for message, holds in [
                ("prompts or captions: expected one of them", (self.prompts is None) != (self.captions is None)),
                ("prompts: expected one or more, found none", self.prompts is None or len(self.prompts) > 0),
                ("prompts: expected a tuple, found one text", not isinstance(self.prompts, str)),
                ("num_images_per_prompt: expected 1 or more", self.num_images_per_prompt >= 1),
                (f"seeds: expected {images}, found {len(self.seeds or ())}", self.seeds is None or len(self.seeds) == images),
                ("seeds: expected 0 to 2^63 - 1", all(0 <= seed < 2**63 for seed in (*(self.seeds or ()), self.seed))),
                (f"noise: expected that of {images} images", self.noise is None or len(self.noise) == images),
                ("strength: expected 0 to 1", 0 <= self.strength <= 1),
                (
                    f"strength: {self.strength:g} of {self.sampling.num_steps} steps is less than one step: give more, or 0",
                    self.image is None or self.strength == 0 or self.num_steps > 0,
                ),
                ("mask_image: expected with an image alone", self.mask_image is None or self.image is not None),
                ("paste_kept: expected with a mask alone", not self.paste_kept or self.mask_image is not None),
                (
                    "compute_edges: expected with a control image alone",
                    not self.compute_edges or self.control_image is not None,
                ),
                (
                    "control_image or control_latents: expected one of them",
                    self.control_image is None or self.control_latents is None,
                ),
                (_other_size(self.image, self.mask_image), not _other_size(self.image, self.mask_image)),
                (
                    f"negative_captions: expected 1 or {self.num_captions}",
                    self.negative_captions is None or len(self.negative_captions) in (1, self.num_captions),
                ),
            ]
            if not holds
        ]
        if problems:
            raise UserError("; ".join(problems))

    @property
    def has_control(self) -> bool:
        """Whether the images follow a control image."""
        return self.control_image is not None or self.control_latents is not None

    @property
    def num_captions(self) -> int:
        """Number of prompts, or of the captions in their place."""
        return len(self.prompts) if self.prompts is not None else len(self.captions) if self.captions is not None else 0

    @property
    def num_images(self) -> int:
        """Number of images in all."""
        return self.num_captions * self.num_images_per_prompt

    @property
    def num_steps(self) -> int:
        """Steps of each image: of those of the sampler, the share that changes an image to edit."""
        steps = self.sampling.num_steps
        return steps if self.image is None else int(steps * self.strength)

    def caption_index(self, image: int) -> int:
        """Index of the caption of an image."""
        return image // self.num_images_per_prompt

    def image_seed(self, image: int) -> int:
        """Seed of an image."""
        return self.seeds[image] if self.seeds is not None else self.seed + image % self.num_images_per_prompt


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """Image and the prompt and seed that it was drawn from. `image` is None where latents were asked for."""

    index: int
    """Number of the image in its request."""
    prompt: str | None
    negative_prompt: str | None
    seed: int | None
    num_cut_tokens: int
    """Tokens at the prompt's end that the text encoder has not read."""
    image: "Image.Image | np.ndarray | None"
    latents: "torch.Tensor"
    """(C, h, w) float32 on the CPU."""


@dataclass(frozen=True, kw_only=True)
class EncodedPrompts:
    """Features of the prompts of some images, on the CPU, where they wait for the network."""

    captions: "Captions"
    negatives: "Captions | None"
    cut: list[int]
    """Tokens of each prompt that were not read."""
    positions: dict[int, int]
    """Position here of each caption of the request."""

    def finite(self, request: GenerationRequest, images: Sequence[int]) -> list[bool]:
        """Whether all that each image is drawn from is finite: its caption and its negative one."""
        captions, negatives = _finite(self.captions), _finite(self.negatives) if self.negatives else [True]
        positions = [self.positions[request.caption_index(image)] for image in images]
        return [captions[position] and negatives[position if len(negatives) > 1 else 0] for position in positions]


def _other_size(image: "Image.Image | None", mask: "Image.Image | None") -> str:
    """What is wrong with the size of a mask; empty: nothing."""
    if image is None or mask is None or image.size == mask.size:
        return ""
    sizes = [f"{one.height} x {one.width}" for one in (image, mask)]
    return f"mask_image: expected the image's size, {sizes[0]} px (height x width), found {sizes[1]}"


def _finite(captions: "Captions") -> list[bool]:
    """Whether the features of each caption are finite."""
    return [bool(own.all()) for own in captions.tokens.isfinite().all(dim=1).split(captions.lengths.tolist())]
