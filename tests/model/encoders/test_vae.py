"""Images to latents and back: what diffusers gives, with the scale in one place, for any dtype and in tiles."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from safetensors.torch import load_file, save_file

from foundry.errors import NotFiniteOutput, UserError
from model.encoders.frozen_parts import stored_tensors
from model.encoders.text_encoder import TextEncoder
from model.encoders.vae import (
    VAE,
    LatentDistribution,
    LatentScale,
    VAEConfig,
    load_vae,
    read_downsampling,
    states_scale,
    to_pixels,
)
from tests.model.tiny_parts import poison_vae, save_tiny_dc, save_tiny_t5, save_tiny_vae, tiny_text_encoder, tiny_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def vae(folder: Path) -> VAE:
    return tiny_vae(folder)


def images(count: int = 2, *, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, side, side + 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_latents_and_images_are_those_of_diffusers(folder: Path, vae: VAE) -> None:
    theirs = AutoencoderKL.from_pretrained(folder)
    with torch.no_grad():
        posterior = theirs.encode(images()).latent_dist
        decoded = theirs.decode(posterior.mean).sample
    found = vae.encode(images())
    assert found.log_variance is not None
    assert found.mean.shape == (2, 4, 16, 20) == found.log_variance.shape
    torch.testing.assert_close(found.mean, posterior.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.log_variance, posterior.logvar, rtol=1e-4, atol=1e-5)
    latents = found.sample(vae.scale, generator=None)
    torch.testing.assert_close(latents, posterior.mean * 0.7, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vae.decode(latents), decoded, rtol=1e-4, atol=1e-5)


def test_samples_have_the_stated_mean_and_variance_and_follow_the_generator() -> None:
    distribution = LatentDistribution(torch.full((1, 4, 64, 64), 3.0), torch.full((1, 4, 64, 64), 2.0).log())
    scale = LatentScale(scaling_factor=0.5, shift_factor=1.0)
    drawn = distribution.sample(scale, generator=torch.Generator().manual_seed(1))
    assert abs(drawn.mean().item() - (3 - 1) * 0.5) < 0.03
    assert abs(drawn.var().item() - 2 * 0.5**2) < 0.03
    assert torch.equal(drawn, distribution.sample(scale, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(drawn, distribution.sample(scale, generator=torch.Generator().manual_seed(2)))
    rounded = LatentDistribution(distribution.mean.bfloat16(), torch.full((1, 4, 64, 64), 2.0).log().bfloat16())
    assert rounded.sample(scale, generator=torch.Generator().manual_seed(1)).dtype == torch.float32
    torch.testing.assert_close(scale.from_latents(scale.to_latents(drawn)), drawn)


@pytest.mark.parametrize(
    ("settings", "scale"), [({}, 0.18215), ({"scaling_factor": 0.13025}, 0.13025), ({"shift_factor": 0.1}, 0.18215)]
)
def test_the_scale_is_the_configs(settings: dict[str, float], scale: float) -> None:
    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, **settings)
    assert VAE(model).scale == LatentScale(scale, settings.get("shift_factor", 0.0))


def test_mean_and_deviation_of_channels_are_read_from_the_config() -> None:
    """FLUX.2's and Playground's configs have them; diffusers' pipelines compute z * std / factor + mean before they decode."""
    means, deviations = [0.5, -1.0, 0.0, 2.0], [0.5, 1.0, 2.0, 4.0]
    settings = {"scaling_factor": 0.5, "latents_mean": means, "latents_std": deviations}
    vae = VAE(AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, **settings))
    latents = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    by_channel = [torch.tensor(values).view(1, 4, 1, 1) for values in (means, deviations)]
    samples = vae.scale.from_latents(latents)
    torch.testing.assert_close(samples, latents * by_channel[1] / 0.5 + by_channel[0])
    torch.testing.assert_close(vae.scale.to_latents(samples), latents)


def test_an_autoencoder_without_variance_is_that_of_diffusers(tmp_path: Path) -> None:
    theirs = AutoencoderDC.from_pretrained(save_tiny_dc(tmp_path))
    ours = tiny_vae(tmp_path)
    assert (ours.downsampling, ours.latent_channels, ours.has_variance) == (32, 32, False) and not ours.model.training
    assert read_downsampling(VAEConfig(name=str(tmp_path))) == 32
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = theirs.encode(pixels).latent
        decoded = theirs.decode(expected).sample
    found = ours.encode(pixels)
    assert found.log_variance is None and found.mean.shape == (2, 32, 2, 3)
    torch.testing.assert_close(found.mean, expected, rtol=1e-4, atol=1e-4)
    latents = found.sample(ours.scale, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(latents, expected * 0.4, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.decode(latents), decoded, rtol=1e-3, atol=1e-3)
    tiled = tiny_vae(tmp_path, tiled=True)
    tiled.tile(128)
    assert tiled.decode(torch.zeros(1, 32, 8, 5)).shape == (1, 3, 256, 160)


def test_a_measured_scale_takes_the_place_of_the_configs_and_not_of_the_fingerprint(folder: Path, vae: VAE) -> None:
    scale = LatentScale((1.0, 2.0, 3.0, 4.0), (0.0, 1.0, 2.0, 3.0))
    measured = load_vae(VAEConfig(name=str(folder), dtype="float32"), scale=scale)
    found = measured.encode(images())
    latents = found.sample(measured.scale, generator=None)
    torch.testing.assert_close(latents[:, 2], (found.mean[:, 2] - 2) * 3)
    torch.testing.assert_close(
        measured.decode(latents), vae.decode(found.sample(vae.scale, generator=None)), rtol=1e-3, atol=1e-3
    )
    assert measured.fingerprint() == vae.fingerprint()
    with pytest.raises(UserError, match="of 2 channels, the VAE .* has 4"):
        load_vae(VAEConfig(name=str(folder)), scale=LatentScale((1.0, 2.0), (0.0, 0.0)))


def test_another_class_of_autoencoder_is_one_line(tmp_path: Path) -> None:
    path = save_tiny_vae(tmp_path) / "config.json"
    path.write_text(path.read_text().replace("AutoencoderKL", "AutoencoderTiny"))
    with pytest.raises(UserError, match="expected one of AutoencoderKL, AutoencoderDC, found the class AutoencoderTiny"):
        tiny_vae(tmp_path)


@pytest.mark.parametrize(
    ("values", "stated"),
    [
        ({"latent_channels": 4}, True),
        ({"latent_channels": 16}, False),
        ({"latent_channels": 16, "scaling_factor": 0.36}, True),
        ({"_class_name": "AutoencoderDC"}, False),
        ({"_class_name": "AutoencoderDC", "scaling_factor": 0.41}, True),
    ],
)
def test_a_config_without_a_scale_is_known(tmp_path: Path, values: dict[str, object], stated: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert states_scale(tmp_path) == stated


def test_bfloat16_computes_in_it_and_hands_over_float32(folder: Path, vae: VAE) -> None:
    rounded = load_vae(VAEConfig(name=str(folder), dtype="bfloat16"))
    found, exact = rounded.encode(images()), vae.encode(images())
    assert rounded.model.dtype == torch.bfloat16 and found.mean.dtype == torch.float32
    assert 0 < (found.mean - exact.mean).abs().max() < 0.1
    assert rounded.decode(exact.mean).dtype == torch.float32


def test_tiles_bound_what_the_decoder_sees_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiled, whole = tiny_vae(folder, tiled=True), tiny_vae(folder)
    tiled.tile(16)
    sides: list[int] = []
    forward = tiled.model.decoder.forward

    def spy(x: torch.Tensor, *args: object) -> torch.Tensor:
        sides.append(max(x.shape[2:]))
        return forward(x, *args)  # type: ignore[no-any-return]

    monkeypatch.setattr(tiled.model.decoder, "forward", spy)
    latents = torch.randn(1, 4, 16, 20, generator=torch.Generator().manual_seed(0))
    decoded = tiled.decode(latents)
    assert decoded.shape == whole.decode(latents).shape == (1, 3, 32, 40)
    assert len(sides) > 4 and max(sides) == 8
    with pytest.raises(UserError, match="tiles whose side 8 divides, found 20 px"):
        tiled.tile(20)


def test_one_image_at_a_time_is_the_same(folder: Path, vae: VAE) -> None:
    together = load_vae(VAEConfig(name=str(folder), dtype="float32", sliced=False))
    assert vae.model.use_slicing and not together.model.use_slicing
    torch.testing.assert_close(vae.encode(images(3)).mean, together.encode(images(3)).mean, rtol=1e-4, atol=1e-5)


def test_a_fingerprint_knows_weights_and_scale_but_not_dtype(folder: Path, vae: VAE, tmp_path: Path) -> None:
    assert load_vae(VAEConfig(name=str(folder), dtype="bfloat16")).fingerprint() == vae.fingerprint()
    assert tiny_vae(save_tiny_vae(tmp_path / "seed", seed=1)).fingerprint() != vae.fingerprint()
    assert tiny_vae(save_tiny_vae(tmp_path / "scale", scaling_factor=0.8)).fingerprint() != vae.fingerprint()


def test_downsampling_is_known_without_loading(folder: Path, vae: VAE) -> None:
    assert read_downsampling(VAEConfig(name=str(folder))) == vae.downsampling == 2


def test_what_does_not_fit_is_refused(vae: VAE, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sides that 2 divides, found 31 x 40 px"):
        vae.encode(torch.zeros(1, 3, 31, 40))
    with pytest.raises(UserError, match=r"expected latents \(B, 4, h, w\), found \(1, 8, 16, 16\)"):
        vae.decode(torch.zeros(1, 8, 16, 16))
    with pytest.raises(UserError, match="there is no vae in"):
        load_vae(VAEConfig(name="/nowhere"))
    t5 = save_tiny_t5(tmp_path / "t5")
    with pytest.raises(UserError, match="is not that of an AutoencoderKL"):
        read_downsampling(VAEConfig(name=str(t5)))
    with pytest.raises(UserError, match="cannot be read as an AutoencoderKL"):
        load_vae(VAEConfig(name=str(t5)))
    weights = save_tiny_vae(tmp_path / "vae") / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items() if name != "decoder.conv_out.weight"}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="its weights lack decoder.conv_out.weight:"):
        load_vae(VAEConfig(name=str(tmp_path / "vae")))
    (tmp_path / "vae" / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not that of an AutoencoderKL"):
        read_downsampling(VAEConfig(name=str(tmp_path / "vae")))


@pytest.mark.parametrize("kind", ["vae", "text_encoder"])
def test_weights_that_are_not_read_are_named_with_what_to_do(tmp_path: Path, kind: Literal["vae", "text_encoder"]) -> None:
    folder = save_tiny_vae(tmp_path / kind) if kind == "vae" else save_tiny_t5(tmp_path / kind)
    stem = "diffusion_pytorch_model" if kind == "vae" else "model"
    weights = folder / f"{stem}.safetensors"

    def load(folder: Path) -> VAE | TextEncoder:
        return tiny_vae(folder) if kind == "vae" else tiny_text_encoder(folder)

    expected = load(folder).fingerprint()
    content = weights.read_bytes()
    (folder / f"{stem}.fp16.safetensors").write_bytes(b"not read")
    assert load(folder).fingerprint() == expected
    assert len(list(stored_tensors(folder, [name for name, _ in load(folder).model.named_parameters()]))) > 9
    weights.unlink()
    with pytest.raises(
        UserError, match=rf"as a variant \({stem}.fp16.safetensors\): .* weights, {stem}.safetensors, or rename"
    ):
        load(folder)
    (folder / f"{stem}.fp16.safetensors").rename(folder / f"{stem}.fp16-00001-of-00002.safetensors")
    (folder / f"{stem}-00002-of-00002.fp16.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"as a variant .*: fetch the full weights$"):
        load(folder)
    for path in folder.glob("*.fp16*"):
        path.unlink()
    weights.with_suffix(".bin").write_bytes(content)
    with pytest.raises(UserError, match=f"holds its weights as {stem}.bin, and only safetensors are read: give a model that"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_image(vae: VAE, tmp_path: Path, *, value: float) -> None:
    broken = tiny_vae(poison_vae(save_tiny_vae(tmp_path / "vae"), value=value))
    with pytest.raises(NotFiniteOutput, match=rf"the VAE {tmp_path / 'vae'} decodes finite latents to NaN or infinity"):
        broken.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(NotFiniteOutput, match="the latents to decode are NaN or infinite: the network"):
        vae.decode(torch.full((1, 4, 8, 8), value))


def test_pixels_are_clamped() -> None:
    assert to_pixels(torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0, 0, 0.5, 1, 1]
