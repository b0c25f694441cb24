"""Checkpoints of others in and out: nothing is lost, everything unknown is refused by name, diffusers opens what we write."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from foundry.errors import UserError
from model.convert import ConvertConfig, main
from model.dit import PRESETS, Captions, DiT, KVCompression, position_table
from model.dit_config import FewSteps, UnstatedConfig
from model.formats.checkpoint import PipelineConfig, load_checkpoint, save_checkpoint
from model.generation.pipeline import open_pipeline
from model.generation.pipeline_parts import RuntimeConfig
from model.generation.request import GenerationRequest
from model.sampling import SamplingConfig
from tests.model.tiny_networks import CLASS, TEXT, TIMESTEPS, latents, padded_captions, random_network
from tests.model.tiny_parts import save_tiny_checkpoint

HEADS = UnstatedConfig(num_heads=4)


def _official(network: DiT) -> dict[str, Tensor]:
    config = network.config
    side = config.base_grid
    positions = position_table((side, side), width=config.width, base=side, scale=config.position_scale)
    return {"pos_embed": positions[None]} | network.state_dict()


def _save(path: Path, network: DiT) -> Path:
    state = _official(network)
    torch.save({"state_dict": state, "epoch": 3} if network.config.conditioning == "text" else state, path)
    return path


def _convert(source: str, target: str, checkpoint: Path, out: Path, **settings: Any) -> Path:
    values: dict[str, Any] = {"unstated": HEADS, "copy_parts": False} | settings
    assert main(ConvertConfig(checkpoint=str(checkpoint), out=str(out), source=source, target=target, **values)) == 0  # type: ignore[arg-type]
    return out


def _same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_conditioning": True, "position_scale": 2.0},
        {"qk_norm": True, "kv_compression": KVCompression(layers=(2,)), "position_scale": 0.5},
        {"mlp_ratio": 3.0, "learned_variance": False},
    ],
    ids=["alpha", "multi-scale", "sigma", "other sizes"],
)
def test_official_to_native_and_back_loses_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    network = random_network(TEXT, **changes)
    native = _convert("official", "native", _save(tmp_path / "in.pth", network), tmp_path / "native")
    loaded, pipeline = load_checkpoint(native)
    assert loaded.config == network.config and pipeline.resolution == 128
    back = _convert("native", "official", native, tmp_path / "out.pth")
    assert _same(torch.load(back, weights_only=True)["state_dict"], _official(network))
    tensors = _convert("native", "official", native, tmp_path / "out.safetensors")
    assert _same(load_file(tensors), _official(network))
    assert _same(
        load_checkpoint(_convert("official", "native", tensors, tmp_path / "again"))[0].state_dict(), network.state_dict()
    )


@pytest.mark.parametrize("micro", [False, True])
def test_diffusers_opens_what_we_write_and_we_what_it_writes(tmp_path: Path, micro: bool) -> None:
    network = random_network(TEXT, micro_conditioning=micro, position_scale=2.0)
    folder = _convert("official", "diffusers", _save(tmp_path / "in.pth", network), tmp_path / "diffusers")
    theirs = PixArtTransformer2DModel.from_pretrained(folder / "transformer")
    assert json.loads((folder / "transformer" / "config.json").read_text())["use_additional_conditions"] is micro
    if not micro:
        embeddings, mask = padded_captions()
        inputs, embeddings = latents().double(), embeddings.double()
        masked = {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask.long()}
        expected = copy.deepcopy(theirs).double()(inputs, timestep=TIMESTEPS, **masked).sample
        ours = copy.deepcopy(network).double()(inputs, TIMESTEPS, captions=Captions.from_padded(embeddings, mask))
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)  # its positions are in float32
    theirs.save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="does not tell alpha from Sigma: give its number of caption tokens"):
        _convert("diffusers", "native", tmp_path / "saved", tmp_path / "native")
    ten = UnstatedConfig(max_caption_tokens=10)
    native = _convert("diffusers", "native", tmp_path / "saved", tmp_path / "native", unstated=ten)
    state = load_checkpoint(native)[0].state_dict()
    assert not state.pop("y_embedder.y_embedding").any()  # diffusers has none
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in state.items())
    again = _convert("native", "diffusers", native, tmp_path / "again")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert _same(load_file(again / weights), load_file(folder / weights))


@pytest.mark.parametrize("objective", ["diffusion", "rectified_flow"])
def test_a_whole_pipeline_opens_in_diffusers_as_it_is(tmp_path: Path, objective: str) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path, objective=objective)
    folder = _convert("native", "diffusers", checkpoint, tmp_path / "out", copy_parts=True)
    pipeline = PixArtAlphaPipeline.from_pretrained(folder)
    assert isinstance(pipeline.scheduler, DPMSolverMultistepScheduler)
    assert pipeline.scheduler.config["use_flow_sigmas"] is (objective == "rectified_flow")
    image = pipeline("a red owl", num_inference_steps=2, use_resolution_binning=False, clean_caption=False, output_type="np")
    assert image.images.shape == (1, 32, 32, 3)
    back = load_checkpoint(_convert("diffusers", "native", folder, tmp_path / "back"))[1]
    assert back.objective == objective and back.resolution == 32 and back.vae.name == str(folder.resolve())


def test_an_untrained_mini_goes_all_ways_and_draws_what_diffusers_draws(tmp_path: Path) -> None:
    """The walk-through of docs/generating.md, with the shipped text encoder and VAE."""
    flow: dict[str, Any] = {"objective": "rectified_flow"}
    native = _convert("preset", "native", Path("mini"), tmp_path / "untrained", **flow)
    official = _convert("native", "official", native, tmp_path / "mine.pth")
    back = _convert("official", "native", official, tmp_path / "back", text_encoder="mini", vae="mini", **flow)
    assert _same(load_checkpoint(back)[0].state_dict(), load_checkpoint(native)[0].state_dict())
    folder = _convert("native", "diffusers", back, tmp_path / "mine-diffusers", copy_parts=True)
    sampling = SamplingConfig(num_inference_steps=2)
    exact = RuntimeConfig(dtype="float32")
    ours = open_pipeline(back, runtime=exact)(
        GenerationRequest(prompts=("a large owl on the left",), sampling=sampling), output="numpy"
    )
    pipeline = PixArtAlphaPipeline.from_pretrained(folder)
    options = {"use_resolution_binning": False, "clean_caption": False, "output_type": "np", "num_inference_steps": 2}
    theirs = pipeline("a large owl on the left", generator=torch.Generator().manual_seed(0), **options).images
    assert theirs.shape == (1, 64, 64, 3) and theirs.std() > 0.1
    assert np.abs(np.asarray(ours[0].image) - theirs[0]).max() <= 1 / 255


def test_presets_are_drawn_for_both_objectives_and_others_are_named(tmp_path: Path) -> None:
    for objective, expected in {
        "diffusion": PRESETS["mini"],
        "rectified_flow": replace(PRESETS["mini"], learned_variance=False),
    }.items():
        native = _convert("preset", "native", Path("mini"), tmp_path / objective, objective=objective)
        network, pipeline = load_checkpoint(native)
        assert network.config == expected and pipeline.objective == objective
        assert network.t_block[1].weight.any()  # type: ignore[operator]
    with pytest.raises(UserError, match="expected a preset, one of mini, S/2, .*, found mimi"):
        _convert("preset", "native", Path("mimi"), tmp_path / "none")


def test_a_dit_goes_both_ways_and_copies_that_differ_are_refused(tmp_path: Path) -> None:
    network = random_network(CLASS)
    folder = _convert("dit", "diffusers", _save(tmp_path / "in.pt", network), tmp_path / "diffusers")
    theirs = DiTTransformer2DModel.from_pretrained(folder / "transformer")
    back = _convert("diffusers", "official", folder, tmp_path / "out.pt")
    assert _same(torch.load(back, weights_only=True), _official(network))
    block: Any = theirs.transformer_blocks[2]
    with torch.no_grad():
        block.norm1.emb.class_embedder.embedding_table.weight[1, 1] += 1
    theirs.save_pretrained(tmp_path / "apart")
    with pytest.raises(
        UserError, match=r"transformer_blocks\.2\.norm1\.emb\.class_embedder.* differs from transformer_blocks\.0"
    ):
        _convert("diffusers", "native", tmp_path / "apart", tmp_path / "native")


def test_the_dtype_and_the_licence_may_be_given(tmp_path: Path) -> None:
    network = random_network(TEXT)
    native = save_checkpoint(tmp_path / "in", network, PipelineConfig(objective="diffusion", resolution=128, licence="theirs"))
    loaded, pipeline = load_checkpoint(_convert("native", "native", native, tmp_path / "same"))
    assert pipeline.licence == "theirs" and _same(loaded.state_dict(), network.state_dict())
    out = _convert("native", "native", native, tmp_path / "out", dtype="bfloat16", licence="CC BY-SA 4.0")
    loaded, pipeline = load_checkpoint(out)
    assert pipeline.licence == "CC BY-SA 4.0"
    assert _same(loaded.state_dict(), {name: tensor.bfloat16() for name, tensor in network.state_dict().items()})


def test_ema_or_raw(tmp_path: Path) -> None:
    raw, ema = random_network(seed=1), random_network(seed=2)
    path = tmp_path / "training.pth"
    torch.save({"state_dict": _official(raw), "state_dict_ema": _official(ema), "optimizer": {"state": {}}}, path)
    for weights, expected in {"auto": ema, "ema": ema, "raw": raw}.items():
        native = _convert("official", "native", path, tmp_path / weights, weights=weights)
        assert _same(load_checkpoint(native)[0].state_dict(), expected.state_dict())
    with pytest.raises(UserError, match="holds no ema weights, found raw"):
        _convert("official", "native", _save(tmp_path / "raw.pth", raw), tmp_path / "none", weights="ema")


def test_the_report_names_every_key(tmp_path: Path) -> None:
    state = _official(random_network())
    del state["y_embedder.y_embedding"]
    save_file(state, tmp_path / "in.safetensors")
    _convert("official", "native", tmp_path / "in.safetensors", tmp_path / "native", report=str(tmp_path / "report.json"))
    report = {key["name"]: key["status"] for key in json.loads((tmp_path / "report.json").read_text())}
    assert report == dict.fromkeys(state, "loaded") | {"y_embedder.y_embedding": "missing"}
    folder = _convert("native", "diffusers", tmp_path / "native", tmp_path / "diffusers")
    _convert("diffusers", "native", folder, tmp_path / "back", report=str(tmp_path / "report.json"))
    report = {key["name"]: key["status"] for key in json.loads((tmp_path / "report.json").read_text())}
    assert report.keys() == load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors").keys()
    assert report["transformer_blocks.0.attn1.to_q.weight"] == "reshaped"


def _without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: _without(state, "blocks.1.mlp.fc2.bias"), r"1 missing: blocks\.1\.mlp\.fc2\.bias"),
        (lambda state: state | {"blocks.1.lora.weight": torch.zeros(2)}, r"1 unexpected: blocks\.1\.lora\.weight"),
        (lambda state: state | {"t_block.1.bias": torch.zeros(5)}, r"t_block\.1\.bias: expected \[288\], found \[5\]"),
        (lambda state: state | {"pos_embed": torch.zeros(1, 64, 48)}, "pos_embed .*expected sine-cosine positions"),
        (lambda state: _without(state, "pos_embed"), "no pos_embed.*: give the sample size"),
        (lambda _state: {"conv.weight": torch.zeros(2)}, "found none under y_embedder; the first name is conv.weight"),
        (lambda _state: {"blocks.0.attn.qkv.lora_A.weight": torch.zeros(2)}, "holds a LoRA adapter, not a whole network"),
        (lambda _state: {"lora_unet_blocks_0.lora_up.weight": torch.zeros(2)}, "holds a LoRA adapter"),
        (
            lambda state: state | {"t_block.1.bias": torch.full((288,), torch.nan)},
            r"t_block\.1\.bias holds NaN.*is damaged",
        ),
        (lambda _state: {}, "expected tensors by name, found nothing"),
        (lambda _state: {"state_dict": {"x": 3}}, "expected tensors by name, found 'x', which is none"),
        (lambda _state: {"model": "DiT-XL/2"}, "expected tensors by name, found 'model', which is none"),
        (lambda _state: {3: torch.zeros(2)}, "expected tensors by name, found 3, which is none"),
        (lambda state: state | {"blocks.last.weight": torch.zeros(2)}, r"1 unexpected: blocks\.last\.weight"),
        (lambda state: state | {"pos_embed": torch.zeros(64, 48)}, "pos_embed .*expected sine-cosine positions"),
        (lambda state: state | {"y_embedder.y_embedding": torch.zeros(())}, "y_embedding: expected 2 dimensions"),
    ],
)
def test_what_is_missing_or_foreign_is_named(tmp_path: Path, change: Any, message: str) -> None:
    torch.save(change(_official(random_network())), tmp_path / "in.pth")
    with pytest.raises(UserError, match=message):
        _convert("official", "native", tmp_path / "in.pth", tmp_path / "native")
    assert not (tmp_path / "native").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.diffusion_model."])
def test_the_prefix_of_a_wrapped_network_is_taken_off(tmp_path: Path, prefix: str) -> None:
    network = random_network()
    torch.save({prefix + name: tensor for name, tensor in _official(network).items()}, tmp_path / "in.pth")
    native = _convert("official", "native", tmp_path / "in.pth", tmp_path / "native")
    assert _same(load_checkpoint(native)[0].state_dict(), network.state_dict())


def test_weights_that_overflow_in_the_format_asked_for_are_refused(tmp_path: Path) -> None:
    state = _official(random_network())
    state["t_block.1.bias"] = torch.full((288,), 1e6)
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(UserError, match=r"t_block\.1\.bias holds NaN or infinite values.*or float16 overflows"):
        _convert("official", "native", tmp_path / "in.pth", tmp_path / "native", dtype="float16")
    assert not (tmp_path / "native").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in{suffix}"
    state = _official(random_network())
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"5000 bytes\) is truncated or not a checkpoint"):
        _convert("official", "native", path, tmp_path / "native")


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": _official(random_network()), "args": _Harmful()}, tmp_path / "in.pth")
    with pytest.raises(UserError, match="truncated or not a checkpoint"):
        _convert("official", "native", tmp_path / "in.pth", tmp_path / "native")
    assert "executed" not in capsys.readouterr().out


def test_what_the_target_cannot_hold_is_refused(tmp_path: Path) -> None:
    sigma = _save(tmp_path / "sigma.pth", random_network(qk_norm=True))
    with pytest.raises(UserError, match="has no qk_norm"):
        _convert("official", "diffusers", sigma, tmp_path / "out")
    with pytest.raises(UserError, match="found a text-conditional network, which the source dit is not"):
        _convert("dit", "native", sigma, tmp_path / "out")
    with pytest.raises(UserError, match="heads of width 48: give it"):
        _convert("official", "native", sigma, tmp_path / "out", unstated=UnstatedConfig())
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="already exists"):
        _convert("official", "native", sigma, tmp_path / "out")


def test_another_network_in_a_folder_of_diffusers_is_named(tmp_path: Path) -> None:
    folder = _convert("official", "diffusers", _save(tmp_path / "in.pth", random_network()), tmp_path / "diffusers")
    path = folder / "transformer" / "config.json"
    values = json.loads(path.read_text())
    for key, value, message in [
        ("activation_fn", "silu", "found silu"),
        ("_class_name", "UNet2DConditionModel", "found UNet2DConditionModel"),
        ("num_experts", 3, "num_experts: .* found 3"),
        ("norm_eps", 1e-5, "norm_eps: .* found 1e-05"),
        ("num_layers", None, "config.json: expected num_layers, found none"),
        ("num_layers", "three", "config.json: DiT: depth: expected int, found 'three'"),
        ("sample_size", 15, "config.json: DiT: sample_size: expected a multiple of patch_size"),
    ]:
        path.write_text(json.dumps(values | {key: value}))
        with pytest.raises(UserError, match=message):
            _convert("diffusers", "native", folder, tmp_path / "native")


@pytest.mark.parametrize(("tokens", "published"), [(120, "PixArt-XL-2-1024-MS"), (300, "PixArt-Sigma-XL-2-1024-MS")])
def test_a_folder_of_the_transformer_alone_gets_the_parts_of_its_kind(tmp_path: Path, tokens: int, published: str) -> None:
    """As Sigma's are published: in `transformer/`, with nothing around it, and not conditioned on sizes at 1024 px."""
    network = random_network(sample_size=128, position_scale=2.0, max_caption_tokens=tokens)
    folder = _convert("official", "diffusers", _save(tmp_path / "in.pth", network), tmp_path / "diffusers")
    (folder / "model_index.json").unlink()
    path = folder / "transformer" / "config.json"
    values = json.loads(path.read_text())
    del values["use_additional_conditions"]
    path.write_text(json.dumps(values))
    unstated = UnstatedConfig(max_caption_tokens=tokens)
    native = _convert("diffusers", "native", folder, tmp_path / "native", unstated=unstated, text_encoder="mini")
    loaded, pipeline = load_checkpoint(native)
    assert loaded.config == network.config
    assert (pipeline.text_encoder.name, pipeline.vae.name) == ("mini", f"PixArt-alpha/{published}")


def test_the_objective_goes_both_ways_and_another_one_is_refused(tmp_path: Path) -> None:
    objectives: list[tuple[str, dict[str, Any]]] = [
        ("diffusion", {"beta_end": 0.012}),
        ("diffusion", {"learned_variance": False}),
        ("rectified_flow", {"shift": 3.0}),
        ("rectified_flow", {"num_train_timesteps": 500}),
    ]
    for number, (objective, settings) in enumerate(objectives):
        network = random_network(learned_variance=number == 0)
        pipeline = PipelineConfig(objective=objective, objective_settings=settings, resolution=128)
        native = save_checkpoint(tmp_path / f"{number}", network, pipeline)
        folder = _convert("native", "diffusers", native, tmp_path / f"{number}-diffusers")
        back = load_checkpoint(_convert("diffusers", "native", folder, tmp_path / f"{number}-back"))[1]
        assert (back.objective, back.objective_settings) == (objective, settings)
    path = tmp_path / "0-diffusers" / "scheduler" / "scheduler_config.json"
    written = json.loads(path.read_text())
    for change, message in [
        ({"prediction_type": "v_prediction"}, "prediction_type: expected epsilon, found v_prediction: another objective"),
        (
            {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr: expected",
        ),
        ({"_class_name": "TCDScheduler"}, "found TCDScheduler: another objective"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
            "use_dynamic_shifting: expected",
        ),
    ]:
        path.write_text(json.dumps(written | change))
        with pytest.raises(UserError, match=message):
            _convert("diffusers", "native", tmp_path / "0-diffusers", tmp_path / "none")
    path.write_text(json.dumps(written | {"_class_name": "LCMScheduler"}))  # as PixArt-LCM
    back = load_checkpoint(_convert("diffusers", "native", tmp_path / "0-diffusers", tmp_path / "lcm"))[1]
    assert back.few_steps == FewSteps(method="consistency", num_inference_steps=4, guidance_scale=4.5)


def test_the_objective_of_a_folder_without_a_scheduler_is_asked_for_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = random_network(learned_variance=False)
    folder = _convert("official", "diffusers", _save(tmp_path / "in.pth", network), tmp_path / "diffusers")
    with pytest.raises(UserError, match="of the objective diffusion, not rectified_flow: leave it out"):
        _convert("diffusers", "native", folder, tmp_path / "none", objective="rectified_flow")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    capsys.readouterr()
    assumed: list[tuple[str, dict[str, Any]]] = [("diffusion", {"learned_variance": False}), ("rectified_flow", {})]
    for objective, settings in assumed:
        native = _convert("diffusers", "native", folder, tmp_path / objective, objective=objective)
        pipeline = load_checkpoint(native)[1]
        assert (pipeline.objective, pipeline.objective_settings) == (objective, settings)
        assert f"objective: {objective}, since the folder has no scheduler/scheduler_config.json" in capsys.readouterr().out


def test_a_file_and_an_adapter_are_no_folder_of_diffusers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found a file, as the sources official and dit are"):
        _convert("diffusers", "native", _save(tmp_path / "in.pth", random_network()), tmp_path / "none")
    with pytest.raises(UserError, match=f"at {tmp_path / 'nowhere'}, found nothing"):
        _convert("diffusers", "native", tmp_path / "nowhere", tmp_path / "none")
    for number, file in enumerate(
        ["adapter_model.safetensors", "pytorch_lora_weights.safetensors", "transformer/adapter_model.bin"]
    ):
        adapter = tmp_path / str(number) / file
        adapter.parent.mkdir(parents=True)
        adapter.write_bytes(b"")
        with pytest.raises(UserError, match=f"{adapter} is a LoRA adapter, not a whole network: convert the network"):
            _convert("diffusers", "native", tmp_path / str(number), tmp_path / "none")


def test_a_folder_with_a_variant_alone_says_so(tmp_path: Path) -> None:
    folder = _convert("official", "diffusers", _save(tmp_path / "in.pth", random_network()), tmp_path / "diffusers")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(UserError, match=r"as a variant \(diffusion_pytorch_model\.fp16\.safetensors\): fetch the full"):
        _convert("diffusers", "native", folder, tmp_path / "native")
