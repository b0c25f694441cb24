"""Adapters for diffusers and from it: its pipeline draws our images with them, and what it cannot hold is refused by name."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from foundry.command_line import run_command
from foundry.errors import UserError
from model.convert import ConvertConfig, main
from model.dit import Captions, DiT
from model.formats.adapters import open_adapters, read_any
from model.formats.checkpoint import (
    checkpoint_fingerprint,
    find_checkpoint,
    load_checkpoint,
    read_pipeline_config,
    save_adapter_checkpoint,
)
from model.formats.peft_files import read_foreign, write_peft_folder
from model.generate import GenerateConfig
from model.generate import main as generate
from model.generation.pipeline import open_pipeline
from model.generation.pipeline_parts import RuntimeConfig
from model.generation.request import GenerationRequest
from model.lora.adapter import Adapter, LayerAdapter
from model.lora.injection import lora_sizes
from model.lora.settings import Injection, LoraChoice
from model.sampling import SamplingConfig
from tests.model.tiny_parts import CAPTION_WIDTH, save_tiny_checkpoint
from trainer.evaluate import main as evaluate
from trainer.evaluation.config import EvaluateConfig

KINDS = [
    Injection(rank=4, alpha=6.0),
    Injection(rank=4, alpha=6.0, rslora=True),
    Injection(rank=3, alpha=2.0, dora=True),
    Injection(rank=2, alpha=2.0, targets=("attn.qkv", "t_block.1", "y_proj.fc1", "final_layer.linear")),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("lora"), objective="rectified_flow")


@pytest.fixture(scope="module")
def diffusers(checkpoint: Path) -> Path:
    """The same network as a pipeline of diffusers."""
    out = checkpoint.parent / "diffusers"
    assert main(ConvertConfig(checkpoint=str(checkpoint), out=str(out), source="native", target="diffusers")) == 0
    return out


def trained_adapter(network: DiT, injection: Injection, *, base: Path | None = None, seed: int = 0) -> Adapter:
    """An adapter with random values, as a training might leave it."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    layers = {}
    for name, inputs, outputs in lora_sizes(network.config, injection).layers:
        norms = network.state_dict()[f"{name}.weight"].norm(dim=1)
        magnitude = norms * (1 + drawn(outputs)) if injection.dora else None
        down, up = drawn(injection.rank, inputs), drawn(outputs, injection.rank)
        layers[name] = LayerAdapter(down=down, up=up, alpha=injection.alpha, magnitude=magnitude)
    fingerprint = "" if base is None else checkpoint_fingerprint(base)
    return Adapter(
        layers=layers, rslora=injection.rslora, base=str(base or ""), base_fingerprint=fingerprint, trigger_word="sks"
    )


def adapted_checkpoint(checkpoint: Path, folder: Path, injection: Injection, *, seed: int = 0) -> Path:
    """The checkpoint of a LoRA of another one."""
    network, pipeline = load_checkpoint(checkpoint)
    adapter = trained_adapter(network, injection, base=checkpoint, seed=seed)
    return save_adapter_checkpoint(folder, adapter, network.config, pipeline)


def _export(checkpoint: Path, out: Path) -> Path:
    assert main(ConvertConfig(checkpoint=str(checkpoint), out=str(out), source="native", target="peft")) == 0
    return out


def _ours(network: DiT) -> torch.Tensor:
    latents, tokens, mask = _inputs()
    with torch.no_grad():
        return network.double()(latents, TIMES, captions=Captions.from_padded(tokens, mask))[:, :4]  # type: ignore[no-any-return]


def _theirs(network: torch.nn.Module) -> torch.Tensor:
    latents, tokens, mask = _inputs()
    with torch.no_grad():
        found = network.double()(latents, timestep=TIMES, encoder_hidden_states=tokens, encoder_attention_mask=mask.long())
    return found.sample[:, :4]  # type: ignore[no-any-return]


TIMES = torch.tensor([100.0, 900.0])


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, 16, 16, generator=generator, dtype=torch.float64)
    tokens = torch.randn(2, 6, CAPTION_WIDTH, generator=generator, dtype=torch.float64)
    return latents, tokens, torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]) == 1


@pytest.mark.parametrize("injection", KINDS, ids=str)
def test_peft_computes_on_diffusers_network_what_we_add_to_ours(
    checkpoint: Path, diffusers: Path, tmp_path: Path, injection: Injection
) -> None:
    adapted = adapted_checkpoint(checkpoint, tmp_path / "adapted", injection)
    folder = _export(adapted, tmp_path / "peft")
    theirs = PixArtTransformer2DModel.from_pretrained(diffusers / "transformer")
    plain = _theirs(theirs)
    theirs = PeftModel.from_pretrained(theirs.float(), folder)
    expected = _ours(load_checkpoint(adapted, dtype=torch.float64)[0])
    torch.testing.assert_close(_theirs(theirs), expected, rtol=1e-6, atol=1e-6)  # its positions are in float32
    assert float((expected - plain).abs().max()) > 0.05
    network = load_checkpoint(checkpoint)[0]
    back, adapter = read_foreign(folder, network.config), read_any(str(adapted), network.config)
    for name, layer in adapter.layers.items():
        found = dict(back.layers[name].tensors())
        assert all(torch.equal(found[part], tensor) for part, tensor in layer.tensors())
    assert back.trigger_word == "sks" and {back.scaling(name) for name in back.layers} == {
        adapter.scaling(name) for name in adapter.layers
    }
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(checkpoint)


def test_diffusers_pipeline_draws_our_images_with_the_adapter(checkpoint: Path, diffusers: Path, tmp_path: Path) -> None:
    adapted = adapted_checkpoint(checkpoint, tmp_path / "adapted", KINDS[0])
    pipeline = PixArtAlphaPipeline.from_pretrained(diffusers)
    pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, _export(adapted, tmp_path / "peft"))
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    settings = {"use_resolution_binning": False, "clean_caption": False, "output_type": "latent"}
    theirs = pipeline("a red owl", num_inference_steps=4, latents=noise, **settings).images
    request = GenerationRequest(prompts=("a red owl",), noise=noise, sampling=SamplingConfig(num_inference_steps=4))
    runtime = RuntimeConfig(dtype="float32")
    ours = open_pipeline(adapted, runtime=runtime)(request, output="latents")[0].latents
    torch.testing.assert_close(ours, theirs[0], rtol=1e-3, atol=1e-3)
    added = open_pipeline(checkpoint, runtime=runtime, lora=[LoraChoice(str(tmp_path / "peft"))])(request, output="latents")
    torch.testing.assert_close(added[0].latents, ours, rtol=1e-5, atol=1e-5)
    plain = open_pipeline(checkpoint, runtime=runtime)(request, output="latents")[0].latents
    assert float((plain - ours).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("targets", "changes"),
    [
        (["to_q", "to_v"], {}),
        (["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"], {"use_rslora": True}),
        (["to_k"], {"rank_pattern": {"attn2.to_k": 5}, "alpha_pattern": {"transformer_blocks.1.attn2.to_k": 11}}),
        (["to_q", "to_k", "to_v", "proj_out"], {"use_dora": True}),
        (["adaln_single.linear", "linear_1"], {"lora_dropout": 0.1}),
    ],
    ids=["queries and values", "rsLoRA", "patterns", "DoRA", "embedders"],
)
def test_an_adapter_that_peft_made_is_added_as_peft_does(
    diffusers: Path, tmp_path: Path, targets: Sequence[str], changes: dict[str, object]
) -> None:
    """Each of its layers has its own `down`, which one fused layer of ours holds together."""
    checkpoint = diffusers.parent / "checkpoint"
    settings = LoraConfig(r=3, lora_alpha=7, target_modules=list(targets), init_lora_weights=False, **changes)
    torch.manual_seed(0)
    theirs = get_peft_model(PixArtTransformer2DModel.from_pretrained(diffusers / "transformer"), settings).eval()
    theirs.save_pretrained(tmp_path / "peft")
    added = open_adapters([LoraChoice(str(tmp_path / "peft"))], checkpoint)
    ours = load_checkpoint(checkpoint, dtype=torch.float64, adapters=added)[0]
    torch.testing.assert_close(_ours(ours), _theirs(theirs), rtol=1e-5, atol=1e-5)
    if not changes:  # as diffusers saves it: without settings alpha is the rank
        tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
        named = {name.replace("base_model.model.", "transformer."): tensor for name, tensor in tensors.items()}
        file = tmp_path / "file" / "pytorch_lora_weights.safetensors"
        file.parent.mkdir()
        save_file(named, file)
        plain = read_any(str(file.parent), ours.config)
        assert {plain.scaling(name) for name in plain.layers} == {1.0}
        header = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 7, "transformer.r": 3})}
        save_file(named, file, metadata=header)
        scalings = read_any(str(file), ours.config)
        assert [scalings.scaling(name) for name in scalings.layers] == pytest.approx([7 / 3] * len(scalings.layers))


def test_what_is_not_an_adapter_of_this_network_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    network = load_checkpoint(checkpoint)[0]
    write_peft_folder(tmp_path / "peft", trained_adapter(network, KINDS[0]), network.config)
    good = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    name = "base_model.model.transformer_blocks.0.attn1.to_q"
    for number, (change, words) in enumerate(
        [
            ({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, "kohya's names .* which nobody has documented for PixArt"),
            ({"text_encoder.x.lora_A.weight": torch.zeros(2, 2)}, "adapts the text encoder too"),
            ({f"{name}.lora_E": torch.zeros(2)}, f"holds {name}.lora_E: expected lora_A.weight"),
            ({"base_model.model.other.lora_A.weight": torch.zeros(2, 2)}, "lacks other.lora_B.weight"),
            ({f"{name}.lora_magnitude_vector": torch.zeros(48)}, "a DoRA of a part of one fused layer"),
        ]
    ):
        file = tmp_path / f"{number}.safetensors"
        save_file(good | change, file)
        with pytest.raises(UserError, match=words):
            read_any(str(file), network.config)
    config = tmp_path / "peft" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bias": "all"}))
    with pytest.raises(UserError, match="bias: expected none, found all: another kind of adapter"):
        read_any(str(tmp_path / "peft"), network.config)
    for path, words in [
        (str(tmp_path / "nowhere"), "expected an adapter .*, found none: expected a checkpoint"),
        (str(checkpoint), "is a whole network, not a LoRA: give it as the checkpoint"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            read_any(path, network.config)
        assert error.value.setting == "lora"
    with pytest.raises(UserError, match="diffusers' PixArtTransformer2DModel has no text adapter"):
        write_peft_folder(tmp_path / "out", trained_adapter(network, KINDS[0]), replace(network.config, text_adapter_blocks=1))


def test_a_checkpoint_of_a_lora_opens_with_its_base_and_no_other(checkpoint: Path, tmp_path: Path) -> None:
    adapted = adapted_checkpoint(checkpoint, tmp_path / "adapted", KINDS[0])
    assert sum(file.stat().st_size for file in adapted.rglob("*")) < 120_000
    network, pipeline = load_checkpoint(adapted)
    assert pipeline == read_pipeline_config(checkpoint) and checkpoint_fingerprint(adapted) != checkpoint_fingerprint(
        checkpoint
    )
    other = save_tiny_checkpoint(tmp_path / "other", objective="rectified_flow", seed=9)
    with pytest.raises(
        UserError, match=r"is a LoRA of .* with the fingerprint \w{16}, and .* has \w{16}: give the network that"
    ):
        open_adapters([LoraChoice(str(adapted))], other)
    moved = adapted_checkpoint(other, tmp_path / "moved", KINDS[0])
    other.rename(tmp_path / "away")
    with pytest.raises(
        UserError, match="is a LoRA of .*, which does not exist .*: restore it, or name the network as the checkpoint"
    ):
        load_checkpoint(moved)
    assert open_adapters([LoraChoice(str(moved), 0.5)], tmp_path / "away")[0].scale == 0.5
    second = adapted_checkpoint(adapted, tmp_path / "second", KINDS[2], seed=4)  # a LoRA of a LoRA
    assert find_checkpoint(second) == second
    assert float((_ours(load_checkpoint(second)[0]) - _ours(network)).abs().max()) > 0.01


def test_the_commands_add_adapters_and_images_say_which(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted = adapted_checkpoint(checkpoint, tmp_path / "adapted", KINDS[0])
    basic = [f"--checkpoint={checkpoint}", "--prompt=a red owl", "--num_inference_steps=2", "--dtype=float32"]

    def drawn(name: str, *arguments: str, expected: int = 0) -> bytes:
        argv = [*basic, f"--out={tmp_path / name}.png", *arguments]
        assert run_command(GenerateConfig, generate, prog="python -m model.generate", example="", argv=argv) == expected
        return (tmp_path / f"{name}.png").read_bytes() if not expected else b""

    plain, half = drawn("plain"), drawn("half", "--lora", f"{adapted}:0.5")
    assert plain != half and f" + 0.5 x {adapted} on cpu" in capsys.readouterr().out
    with Image.open(tmp_path / "half.png") as image:
        image.load()
        (record,) = json.loads(image.text["settings"])["lora"]  # type: ignore[attr-defined]
    assert record["scale"] == 0.5 and record["trigger_word"] == "sks" and len(record["fingerprint"]) == 16
    assert drawn("half", "--lora", f"{adapted}:0.5") == half and "0 images drawn" in capsys.readouterr().out
    drawn("no", "--lora", f"{adapted}:much", expected=2)
    assert "much is not a number" in capsys.readouterr().err
    toy = ["--benchmark=tests.trainer.toy_benchmark", f"--checkpoint={checkpoint}", f"--out={tmp_path / 'evaluation'}"]
    toy += ["--sampling.num_inference_steps=1", "--runtime.dtype=float32"]
    for arguments, code in [(["--lora", str(adapted)], 0), (["--lora", f"{adapted}:0.5"], 2), ([], 2)]:
        assert run_command(EvaluateConfig, evaluate, prog="", example="", argv=[*toy, *arguments]) == code
    assert capsys.readouterr().err.count("holds another evaluation (lora differ)") == 2


def test_merged_weights_are_a_network_like_any(checkpoint: Path, tmp_path: Path) -> None:
    adapted = [adapted_checkpoint(checkpoint, tmp_path / str(seed), KINDS[seed], seed=seed) for seed in (0, 2)]
    out = tmp_path / "merged"
    lora = (f"{adapted[0]}:0.5", str(adapted[1]))
    values = ConvertConfig(checkpoint=str(checkpoint), out=str(out), source="native", target="native", lora=lora)
    assert main(values) == 0
    choices = [LoraChoice(str(adapted[0]), 0.5), LoraChoice(str(adapted[1]))]
    expected = load_checkpoint(checkpoint, adapters=open_adapters(choices, checkpoint))[0].state_dict()
    merged = load_checkpoint(out)[0].state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
    assert main(ConvertConfig(checkpoint=str(adapted[0]), out=str(tmp_path / "one"), source="native", target="native")) == 0
    assert (tmp_path / "one" / "transformer" / "diffusion_pytorch_model.safetensors").is_file()
    with pytest.raises(ValueError, match="lora: expected source native"):
        ConvertConfig(checkpoint="x", out="y", source="official", target="native", lora=("z",))
    with pytest.raises(UserError, match="peft: expected a LoRA's checkpoint and source native"):
        main(ConvertConfig(checkpoint="mini", out=str(tmp_path / "no"), source="preset", target="peft"))
