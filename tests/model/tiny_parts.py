"""Random parts of a few thousand parameters, of the real classes: T5 with its tokenizer, AutoencoderKL, DiT, a checkpoint."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from model.dit import Captions, DiT
from model.dit_config import DiTConfig
from model.encoders.text_encoder import TextEncoder, TextEncoderConfig, load_text_encoder
from model.encoders.vae import VAE, VAEConfig, load_vae
from model.formats.checkpoint import PartConfig, PipelineConfig, save_checkpoint

CAPTION_WIDTH = 32
SIDE_PX = 32
WORDS = ("red", "owl", "key", "large", "small", "left", "on", "a", "the", "blue")


def save_tiny_t5(folder: Path, *, seed: int = 0, width: int = CAPTION_WIDTH) -> Path:
    """A T5 encoder and a tokenizer of letters and a few words, as save_pretrained writes them."""
    pieces = [(letter, -9.0) for letter in string.ascii_letters + string.digits + ".,"]
    words = [("▁" + word, -3.0) for word in WORDS]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -2.0), *pieces, *words], extra_ids=0)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = T5Config(
        d_model=width,
        d_ff=2 * width,
        d_kv=width // 4,
        num_heads=4,
        num_layers=2,
        vocab_size=len(tokenizer),
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    model = T5EncoderModel(config)
    with torch.no_grad():
        model.shared.weight.normal_()
    model.save_pretrained(folder)
    return folder


def save_tiny_vae(folder: Path, *, seed: int = 0, scaling_factor: float = 0.7, channels: int = 4, **settings: Any) -> Path:
    """An AutoencoderKL that makes 4 channels, or more, at half the side."""
    torch.manual_seed(seed)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=SIDE_PX,
        scaling_factor=scaling_factor,
        latent_channels=channels,
        **settings,
    ).save_pretrained(folder)
    return folder


def save_tiny_dc(folder: Path, *, seed: int = 0) -> Path:
    """An AutoencoderDC that makes 32 channels at a 32nd of the side, with attention as the published ones."""
    torch.manual_seed(seed)
    blocks, widths, layers = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3, (8, 8, 8, 32, 32, 32), (1,) * 6
    AutoencoderDC(
        attention_head_dim=8,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        decoder_act_fns="silu",
        scaling_factor=0.4,
    ).save_pretrained(folder)
    return folder


def tiny_text_encoder(folder: Path, *, max_caption_tokens: int = 20, max_batch_tokens: int = 8192) -> TextEncoder:
    """Loaded in float32."""
    config = TextEncoderConfig(
        name=str(folder), dtype="float32", max_caption_tokens=max_caption_tokens, max_batch_tokens=max_batch_tokens
    )
    return load_text_encoder(config)


def tiny_vae(folder: Path, *, tiled: bool = False) -> VAE:
    """Loaded in float32."""
    return load_vae(VAEConfig(name=str(folder), dtype="float32", tiled=tiled))


def tiny_dit(*, seed: int = 0, micro_conditioning: bool = False, learned_variance: bool = True, sample_size: int = 16) -> DiT:
    """A DiT whose every weight is random, so that all of it shows in the output."""
    config = DiTConfig(
        sample_size=sample_size,
        width=48,
        depth=2,
        num_heads=4,
        caption_width=CAPTION_WIDTH,
        max_caption_tokens=20,
        micro_conditioning=micro_conditioning,
        learned_variance=learned_variance,
    )
    generator = torch.Generator().manual_seed(seed)
    dit = DiT(config)
    with torch.no_grad():
        for name, parameter in sorted(dit.named_parameters()):
            fan_in = parameter[0].numel() if parameter.ndim > 1 and "table" not in name else 25
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    return dit.eval()


def poison_captions(monkeypatch: pytest.MonkeyPatch, *, prompt: str) -> None:
    """Features of this prompt, alone, are NaN from here on."""
    encode = TextEncoder.encode

    def poisoned(encoder: TextEncoder, captions: Sequence[str], **options: bool) -> Captions:
        found = encode(encoder, captions, **options)
        for own, caption in zip(found.tokens.split(found.lengths.tolist()), captions, strict=True):
            if caption == prompt:
                own.fill_(torch.nan)
        return found

    monkeypatch.setattr(TextEncoder, "encode", poisoned)


def poison_vae(folder: Path, *, value: float = float("nan")) -> Path:
    """A VAE whose decoder computes NaN, or an infinity, whatever it is given."""
    weights = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.bias"][0] = value
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


def pipeline_config(*, objective: str = "diffusion", text_encoder: Path, vae: Path) -> PipelineConfig:
    """With fingerprints."""
    return PipelineConfig(
        objective=objective,
        resolution=SIDE_PX,
        text_encoder=PartConfig(name=str(text_encoder), fingerprint=tiny_text_encoder(text_encoder).fingerprint()),
        vae=PartConfig(name=str(vae), fingerprint=tiny_vae(vae).fingerprint()),
        licence="CC0-1.0",
    )


def save_tiny_checkpoint(folder: Path, *, objective: str = "diffusion", seed: int = 0) -> Path:
    """A whole checkpoint in `folder`/checkpoint, with its T5 and VAE next to it."""
    text_encoder, vae = save_tiny_t5(folder / "t5"), save_tiny_vae(folder / "vae")
    config = pipeline_config(objective=objective, text_encoder=text_encoder, vae=vae)
    return save_checkpoint(folder / "checkpoint", tiny_dit(seed=seed, learned_variance=objective == "diffusion"), config)
