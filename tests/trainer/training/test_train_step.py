"""One step computes the same however its batch is cut; optimiser, average, learning rate and class dropout do what they say."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from model.diffusion import Diffusion, RectifiedFlow
from model.dit import Captions, DiT, DiTConfig
from model.encoders.vae import LatentScale
from tests.trainer.tiny_training import CAPTION_WIDTH, tiny_config, write_store
from trainer.config.optim import EmaConfig, OptimConfig
from trainer.data.batches import Collator
from trainer.data.noise import sample_noise
from trainer.distributed import Workers
from trainer.features.store import FeatureBatch, FeatureStore, SampleRequest
from trainer.features.tables import Int8Captions, from_int8, to_int8
from trainer.training.ema import Ema, ema_decay
from trainer.training.networks import attention_kernel, make_state, new_network
from trainer.training.optimizer import learning_rate, make_optimizer
from trainer.training.train_step import StepSettings, TrainState, train_step

NETWORK = DiTConfig(
    width=24, depth=2, num_heads=2, caption_width=CAPTION_WIDTH, sample_size=8, max_caption_tokens=10, micro_conditioning=True
)
PLACES = range(100, 106)


@pytest.fixture
def batch(tmp_path: Path) -> FeatureBatch:
    store = FeatureStore.open(str(write_store(tmp_path)))
    return store.read([SampleRequest(unit=0, row=row, caption=None if row == 2 else row % 2) for row in range(6)])


def _collator(*, device_tokens: int = 10_000) -> Collator:
    return Collator(
        network=NETWORK,
        objective=Diffusion(),
        scale=LatentScale(0.5),
        device=torch.device("cpu"),
        seed=3,
        class_dropout=0.0,
        device_tokens=device_tokens,
    )


def _state(tmp_path: Path) -> TrainState:
    return make_state(new_network(NETWORK, seed=1), tiny_config(tmp_path), Workers())


def _step(state: TrainState, batch: FeatureBatch, collator: Collator) -> torch.Tensor:
    settings = StepSettings(lr=1e-3, ema_decay=0.5, gradient_clip=1.0, precision=torch.float32, num_samples=6)
    return train_step(state, Diffusion(), collator.micro_batches(batch, PLACES), settings).losses


def test_int8_captions_are_expanded_where_they_are_used(batch: FeatureBatch) -> None:
    """Each micro-batch has the numbers that expanding the whole batch gives."""
    assert isinstance(batch.captions, Captions)
    tokens, scales = to_int8(batch.captions.tokens)
    packed = Int8Captions(tokens, scales.view(-1), batch.captions.lengths)
    expanded = replace(batch, captions=packed.expanded())
    for device_tokens in (10_000, 32):
        collator = _collator(device_tokens=device_tokens)
        parts = (collator.micro_batches(one, PLACES) for one in (replace(batch, captions=packed), expanded))
        for part, expected in zip(*parts, strict=True):
            assert part.captions is not None and expected.captions is not None
            assert part.captions.tokens.dtype == torch.bfloat16
            assert torch.equal(part.captions.tokens, expected.captions.tokens)
            assert torch.equal(part.captions.lengths, expected.captions.lengths)
    whole = _collator().whole(replace(batch, captions=packed)).captions
    assert whole is not None and torch.equal(whole.tokens, from_int8(tokens, scales))


def test_accumulation_is_the_whole_batch(tmp_path: Path, batch: FeatureBatch) -> None:
    whole, cut = _state(tmp_path), _state(tmp_path)
    losses = _step(whole, batch, _collator()), _step(cut, batch, _collator(device_tokens=4 * 16))
    assert _collator(device_tokens=4 * 16).micro_batch_size(batch.bucket) == 4
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)
    for name, weight in whole.network.state_dict().items():
        assert torch.allclose(weight, cut.network.state_dict()[name], atol=1e-5), name


def test_attention_without_a_fused_kernel_is_the_same(tmp_path: Path, batch: FeatureBatch) -> None:
    losses, kernels = {}, {}
    for name in ("auto", "math"):
        with attention_kernel(name), torch.profiler.profile() as profile:
            losses[name] = _step(_state(tmp_path), batch, _collator())
        kernels[name] = {event.key for event in profile.key_averages() if "flash" in event.key}
    assert torch.allclose(losses["math"], losses["auto"], rtol=1e-5)
    assert kernels["auto"] and not kernels["math"]


def test_sizes_and_ratios_reach_the_network(tmp_path: Path, batch: FeatureBatch) -> None:
    part = next(iter(_collator().micro_batches(batch, PLACES)))
    assert part.sizes is not None and torch.equal(part.sizes, batch.sizes)
    assert part.aspect_ratios is not None and part.aspect_ratios.shape == (len(PLACES), 1)
    assert part.captions is not None and part.captions.lengths.tolist()[2] == 2  # the null caption
    assert part.latents.dtype == torch.float32 and part.is_last


def test_the_aspect_ratio_is_that_of_the_bucket_or_of_the_image_as_the_settings_say(batch: FeatureBatch) -> None:
    """An image of 700 x 300 in a bucket of 12 x 4 latents is generated as one of 3 to 1."""
    wide = replace(batch, bucket=(12, 4), mean=torch.zeros(6, 4, 12, 4), log_variance=torch.zeros(6, 4, 12, 4))
    wide.sizes[:] = torch.tensor([700.0, 300.0])
    for original, expected in ((False, 3.0), (True, 700 / 300)):
        collator = replace(_collator(), original_aspect_ratio=original)
        for part in (next(iter(collator.micro_batches(wide, PLACES))), collator.whole(wide)):
            assert part.sizes is not None and part.sizes.tolist() == [[700.0, 300.0]] * 6
            assert part.aspect_ratios is not None
            torch.testing.assert_close(part.aspect_ratios, torch.full((6, 1), expected))
            network = create_autospec(DiT, instance=True)
            part.predict(network, torch.float32)(part.latents, part.timesteps)
            conditions = network.call_args.kwargs
            assert conditions["aspect_ratios"] is part.aspect_ratios and conditions["sizes"] is part.sizes


def test_decay_spares_norms_biases_embeddings_and_tables() -> None:
    network = DiT(replace(NETWORK, qk_norm=True))
    decayed, plain = make_optimizer(network, OptimConfig(weight_decay=0.1)).param_groups
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    spared = {names[id(parameter)] for parameter in plain["params"]}
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0
    assert all(name.endswith((".bias", "scale_shift_table")) or "_norm." in name for name in spared)
    assert "blocks.0.scale_shift_table" in spared and "blocks.0.attn.q_norm.weight" in spared
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


@given(st.integers(0, 200), st.integers(0, 50), st.sampled_from(["constant", "cosine"]))
def test_the_learning_rate_rises_and_never_passes_its_height(step: int, warmup: int, schedule: str) -> None:
    config = OptimConfig(lr=0.1, warmup_steps=warmup, schedule=schedule)  # type: ignore[arg-type]
    now, after = (learning_rate(config, step=place, num_steps=100) for place in (step, step + 1))
    assert 0 <= now <= 0.1
    if step + 1 < warmup:
        assert now < after
    elif schedule == "constant":
        assert now == 0.1
    else:
        assert after <= now and (step < 100 or now < 1e-9)


def test_the_half_life_is_one(tmp_path: Path) -> None:
    config = EmaConfig(half_life_images=1000, rampup_ratio=0.5)
    assert ema_decay(config, batch_size=10, images_seen=10**6) ** 100 == pytest.approx(0.5)
    assert ema_decay(config, batch_size=10, images_seen=20) == 0.5  # the ramp: a half-life of 10 images
    network = torch.nn.Linear(2, 2)
    ema, before = Ema(network), network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(1)
    ema.update(0.5)
    assert torch.allclose(ema.weights["weight"], before + 0.5)
    own = network.weight.detach().clone()
    with ema.applied():
        assert torch.equal(network.weight, ema.weights["weight"])
    assert torch.equal(network.weight, own)


def test_classes_are_dropped_by_their_draw(tmp_path: Path) -> None:
    store = FeatureStore.open(str(write_store(tmp_path, stage="pixel")))
    batch = store.read([SampleRequest(unit=0, row=row) for row in range(6)])
    network = DiTConfig(width=24, depth=1, num_heads=2, conditioning="class", num_classes=3, sample_size=8)
    collator = replace(_collator(), network=network, class_dropout=0.5, objective=RectifiedFlow())
    part = next(iter(collator.micro_batches(batch, PLACES)))
    dropped = sample_noise((4, 8, 8), seed=3, positions=PLACES).dropout < 0.5
    assert part.class_labels is not None and part.captions is None and 0 < int(dropped.sum()) < 6
    assert torch.equal(part.class_labels, torch.where(dropped, 3, batch.class_labels))  # type: ignore[arg-type]
