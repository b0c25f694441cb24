"""Pixels before and after sampling: an image to edit and its mask as latents, decoded latents as an image of the final size.

Names and conventions of editing are those of diffusers' image-to-image and inpainting pipelines: white of a mask is drawn anew.
Deviation: an image is encoded to the mean of its latents, not to a sample, so that the seed's noise is that of text to image; a
latent is drawn anew where any of its pixels is white, not the one in its corner.
Shapes: C latent channels, h x w the sides of the latents, H x W those of the images.
"""

import io
from typing import TYPE_CHECKING, Literal

from foundry.errors import UserError
from model.encoders.vae import VAE, to_pixels
from model.generation.request import GenerationRequest
from model.generation.resolution import ImageSize, fit
from model.sampling import LatentEdit

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

Output = Literal["pil", "numpy", "latents"]
_WHITE = 128
_GREY_SPREAD, _COLOURED_SHARE = 24, 0.01
"""The least grey of a mask that counts as white."""


def read_image(data: bytes, *, max_pixels: int | None = None, setting: str = "image") -> "Image.Image":
    """An image to edit or a control image, from the bytes of its file, upright and in RGB.

    Raises UserError, with the setting that names the file, where there is none in them.
    """
    from PIL import Image

    return Image.fromarray(_decoded(data, max_pixels, setting=setting))


def read_mask(data: bytes, *, max_pixels: int | None = None) -> "Image.Image":
    """A mask in grey, from the bytes of its file; of one with transparency, as OpenAI's, the transparent part is white.

    Raises UserError as read_image.
    """
    from PIL import Image, ImageOps

    mask = Image.fromarray(_decoded(data, max_pixels, setting="mask"))
    with Image.open(io.BytesIO(data)) as stored:
        if stored.has_transparency_data:
            return ImageOps.invert(stored.convert("RGBA").getchannel("A"))
    return mask.convert("L")


def edit_size(request: GenerationRequest, *, multiple: int) -> ImageSize:
    """Size of the image to edit. Raises UserError where another is asked for, or a side is no multiple of `multiple`."""
    assert request.image is not None
    width, height = request.image.size
    asked = (request.height or height, request.width or width)
    if asked != (height, width):
        raise UserError(
            f"the image has {height} x {width} px (height x width), and {asked[0]} x {asked[1]} were asked for: scale it "
            "first, or leave the size out",
            setting="image",
        )
    if height % multiple or width % multiple:
        near = [max(multiple, side // multiple * multiple) for side in (height, width)]
        raise UserError(
            f"expected an image with sides that {multiple} divides, found {height} x {width} px (height x width): crop or "
            f"scale it to {near[0]} x {near[1]}",
            setting="image",
        )
    return ImageSize(height=height, width=width, final_height=height, final_width=width)


def latent_edit(request: GenerationRequest, vae: VAE) -> LatentEdit:
    """What sampling has to know of the image to edit."""
    assert request.image is not None
    latents = vae.encode(_tensor(request.image)).sample(vae.scale, generator=None).cpu()  # (1, C, h, w)
    mask = None if request.mask_image is None else _latent_mask(request.mask_image, factor=vae.downsampling)
    return LatentEdit(latents=latents, strength=request.strength, mask=mask)


def control_latents(request: GenerationRequest, vae: VAE, size: ImageSize) -> "torch.Tensor":
    """Latents (1, C, h, w) of the control image at the size that is drawn, float32 on the CPU."""
    import numpy as np
    from PIL import Image

    from model.control.edges import edge_map

    assert request.control_image is not None
    pixels = fit(np.asarray(request.control_image.convert("RGB")), (size.height, size.width))
    shown = Image.fromarray(edge_map(pixels) if request.compute_edges else pixels)
    return vae.encode(_tensor(shown)).sample(vae.scale, generator=None).cpu()


def check_is_edge_map(image: "Image.Image") -> None:
    """Raises UserError for a control image in colour, of which the edges are still to be computed."""
    import numpy as np

    pixels = np.asarray(image.convert("RGB")).astype(np.int16)
    coloured = float((pixels.max(-1) - pixels.min(-1) > _GREY_SPREAD).mean())
    if coloured > _COLOURED_SHARE:
        raise UserError(
            "the control follows edge maps, white on black, and the control image is in colour: have its edges computed, or "
            "give an edge map",
            setting="compute_edges",
        )


def final_image(
    images: "torch.Tensor", request: GenerationRequest, size: ImageSize, output: Output
) -> "Image.Image | np.ndarray":
    """A decoded image (1, 3, H, W) in -1..1 as it is handed over: of the final size, with the kept pixels where asked for."""
    pixels = _fit(images, size)
    if request.paste_kept:
        pixels = _with_kept(pixels, request)
    return to_output(pixels, output)


def to_output(pixels: "torch.Tensor", output: Output) -> "Image.Image | np.ndarray":
    """One image (1, 3, H, W) in 0..1 as PIL, 8 bits, or as numpy (H, W, 3) float32."""
    array = pixels[0].permute(1, 2, 0).cpu().numpy()  # (H, W, 3)
    if output == "numpy":
        return array
    from PIL import Image

    return Image.fromarray((array * 255).round().astype("uint8"))


def _decoded(data: bytes, max_pixels: int | None, *, setting: str) -> "np.ndarray":
    """(H, W, 3) uint8"""
    from foundry.images.decoding import DecodeLimits, decode_image
    from foundry.units.rejection import ImageError

    limits = DecodeLimits() if max_pixels is None else DecodeLimits(max_image_pixels=max_pixels)
    try:
        return decode_image(data, limits=limits).pixels
    except ImageError as error:
        raise UserError(f"{setting}: expected an image file, found {error.reason}: {error}", setting=setting) from None


def _fit(images: "torch.Tensor", size: ImageSize) -> "torch.Tensor":
    """Images (B, 3, H, W) in -1..1 scaled and cropped to the final size, as diffusers does, as pixels in 0..1."""
    if size.resized:
        from diffusers.image_processor import PixArtImageProcessor

        images = PixArtImageProcessor.resize_and_crop_tensor(images, size.final_width, size.final_height)
    return to_pixels(images)


def _with_kept(pixels: "torch.Tensor", request: GenerationRequest) -> "torch.Tensor":
    """Pixels (1, 3, H, W) in 0..1 with those of the image itself where the mask is black."""
    import torch

    assert request.image is not None and request.mask_image is not None
    kept = to_pixels(_tensor(request.image)).to(pixels)
    return torch.where(_is_white(request.mask_image).to(pixels.device), pixels, kept)


def _tensor(image: "Image.Image") -> "torch.Tensor":
    """(1, 3, H, W) in -1..1."""
    import numpy as np
    import torch

    array = np.asarray(image.convert("RGB"), dtype=np.float32)  # (H, W, 3)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)[None]


def _is_white(mask: "Image.Image") -> "torch.Tensor":
    """(1, 1, H, W) bool"""
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(mask.convert("L")) >= _WHITE)[None, None]


def _latent_mask(mask: "Image.Image", *, factor: int) -> "torch.Tensor":
    """(1, 1, h, w) 1 where any pixel of a latent is white."""
    import torch.nn.functional as F  # noqa: N812

    return F.max_pool2d(_is_white(mask).float(), factor)
