"""Autoencoders and text encoders besides PixArt's, the whole way: features, training, images; the scale of latents."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foundry.errors import UserError
from foundry.hardware import Dtype
from model.dit_config import UnstatedConfig
from model.encoders.text_encoder import TextEncoderConfig
from model.encoders.vae import LatentScale, VAEConfig, load_vae
from model.formats.checkpoint import find_checkpoint, read_pipeline_config, read_transformer_config
from model.generation.pipeline import open_pipeline
from model.generation.pipeline_parts import RuntimeConfig
from model.generation.request import GenerationRequest
from model.sampling import SamplingConfig
from tests.model.test_convert import _convert as convert
from tests.model.tiny_language_models import WIDTH, save_language_model
from tests.model.tiny_parts import save_tiny_dc, save_tiny_vae
from tests.trainer.features.test_preparation import all_samples, store
from tests.trainer.tiny_sources import make_features, tiny_precompute, write_dataset
from tests.trainer.tiny_training import newest_weights, tiny_config
from trainer.config.ladder import Rung
from trainer.config.network import ObjectiveConfig
from trainer.config.running import WatchConfig
from trainer.config.train import TrainConfig
from trainer.features.config import PrecomputeConfig
from trainer.features.info import FEATURES_FILE
from trainer.fit import main as train
from trainer.monitoring.sample_grids import open_text_encoder
from trainer.monitoring.validation import validation_loss
from trainer.precompute import main as precompute

FLOAT32: Dtype = "float32"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("source") / "dataset")


def save_vae(kind: str, folder: Path) -> VAEConfig:
    """AutoencoderDC, or an AutoencoderKL of 16 channels with a shift, as FLUX's."""
    if kind == "dc":
        save_tiny_dc(folder)
    else:
        save_tiny_vae(folder, channels=16, scaling_factor=0.3611, shift_factor=0.1159)
    return VAEConfig(name=str(folder), dtype=FLOAT32, sliced=False)


def training(root: Path, *, resolution: int, **changes: Any) -> TrainConfig:
    """A few steps of flow with samples, on features at this resolution."""
    watch = WatchConfig(every_steps=1, validate_every_images=8, validation_images=4, sample_every_images=16, sample_steps=2)
    return tiny_config(
        root,
        ladder=(Rung(resolution=resolution, images=16, batch_size=4),),
        objective=ObjectiveConfig(name="rectified_flow"),
        watch=watch,
        **changes,
    )


def draw(config: TrainConfig) -> torch.Tensor:
    """An image of the newest checkpoint, (H, W, 3)."""
    pipeline = open_pipeline(config.run_folder, runtime=RuntimeConfig(device="cpu", dtype=FLOAT32))
    request = GenerationRequest(
        prompts=("a large owl",), resolution_binning=False, sampling=SamplingConfig(sampler="euler", num_inference_steps=2)
    )
    (drawn,) = pipeline(request, output="numpy")
    return torch.as_tensor(drawn.image)


@pytest.mark.parametrize(("kind", "scale"), [("dc", "auto"), ("dc", "measured"), ("kl", "auto"), ("kl", "measured")])
def test_an_autoencoder_goes_the_whole_way(dataset: Path, tmp_path: Path, kind: str, scale: Any) -> None:
    resolution, factor = (64, 32) if kind == "dc" else (32, 2)
    vae = save_vae(kind, tmp_path / "vae-of-today")
    features = tiny_precompute(tmp_path, dataset, resolution=[resolution], vae=vae, latent_scale=scale)
    make_features(features)
    if scale == "measured":
        with pytest.raises(UserError, match="is measured once all units are made: let python -m trainer.precompute"):
            train(training(tmp_path, resolution=resolution))
    assert precompute(features) == 0  # nothing is left to encode: the scale is measured
    found = store(features, resolution)
    measured = found.info.measured_scale
    assert (measured is not None) == (scale == "measured") and found.info.downsampling == factor
    assert all(side % (32 if kind == "dc" else 4) == 0 for size in found.info.buckets for side in size)
    config = training(tmp_path, resolution=resolution)
    assert train(config) == 0
    pipeline = read_pipeline_config(find_checkpoint(config.run_folder))
    assert pipeline.latent_scale == measured
    assert draw(config).shape == (resolution, resolution, 3)
    network = json.loads((find_checkpoint(config.run_folder) / "transformer" / "config.json").read_text())
    assert (network["patch_size"], network["in_channels"]) == ((1, 32) if kind == "dc" else (2, 16))
    folder = f"{features.out}/alignment/{resolution}"
    refused = {"dc": "the VAE is an AutoencoderDC, and", "kl": "shifts its latents or scales them by channel, and"}[kind]
    with pytest.raises(UserError, match="are scaled by channel, and" if measured else refused):
        convert("native", "diffusers", find_checkpoint(config.run_folder), tmp_path / "out", unstated=UnstatedConfig())
    loss = validation_loss(config.run_folder, folder, num_images=4, runtime=RuntimeConfig(device="cpu", dtype=FLOAT32))
    assert 0 < loss.loss < 10


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("t5gemma", {}),
        ("gemma2", {"template": "describe it: {caption}"}),
        ("qwen3", {"chat": True, "hidden_state": -2, "cleaning": "none"}),
    ],
)
def test_a_text_encoder_goes_the_whole_way(dataset: Path, tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    encoder = TextEncoderConfig(
        name=str(save_language_model(tmp_path / kind, kind)), dtype=FLOAT32, max_caption_tokens=30, **settings
    )
    features = tiny_precompute(tmp_path, dataset, text_encoder=encoder)
    make_features(features)
    info = store(features).info
    config = training(tmp_path, resolution=32)
    assert train(config) == 0
    checkpoint = find_checkpoint(config.run_folder)
    pipeline = read_pipeline_config(checkpoint)
    assert pipeline.caption_template == info.caption_template != ("{caption}" if settings else "")
    assert pipeline.caption_hidden_state == info.caption_hidden_state == encoder.hidden_state
    network = read_transformer_config(checkpoint)
    assert (network.caption_width, network.max_caption_tokens) == (WIDTH, 30)
    assert draw(config).shape == (32, 32, 3)
    # A prompt is encoded as the same caption was for training, to the bit of the stored numbers.
    read = store(features).read([all_samples(store(features))["picture_003"]])
    assert read.captions is not None and read.texts is not None
    ours = open_pipeline(checkpoint, runtime=RuntimeConfig(device="cpu", dtype=FLOAT32)).encode(read.texts)
    torch.testing.assert_close(ours.tokens.bfloat16(), read.captions.tokens, rtol=0.02, atol=0.02)
    with pytest.raises(UserError, match="in a template or another layer, and diffusers'" if settings else f"is a {kind}, and"):
        convert("native", "diffusers", checkpoint, tmp_path / "out", unstated=UnstatedConfig())
    # Features with another template are those of another network.
    other = replace(features, out=str(tmp_path / "other"), text_encoder=replace(encoder, chat=False, template="{caption} so"))
    make_features(other)
    refused = replace(
        training(tmp_path, resolution=32, init_from=str(checkpoint)), features=other.out, run_dir=str(tmp_path / "n")
    )
    with pytest.raises(UserError, match=r"learned from captions with text_encoder\.template"):
        train(refused)
    with pytest.raises(UserError, match=r"learned from captions with text_encoder\.template"):
        validation_loss(
            str(checkpoint), f"{other.out}/alignment/32", num_images=4, runtime=RuntimeConfig(device="cpu", dtype=FLOAT32)
        )


def test_captions_are_encoded_online_in_the_same_template(dataset: Path, tmp_path: Path) -> None:
    encoder = TextEncoderConfig(
        name=str(save_language_model(tmp_path / "qwen3", "qwen3")),
        dtype=FLOAT32,
        max_caption_tokens=30,
        template="it: {caption}",
    )
    features = tiny_precompute(tmp_path, dataset, text_encoder=encoder, captions="none")
    make_features(features)
    config = training(tmp_path, resolution=32, online=True)
    assert train(config) == 0
    assert read_pipeline_config(find_checkpoint(config.run_folder)).caption_template == "it: {caption}"
    opened = open_text_encoder(config, store(features).info)
    assert (opened.config.template, opened.config.max_caption_tokens) == ("it: {caption}", 30)


def test_stores_made_before_templates_are_completed(dataset: Path, tmp_path: Path) -> None:
    """Their features.json says nothing of the settings that came later, in its facts and in its settings."""
    config = tiny_precompute(tmp_path, dataset)
    make_features(config)
    path = Path(config.out) / "alignment" / "32" / FEATURES_FILE
    record = json.loads(path.read_text())
    for name in (
        "latent_variance",
        "latent_scale",
        "latent_scaling",
        "latent_shift",
        "caption_template",
        "caption_hidden_state",
    ):
        del record[name]
    for name in ("template", "chat", "hidden_state"):
        del record["settings"]["text_encoder"][name]
    path.write_text(json.dumps(record))
    assert precompute(config) == 0
    with pytest.raises(UserError, match="made with another text_encoder"):
        precompute(replace(config, text_encoder=replace(config.text_encoder, template="it: {caption}")))


def test_a_measured_scale_gives_channels_unit_variance_and_stays(dataset: Path, tmp_path: Path) -> None:
    config = tiny_precompute(tmp_path, dataset, vae=save_vae("kl", tmp_path / "kl"), latent_scale="measured")
    make_features(config)
    assert precompute(config) == 0
    written = (Path(config.out) / "alignment" / "32" / FEATURES_FILE).read_bytes()
    features = store(config)
    drawn: list[torch.Tensor] = []
    vae = load_vae(config.vae)
    for request in all_samples(features).values():
        batch = features.read([request])
        assert batch.log_variance is not None
        if features._planned[request.unit].split == "train":
            noise = torch.randn(batch.mean.shape, generator=torch.Generator().manual_seed(len(drawn)))
            samples = batch.mean.float() + (batch.log_variance.float() / 2).exp() * noise
            drawn.append(features.scale.to_latents(samples).transpose(0, 1).flatten(1))
            # The decoder gets back what the encoder gave.
            torch.testing.assert_close(
                features.scale.from_latents(features.scale.to_latents(samples)), samples, rtol=1e-4, atol=1e-4
            )
    values = torch.cat(drawn, dim=1)  # (C, all)
    assert values.shape[0] == vae.latent_channels == 16
    assert values.mean(dim=1).abs().max() < 0.1 and (values.std(dim=1) - 1).abs().max() < 0.1
    # The same command, and one that leaves the choice open, change nothing; another choice is refused.
    assert precompute(config) == precompute(replace(config, latent_scale="auto")) == 0
    assert (Path(config.out) / "alignment" / "32" / FEATURES_FILE).read_bytes() == written
    with pytest.raises(UserError, match="made with another latent_scale"):
        precompute(replace(config, latent_scale="vae"))


def test_features_made_before_can_be_measured(dataset: Path, tmp_path: Path) -> None:
    config = tiny_precompute(tmp_path, dataset)
    make_features(config)
    before = store(config).info
    assert before.measured_scale is None and before.scale == LatentScale(0.7)
    assert precompute(replace(config, latent_scale="measured")) == 0
    after = store(config).info
    assert after.measured_scale is not None and after.fingerprint == before.fingerprint
    # A network that learned from the VAE's own scale keeps it; one that starts from scratch takes the measured one.
    assert "latent_scaling" not in json.loads((_trained(tmp_path, config, "own", before) / "pipeline.json").read_text())
    assert (
        read_pipeline_config(_trained(tmp_path, config, "continued", after, init_from=str(tmp_path / "own"))).latent_scale
        is None
    )
    fresh = read_pipeline_config(_trained(tmp_path, config, "fresh", after))
    assert fresh.latent_scale == after.measured_scale


def _trained(root: Path, config: PrecomputeConfig, name: str, info: Any, *, init_from: str = "scratch") -> Path:
    """The checkpoint of a short training under this name, on features that say `info`."""
    (Path(config.out) / "alignment" / "32" / FEATURES_FILE).write_bytes(info.to_json())
    start = init_from if init_from == "scratch" else f"{init_from}/alignment"
    training_config = training(root, resolution=32, run_dir=str(root / name), init_from=start)
    assert train(training_config) == 0
    return find_checkpoint(training_config.run_folder)


def test_a_ladder_and_its_resume_keep_the_scale_of_the_first_resolution(dataset: Path, tmp_path: Path) -> None:
    features = tiny_precompute(tmp_path, dataset, resolution=[32, 64], latent_scale="measured")
    make_features(features)
    assert precompute(features) == 0
    scales = [store(features, resolution).info.measured_scale for resolution in (32, 64)]
    assert scales[0] is not None and scales[1] is not None and scales[0] != scales[1]
    rungs = (Rung(resolution=32, images=8, batch_size=4), Rung(resolution=64, images=8, batch_size=4))
    unbroken = replace(training(tmp_path, resolution=32, run_dir=str(tmp_path / "unbroken")), ladder=rungs)
    assert train(unbroken) == 0
    assert read_pipeline_config(find_checkpoint(unbroken.run_folder)).latent_scale == scales[0]
    stopped = replace(unbroken, run_dir=str(tmp_path / "stopped"), ladder=rungs[:1])
    assert train(stopped) == 0
    resumed = replace(stopped, ladder=rungs)
    assert train(resumed) == 0
    assert read_pipeline_config(find_checkpoint(resumed.run_folder)).latent_scale == scales[0]
    for name, weights in newest_weights(unbroken).items():
        assert torch.equal(weights, newest_weights(resumed)[name]), name


def test_a_constant_channel_is_one_line_and_costs_no_encoding(dataset: Path, tmp_path: Path) -> None:
    config = tiny_precompute(tmp_path, dataset, latent_scale="measured")
    from safetensors.torch import load_file, save_file

    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    for name in ("quant_conv.weight", "quant_conv.bias"):
        tensors[name][1] = 0
        tensors[name][5] = 0 if name.endswith("weight") else -30.0
    save_file(tensors, weights, metadata={"format": "pt"})
    make_features(config)
    with pytest.raises(UserError, match="channel 1 of the latents is constant and cannot be scaled to unit variance: give vae"):
        precompute(config)
    assert precompute(replace(config, latent_scale="vae")) == 0
    assert train(training(tmp_path, resolution=32)) == 0
