"""Controls in diffusers' names: they are those of its research example, and compute what it computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foundry.command_line import run_command
from foundry.errors import UserError
from model.control.control import Control, put_control
from model.control.settings import EDGES, ControlChoice
from model.convert import ConvertConfig, main
from model.dit import Captions, DiT
from model.formats.checkpoint import (
    PipelineConfig,
    checkpoint_fingerprint,
    find_checkpoint,
    load_checkpoint,
    read_own_control,
    save_checkpoint,
    save_control_checkpoint,
)
from model.formats.controls import CLASS, open_control, write_control_folder
from model.formats.json_files import read_json
from model.formats.state_dicts import to_diffusers
from tests.model.control.test_control import random_control
from tests.model.tiny_networks import padded_captions, random_network

SIDE = 16
PIPELINE = PipelineConfig(objective="diffusion", resolution=32)


class OneControl(nn.Module):
    """A copied block in the example's layout: its module names are the keys of its files."""

    def __init__(self, width: int, heads: int, *, first: bool) -> None:
        super().__init__()
        if first:
            self.before_proj = nn.Linear(width, width)
        self.transformer_block = BasicTransformerBlock(
            width,
            heads,
            width // heads,
            cross_attention_dim=width,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            attention_bias=True,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
        )
        self.after_proj = nn.Linear(width, width)


def in_diffusers(network: DiT, folder: Path, inputs: dict[str, Any]) -> Tensor:
    """The prediction of diffusers' network with the control of a folder: the example's order, by hooks on its blocks."""
    config = network.config
    theirs = PixArtTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.width // config.num_heads,
        cross_attention_dim=config.width,
        num_layers=config.depth,
        sample_size=config.sample_size,
        caption_channels=config.caption_width,
        use_additional_conditions=False,
    )
    missing = theirs.load_state_dict(to_diffusers(network.state_dict(), config), strict=False).missing_keys
    assert missing in ([], ["pos_embed.pos_embed"])
    num = read_json(folder / "config.json", missing="")["num_layers"]
    blocks = [OneControl(config.width, config.num_heads, first=index == 0) for index in range(num)]
    copies = nn.ModuleDict({"controlnet_blocks": nn.ModuleList(blocks)})
    copies.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"), strict=True)
    states = theirs.pos_embed(inputs["control"])

    def before(index: int) -> Any:
        def join(_block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            nonlocal states
            (hidden,) = arguments or (named.pop("hidden_states"),)
            copy: Any = blocks[index - 1]
            if index == 1:
                states = hidden + copy.before_proj(states)
            states = copy.transformer_block(states, **{**named, "class_labels": None})
            return (hidden + copy.after_proj(states),), named

        return join

    for index in range(1, num + 1):
        theirs.transformer_blocks[index].register_forward_pre_hook(before(index), with_kwargs=True)
    with torch.no_grad():
        tokens, mask = padded_captions()
        output = theirs.eval()(
            inputs["latents"],
            encoder_hidden_states=tokens,
            timestep=inputs["timesteps"],
            encoder_attention_mask=mask.float(),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )
    return output.sample  # type: ignore[no-any-return]


def test_diffusers_computes_what_we_compute(tmp_path: Path) -> None:
    network = random_network(depth=4)
    control = random_control(network, 3)
    write_control_folder(tmp_path / "theirs", control, network.config)
    generator = torch.Generator().manual_seed(4)
    inputs = {name: torch.randn(3, 4, SIDE, SIDE, generator=generator) for name in ("latents", "control")}
    inputs["timesteps"] = torch.tensor([3.0, 500.0, 998.0])
    texts = Captions.from_padded(*padded_captions())
    ours = network(inputs["latents"], inputs["timesteps"], captions=texts, control=inputs["control"])
    plain = network(inputs["latents"], inputs["timesteps"], captions=texts)
    assert (ours - plain).abs().max() > 0.01
    torch.testing.assert_close(in_diffusers(network, tmp_path / "theirs", inputs), ours, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The checkpoint of a network, and that of a control of it."""
    root = tmp_path_factory.mktemp("controls")
    network = random_network()
    save_checkpoint(root / "base", network, PIPELINE)
    tensors = random_control(network).tensors
    base = str(root / "base")
    control = Control(tensors=tensors, condition=EDGES, base=base, base_fingerprint=checkpoint_fingerprint(root / "base"))
    save_control_checkpoint(root / "run", control, network.config, PIPELINE)
    return root / "base", root / "run"


def test_a_control_goes_to_diffusers_and_back(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, run = trained
    arguments = ["--source", "native", "--target", "controlnet", str(run), str(tmp_path / "theirs")]
    assert run_command(ConvertConfig, main, prog="", example="", positional=["checkpoint", "out"], argv=arguments) == 0
    printed = capsys.readouterr().out
    assert "a control of 2 blocks" in printed and f"{CLASS}.from_pretrained" in printed and "has a width of 1152" in printed
    assert read_json(tmp_path / "theirs" / "config.json", missing="") == {"_class_name": CLASS, "num_layers": 2}
    for path in (run, run / "transformer" / "control.safetensors", tmp_path / "theirs"):
        found = open_control(ControlChoice(str(path)), base)
        own = read_own_control(run)
        assert found.tensors.keys() == own.tensors.keys()
        assert all(torch.equal(tensor, own.tensors[name]) for name, tensor in found.tensors.items())
    assert found.condition == "" and found.base_fingerprint == ""  # a folder of diffusers says neither


def test_a_controls_checkpoint_is_no_network(trained: tuple[Path, Path]) -> None:
    base, run = trained
    for use in (load_checkpoint, checkpoint_fingerprint):
        with pytest.raises(
            UserError, match=rf"run is a control of {base}, neither a network nor a LoRA: python -m model.generate"
        ):
            use(find_checkpoint(run))
    with pytest.raises(UserError, match="is a checkpoint without a control"):
        open_control(ControlChoice(str(base)), base)


def test_what_is_missing_or_of_another_network_is_named(trained: tuple[Path, Path], tmp_path: Path) -> None:
    base, run = trained
    other = tmp_path / "other"
    save_checkpoint(other, random_network(seed=1), PIPELINE)
    with pytest.raises(UserError, match=r"is a control of .* with the fingerprint \w{16}, and .*other has \w{16}"):
        open_control(ControlChoice(str(run)), other)
    with pytest.raises(UserError, match="nowhere: expected a control .* found none"):
        open_control(ControlChoice(str(tmp_path / "nowhere")), base)
    control, config = read_own_control(run), random_network().config
    write_control_folder(tmp_path / "theirs", control, config)
    weights = tmp_path / "theirs" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["controlnet_blocks.0.before_proj.bias"]
    save_file(tensors, weights)
    with pytest.raises(UserError, match="a control of another network: 1 missing: controlnet_blocks.0.before_proj.bias"):
        open_control(ControlChoice(str(tmp_path / "theirs")), base)
    (tmp_path / "theirs" / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    with pytest.raises(UserError, match=rf"expected {CLASS} with num_layers of 1 to 2, found ControlNetModel with None"):
        open_control(ControlChoice(str(tmp_path / "theirs")), base)
    with pytest.raises(UserError, match="diffusers' PixArtTransformer2DModel has no qk_norm"):
        write_control_folder(tmp_path / "sigma", control, random_network(qk_norm=True).config)


def test_it_is_put_into_a_network_of_any_format() -> None:
    network = random_network()
    control = random_control(network)
    other = random_network().bfloat16()
    put_control(other, control, scale=0.5)
    assert {parameter.dtype for parameter in other.control_blocks.parameters()} == {torch.bfloat16}
    assert other.control_scale == 0.5
