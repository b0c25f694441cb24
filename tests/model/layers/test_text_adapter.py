"""The text adapter equals attention written plainly, sees no padding, starts as the identity, and survives every format."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from foundry.errors import UserError
from model.dit import Captions, DiT, DiTConfig
from model.dit_config import UnstatedConfig
from model.formats.checkpoint import PipelineConfig, load_checkpoint, save_checkpoint
from model.formats.conversion import Origin, read, write
from model.layers.text_adapter import AdapterBlock
from tests.model.tiny_networks import TEXT, TIMESTEPS, captions, latents, padded_captions, random_network

ADAPTED = replace(TEXT, text_adapter_blocks=2)
TOLERANCE = 1e-9


def _plain_block(block: AdapterBlock, y: Tensor, heads: int) -> Tensor:
    """One caption (L, D) through a block, by matrix products alone."""

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    attention, mlp = block.attn, block.mlp
    inner = normed(y, block.attn_norm.weight) @ attention.qkv.weight.T + attention.qkv.bias
    queries, keys, values = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in inner.chunk(3, dim=-1))
    queries, keys = normed(queries, attention.q_norm.weight), normed(keys, attention.k_norm.weight)
    weights = (queries @ keys.transpose(1, 2) / queries.shape[-1] ** 0.5).softmax(-1)
    y = y + attention.proj((weights @ values).transpose(0, 1).flatten(1))
    inner = normed(y, block.mlp_norm.weight)
    added: Tensor = mlp.proj(F.silu(mlp.gate(inner)) * mlp.value(inner))
    return y + added


def _forward(network: DiT, read: Captions) -> Tensor:
    output: Tensor = network(latents(), TIMESTEPS, captions=read)
    return output


def test_it_equals_attention_written_plainly() -> None:
    network = random_network(ADAPTED).double()
    read = captions().to(dtype=torch.float64)
    found = network._project(read).tokens.split(read.lengths.tolist())
    for own, tokens in zip(found, network.y_embedder(read.tokens).split(read.lengths.tolist()), strict=True):
        expected = tokens
        for block in network.text_adapter:
            assert isinstance(block, AdapterBlock)
            expected = _plain_block(block, expected, TEXT.num_heads)
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)


def test_padding_and_neighbours_are_not_seen() -> None:
    network = random_network(ADAPTED).double()
    embeddings, mask = padded_captions()
    read = Captions.from_padded(torch.where(mask[..., None], embeddings, torch.nan), mask).to(dtype=torch.float64)
    together = network(latents().double(), TIMESTEPS, captions=read)
    assert bool(together.isfinite().all())
    for index in range(3):
        alone = network(latents().double()[index, None], TIMESTEPS[index, None], captions=read.select([index]))
        assert float((alone[0] - together[index]).detach().abs().max()) < TOLERANCE * float(together.detach().abs().max())


def test_prepared_captions_and_checkpointing_change_nothing_and_every_weight_learns() -> None:
    network = random_network(ADAPTED)
    expected = _forward(network, captions())
    assert torch.equal(network(latents(), TIMESTEPS, captions=network.prepare(captions())), expected)
    calls: list[int] = []
    network.text_adapter[0].register_forward_hook(lambda *_: calls.append(1))
    prepared = network.prepare(captions())
    for _ in range(3):
        network(latents(), TIMESTEPS, captions=prepared)
    assert calls == [1]  # once per prompt, however many steps there are
    expected.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())
    network.zero_grad()
    network.gradient_checkpointing = True
    _forward(network, captions()).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name  # type: ignore[arg-type]


def test_autocast_and_bf16_weights_stay_near_float32() -> None:
    network = random_network(ADAPTED)
    expected = _forward(network, captions())
    with torch.autocast("cpu", torch.bfloat16):
        low = _forward(network, captions())
    assert float((low - expected).detach().abs().max()) < 0.05 * float(expected.detach().abs().max())
    low = network.bfloat16()(latents().bfloat16(), TIMESTEPS, captions=captions().to(dtype=torch.bfloat16))
    assert float((low - expected).detach().abs().max()) < 0.1 * float(expected.detach().abs().max())


def test_a_new_block_without_output_projections_is_the_identity_and_learns() -> None:
    plain = random_network(TEXT)
    network = DiT(ADAPTED).initialise(torch.Generator().manual_seed(0))
    missing = network.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(name.startswith("text_adapter.") for name in missing)
    for block in network.text_adapter:
        assert isinstance(block, AdapterBlock)
        block.start_as_identity()
    output = _forward(network, captions())
    assert torch.equal(output, _forward(plain, captions()))
    output.square().sum().backward()
    for block in network.text_adapter:
        assert isinstance(block, AdapterBlock)
        for layer in (block.attn.proj, block.mlp.proj):
            assert layer.weight.grad is not None and bool(layer.weight.grad.any())


def test_the_other_weights_of_a_new_network_are_those_without_it() -> None:
    plain, network = (DiT(config).initialise(torch.Generator().manual_seed(3)) for config in (TEXT, ADAPTED))
    for name, weight in plain.state_dict().items():
        assert torch.equal(network.state_dict()[name], weight), name
    assert all(bool(parameter.any()) for name, parameter in network.text_adapter.named_parameters() if "weight" in name)


def test_configurations_without_it_still_open_and_others_are_refused() -> None:
    old = {key: value for key, value in TEXT.to_dict().items() if key != "text_adapter_blocks"}
    assert DiTConfig.from_dict(old) == TEXT
    for number in (3, -1):
        with pytest.raises(ValueError, match="text_adapter_blocks: expected 0, 1 or 2"):
            replace(TEXT, text_adapter_blocks=number)
    with pytest.raises(ValueError, match="text_adapter_blocks: expected with conditioning=text only"):
        DiTConfig(conditioning="class", text_adapter_blocks=1)


@pytest.mark.parametrize("suffix", ["native", "pth"])
def test_a_checkpoint_and_an_official_file_bring_it_back(tmp_path: Path, suffix: str) -> None:
    network = random_network(ADAPTED)
    pipeline = PipelineConfig(objective="diffusion", resolution=128)
    native = save_checkpoint(tmp_path / "native", network, pipeline)
    if suffix == "pth":
        write(read(Origin(checkpoint=str(native), source="native")), tmp_path / "x.pth", target="official", copy_parts=False)
        unstated = UnstatedConfig(num_heads=4)
        again = read(Origin(checkpoint=str(tmp_path / "x.pth"), source="official", unstated=unstated))
        config, state = again.config, again.state
    else:
        loaded = load_checkpoint(native)[0]
        config, state = loaded.config, loaded.state_dict()
    assert config == ADAPTED
    assert all(torch.equal(state[name], weight) for name, weight in network.state_dict().items())


def test_a_file_that_lacks_its_tensors_or_has_too_many_is_refused(tmp_path: Path) -> None:
    pipeline = PipelineConfig(objective="diffusion", resolution=128)
    with_adapter = save_checkpoint(tmp_path / "with", random_network(ADAPTED), pipeline)
    without = save_checkpoint(tmp_path / "without", random_network(TEXT), pipeline)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    kept = (without / weights).read_bytes()
    (without / weights).write_bytes((with_adapter / weights).read_bytes())
    with pytest.raises(UserError, match=r"unexpected: text_adapter\.0"):
        load_checkpoint(without)
    (with_adapter / weights).write_bytes(kept)
    with pytest.raises(UserError, match=r"missing: text_adapter\.0"):
        load_checkpoint(with_adapter)


def test_diffusers_cannot_hold_it_and_the_error_says_so(tmp_path: Path) -> None:
    native = save_checkpoint(
        tmp_path / "native", random_network(ADAPTED), PipelineConfig(objective="diffusion", resolution=128)
    )
    with pytest.raises(UserError, match="PixArtTransformer2DModel has no text adapter: expected a network without"):
        write(read(Origin(checkpoint=str(native), source="native")), tmp_path / "out", target="diffusers", copy_parts=False)
    assert not (tmp_path / "out").exists()
