"""The network equals diffusers' ports; padding, batches, checkpointing and caching change nothing; misfits get one line."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn

from model.dit import PRESETS, Captions, DiT, DiTConfig, HiddenStates, KVCompression, position_table
from model.encoders.frozen_parts import PRETRAINED
from model.formats.state_dicts import to_diffusers
from tests.model.tiny_networks import (
    CLASS,
    RATIOS,
    SIZES,
    TEXT,
    TIMESTEPS,
    captions,
    latents,
    padded_captions,
    random_network,
)

TOLERANCE = 1e-9
"""Against a library in float64, where it holds on every processor."""


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def _pixart(network: DiT) -> PixArtTransformer2DModel:
    config = network.config
    theirs = PixArtTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_width,
        num_layers=config.depth,
        cross_attention_dim=config.width,
        sample_size=config.sample_size,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        caption_channels=config.caption_width,
        interpolation_scale=config.position_scale,
        use_additional_conditions=config.micro_conditioning,
    ).eval()
    plain = replace(config, qk_norm=False, kv_compression=KVCompression())
    theirs.load_state_dict(to_diffusers(network.state_dict(), plain), strict=True)
    return theirs


def _share_positions(theirs: PixArtTransformer2DModel, network: DiT, grid: tuple[int, int]) -> None:
    """Gives diffusers our table of a grid, which has the values of its own but for its float32 arithmetic."""
    config = network.config
    ours = position_table(grid, width=config.width, base=config.base_grid, scale=config.position_scale)
    own = get_2d_sincos_pos_embed(
        config.width, grid, base_size=config.base_grid, interpolation_scale=config.position_scale, output_type="pt"
    )
    torch.testing.assert_close(ours, own.float(), rtol=0, atol=1e-6)
    embed = theirs.pos_embed
    embed.pos_embed, embed.height, embed.width = ours[None].double(), *grid


class _Compressed(nn.Module):
    """A projection of diffusers' attention, then Sigma's compression, written apart from ours: sums over squares."""

    def __init__(self, projection: nn.Module, attention: Any, grid: tuple[int, int]) -> None:
        super().__init__()
        self.projection, self.attention, self.grid = projection, [attention], grid

    def forward(self, x: Tensor) -> Tensor:
        image = self.projection(x).unflatten(1, self.grid)  # (B, h, w, D)
        weight, bias, norm = self.attention[0].sr.weight, self.attention[0].sr.bias, self.attention[0].norm
        total = sum(image[:, i::2, j::2] * weight[:, 0, i, j] for i in range(2) for j in range(2)) + bias
        result: Tensor = norm(total.flatten(1, 2))
        return result


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({}, (16, 16)),
        ({}, (8, 12)),
        ({"micro_conditioning": True}, (24, 6)),
        ({"position_scale": 2.0, "learned_variance": False}, (20, 16)),
        ({"patch_size": 1, "in_channels": 6}, (5, 3)),
        ({"qk_norm": True}, (8, 12)),
        ({"qk_norm": True, "kv_compression": KVCompression(layers=(1, 2))}, (8, 12)),
    ],
    ids=["square", "wide", "micro", "scale", "patch 1", "qk norm", "kv compression"],
)
def test_output_and_gradients_equal_those_of_diffusers(changes: dict[str, Any], side: tuple[int, int]) -> None:
    network = random_network(TEXT, **changes).double()
    theirs = _pixart(network).double()
    patch = network.config.patch_size
    _share_positions(theirs, network, (side[0] // patch, side[1] // patch))
    for index in range(network.config.depth):  # diffusers has neither: full-width norms and compression join its projections
        attention: Any = network.blocks[index].attn
        port: Any = theirs.transformer_blocks[index].attn1
        if network.config.qk_norm:
            port.to_q = nn.Sequential(port.to_q, attention.q_norm)
            port.to_k = nn.Sequential(port.to_k, attention.k_norm)
        if index in network.config.kv_compression.layers:
            grid = (side[0] // 2, side[1] // 2)
            port.to_k = _Compressed(port.to_k, attention, grid)
            port.to_v = _Compressed(port.to_v, attention, grid)
    inputs = torch.randn(3, network.config.in_channels, *side, generator=torch.Generator().manual_seed(3)).double()
    ours_in, theirs_in = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    embeddings, mask = padded_captions()
    embeddings = embeddings.double()
    micro = {"sizes": SIZES, "aspect_ratios": RATIOS} if network.config.micro_conditioning else {}
    ours = network(ours_in, TIMESTEPS, captions=Captions.from_padded(embeddings, mask), **micro)
    reference = theirs(
        theirs_in,
        encoder_hidden_states=embeddings,
        timestep=TIMESTEPS,
        encoder_attention_mask=mask.long(),
        added_cond_kwargs={"resolution": SIZES, "aspect_ratio": RATIOS},
    ).sample
    assert _relative(ours, reference) < TOLERANCE

    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4))
    (ours * weight).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert len(gradients) == len(list(network.parameters()))
    network.zero_grad()
    (reference * weight).sum().backward()
    assert ours_in.grad is not None and theirs_in.grad is not None
    assert _relative(ours_in.grad, theirs_in.grad) < TOLERANCE
    plain = replace(network.config, qk_norm=False, kv_compression=KVCompression())
    renamed = to_diffusers(gradients, plain)
    # Softmax does not see a shift of all keys: the gradient of an unnormalised key's bias is rounding on both sides.
    blind = ("to_k.bias",) if not network.config.qk_norm else ("attn2.to_k.bias",)
    compared = set()
    for name, parameter in theirs.named_parameters():
        key = re.sub(r"(to_[qkv])\.(projection\.)?(0\.)?", r"\1.", name)
        if key in renamed and not key.endswith(blind):
            assert parameter.grad is not None and _relative(renamed[key], parameter.grad) < TOLERANCE, name
            compared.add(key)
    assert compared == {key for key in renamed if not key.endswith(blind)}
    for name, parameter in network.named_parameters():  # the norms and convolutions that both sides share
        if parameter.grad is not None and "k_norm.bias" not in name:
            assert _relative(gradients[name], parameter.grad) < TOLERANCE, name


def test_class_conditional_equals_the_dit_of_diffusers() -> None:
    network = random_network(CLASS).double()
    theirs = (
        DiTTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=12,
            num_layers=3,
            sample_size=16,
            out_channels=8,
            num_embeds_ada_norm=7,
            norm_eps=1e-6,  # DiT's own; diffusers' default is 1e-5 in one norm of three
        )
        .eval()
        .double()
    )
    theirs.load_state_dict(to_diffusers(network.state_dict(), network.config), strict=True)
    for module in theirs.modules():
        if hasattr(module, "downscale_freq_shift"):
            module.downscale_freq_shift = 0  # DiT's own frequencies; diffusers' port divides by 127 for 128
    inputs, labels = latents(height=16, width=16).double(), torch.tensor([3, 6, 7])
    ours = network(inputs, TIMESTEPS, class_labels=labels)
    reference = theirs(inputs, timestep=TIMESTEPS, class_labels=labels).sample
    assert _relative(ours, reference) < TOLERANCE
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4))
    (ours * weight).sum().backward()
    (reference * weight).sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    found = dict(theirs.named_parameters())
    for name, gradient in to_diffusers(gradients, network.config).items():  # type: ignore[arg-type]
        if "norm1.emb" in name:  # one embedder here, a copy in each block there: the gradient is the copies' sum
            suffix = name.partition("norm1.")[2]
            total = sum(part.grad for key, part in found.items() if key.endswith(suffix) and part.grad is not None)
            assert isinstance(total, Tensor) and _relative(gradient, total) < TOLERANCE, name
        elif not name.endswith("to_k.bias"):
            grad = found[name].grad
            assert grad is not None and _relative(gradient, grad) < TOLERANCE, name


def test_no_label_is_the_null_class() -> None:
    network = random_network(CLASS)
    labels = torch.full((3,), 7)
    torch.testing.assert_close(network(latents(), TIMESTEPS), network(latents(), TIMESTEPS, class_labels=labels))


@pytest.mark.parametrize(
    ("preset", "text", "by_class"),
    [  # XL/2 as published; the class-conditional ones are DiT's 33M, 130M, 458M and 675M
        ("mini", 7_012_224, 7_669_888),
        ("S/2", 31_273_376, 32_865_056),
        ("B/2", 121_529_120, 130_315_808),
        ("L/2", 416_027_680, 457_840_672),
        ("XL/2", 610_856_096, 674_834_720),
    ],
)
def test_parameter_counts_of_the_presets(preset: str, text: int, by_class: int) -> None:
    assert _num_parameters(PRESETS[preset]) == text
    assert _num_parameters(replace(PRESETS[preset], conditioning="class")) == by_class


def test_parameter_count_with_micro_conditioning() -> None:
    assert _num_parameters(replace(PRESETS["XL/2"], micro_conditioning=True)) == 611_349_152


def _num_parameters(config: DiTConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DiT(config).parameters())


def test_mini_fits_the_shipped_parts() -> None:
    """What is drawn from noise is what vae-mini decodes, and what conditions is what t5-mini gives."""
    read = {kind: json.loads((PRETRAINED / kind / "config.json").read_text()) for kind in ("vae-mini", "t5-mini")}
    vae, config = read["vae-mini"], PRESETS["mini"]
    assert config.in_channels == vae["latent_channels"] and config.caption_width == read["t5-mini"]["d_model"]
    assert config.sample_size == vae["sample_size"] / 2 ** (len(vae["block_out_channels"]) - 1)


def test_padding_cannot_change_the_output_and_costs_nothing() -> None:
    network = random_network()
    embeddings, mask = padded_captions()
    expected = network(latents(), TIMESTEPS, captions=Captions.from_padded(embeddings, mask))
    poisoned = torch.where(mask[..., None], embeddings, torch.nan)
    packed = Captions.from_padded(poisoned, mask)
    assert packed.tokens.shape == (18, 32)
    assert torch.equal(network(latents(), TIMESTEPS, captions=packed), expected)
    seen: list[tuple[int, ...]] = []
    network.y_embedder.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape)))
    network(latents(), TIMESTEPS, captions=packed)
    assert seen == [(18, 48)]


def test_a_sample_alone_equals_the_sample_in_its_batch() -> None:
    network, inputs, read = random_network().double(), latents().double(), captions().to(dtype=torch.float64)
    together = network(inputs, TIMESTEPS, captions=read)
    for index in range(3):
        alone = network(inputs[index, None], TIMESTEPS[index, None], captions=read.select([index]))
        assert _relative(alone[0], together[index]) < TOLERANCE


def test_prepared_captions_and_checkpointing_change_nothing() -> None:
    network = random_network()
    expected = network(latents(), TIMESTEPS, captions=captions())
    assert torch.equal(network(latents(), TIMESTEPS, captions=network.prepare(captions())), expected)
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    network.gradient_checkpointing = True
    network(latents(), TIMESTEPS, captions=captions()).square().sum().backward()
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(network.parameters(), gradients, strict=True))  # type: ignore[arg-type]


def test_autocast_keeps_the_precision_of_bf16() -> None:
    network = random_network()
    expected = network(latents(), TIMESTEPS, captions=captions())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(latents(), TIMESTEPS, captions=captions())
    assert float((output.float() - expected).detach().norm() / expected.detach().norm()) < 0.02


def test_timesteps_above_256_stay_apart_with_bf16_weights() -> None:
    network = random_network().bfloat16()
    one, next_one = (network.t_embedder(torch.tensor([value])) for value in (901.0, 902.0))
    assert not torch.equal(one, next_one)


def test_positions_are_computed_once_for_a_grid_and_stay_out_of_the_state() -> None:
    network = random_network()
    network(latents(), TIMESTEPS, captions=captions())
    table = next(iter(network._positions.values()))
    network(latents(), TIMESTEPS, captions=captions())
    assert next(iter(network._positions.values())) is table and len(network._positions) == 1
    assert "pos_embed" not in network.state_dict()


def test_positions_of_a_larger_grid_lie_between_those_of_the_base() -> None:
    base, double = (position_table((side, side), width=16, base=4, scale=1.0).view(side, side, 16) for side in (4, 8))
    torch.testing.assert_close(double[::2, ::2], base)
    assert torch.equal(base[0, :, :8], base[3, :, :8])  # the first half tells the column alone


def test_initialise_is_deterministic_and_adds_nothing_at_first() -> None:
    first, second = (DiT(TEXT).initialise(torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters(), strict=True))
    assert not first(latents(), TIMESTEPS, captions=captions()).any()
    block: Any = first.blocks[0]
    assert block.attn.qkv.weight.std() > 0 and not block.cross_attn.proj.weight.any()


def test_captions_are_embedded_at_the_same_scale_by_any_width() -> None:
    scales = []
    for config in (DiTConfig(depth=1), DiTConfig(depth=1, width=256, num_heads=4, caption_width=192)):
        network = DiT(config).initialise(torch.Generator().manual_seed(5))
        tokens = torch.randn(512, config.caption_width, generator=torch.Generator().manual_seed(6))
        scales.append(float(network.y_embedder(tokens).std().detach()))
    assert scales[1] == pytest.approx(scales[0], rel=0.05)


def test_a_ratio_of_shapes_gives_the_shapes_back() -> None:
    assert DiTConfig(width=44, num_heads=4, mlp_ratio=60 / 44).mlp_width == 60  # 44 * (60 / 44) is a little less


def test_config_survives_json_and_names_what_it_does_not_know() -> None:
    config = replace(TEXT, kv_compression=KVCompression(layers=(1,)), qk_norm=True)
    assert DiTConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="unknown key 'widht'; did you mean 'width'"):
        DiTConfig.from_dict({"widht": 3})
    with pytest.raises(ValueError, match="depth: expected int, found '3'"):
        DiTConfig.from_dict({"depth": "3"})
    with pytest.raises(ValueError, match=r"multiple of num_heads 5.*multiple of patch_size"):
        DiTConfig(width=48, num_heads=5, sample_size=15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"latents": torch.zeros(3, 4, 7, 8)},
            r"latents: expected \(B, 4, H, W\) with H and W multiples of 2, found \[3, 4, 7, 8\]",
        ),
        ({"latents": torch.zeros(3, 3, 8, 8)}, r"latents: expected .* found \[3, 3, 8, 8\]"),
        ({"timesteps": torch.zeros(2)}, r"timesteps: expected \(3,\), found \[2\]|timesteps: expected \[3\], found \[2\]"),
        ({"captions": captions(2)}, "captions: expected 3 for 3 latents, found 2"),
        ({"captions": None}, "captions: found none for conditioning=text"),
        (
            {"captions": Captions(torch.zeros(13, 32), torch.tensor([1, 1, 11]))},
            "captions: expected at most 10 tokens, found 11",
        ),
        (
            {"captions": Captions(torch.zeros(3, 31), torch.tensor([1, 1, 1]))},
            "captions: expected tokens of width 32, found 31",
        ),
        ({"class_labels": torch.zeros(3)}, "class_labels: expected none with conditioning=text"),
        ({"sizes": SIZES}, "sizes: expected none"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"latents": latents(), "timesteps": TIMESTEPS, "captions": captions()} | arguments
    with pytest.raises(ValueError, match=message):
        random_network()(values.pop("latents"), values.pop("timesteps"), **values)


def test_masks_and_lengths_that_do_not_fit_are_named() -> None:
    embeddings, mask = padded_captions()
    with pytest.raises(ValueError, match=r"caption mask: expected a mask \(B, L\).*\[3, 9\]"):
        Captions.from_padded(embeddings, mask[:, :9])
    with pytest.raises(ValueError, match=r"found none in rows \[1\]"):
        Captions.from_padded(embeddings, mask & (torch.arange(3) != 1)[:, None])
    with pytest.raises(ValueError, match="sum of 3"):
        Captions(torch.zeros(4, 32), torch.tensor([1, 2]))


def test_captions_can_be_chosen_and_joined() -> None:
    packed = captions()
    again = Captions.cat([packed.select([0]), packed.select([2, 1])]).select([0, 2, 1])
    assert torch.equal(again.tokens, packed.tokens) and torch.equal(again.lengths, packed.lengths)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", [TEXT, CLASS])
def test_hidden_states_are_the_outputs_of_their_blocks_with_gradients(config: DiTConfig, checkpointing: bool) -> None:
    network = random_network(config)
    network.gradient_checkpointing = checkpointing
    text = captions() if config.conditioning == "text" else None
    plain = network(latents(), TIMESTEPS, captions=text)
    outputs: list[Tensor] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _block, _inputs, output: outputs.append(output.detach()))
    hidden = HiddenStates(frozenset({1, 3}))
    assert torch.equal(network(latents(), TIMESTEPS, captions=text, hidden=hidden), plain)
    assert sorted(hidden.outputs) == [1, 3] and hidden.outputs[1].shape == (3, 24, 48)
    assert torch.equal(hidden.outputs[1], outputs[0]) and torch.equal(hidden.outputs[3], outputs[2])
    hidden.outputs[1].sum().backward()
    trained = [any(parameter.grad is not None for parameter in block.parameters()) for block in network.blocks]
    assert trained == [True, False, False]
