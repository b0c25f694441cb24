"""Features that are no numbers, or that float16 cannot hold, cost their sample alone; stores of bfloat16 stay bfloat16."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from foundry.errors import UserError
from foundry.units.commits import read_commits
from model.encoders.vae import LatentDistribution
from tests.trainer.features.test_preparation import all_samples, store
from tests.trainer.tiny_sources import make_features, tiny_precompute, write_dataset
from trainer.features.info import FEATURES_FILE
from trainer.features.job import Encoders
from trainer.features.preparation import prepare
from trainer.features.store import FeatureStore


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "dataset")


def _rejected(features: FeatureStore) -> dict[str, tuple[str, str]]:
    """Reason and message by key."""
    commits = [commit for commit in read_commits(features.folder) if commit.rejected]
    rows = [row for one in commits for row in pq.read_table(features.folder.path(one.files["rejected"].path)).to_pylist()]
    return {row["key"]: (row["reason"], row["message"]) for row in rows}


def test_encoders_whose_memory_runs_out_get_smaller_batches(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(tiny_precompute(tmp_path, dataset, resolution=[32, 64], unit_size=20), describe=Encoders.describe)
    job, engine = prepared.job, prepared.job.load_engine()
    assert engine.text_encoder is not None
    units = [job.prepare(unit, range(unit.num_images))[0] for unit in prepared.units]
    expected = [job.process(engine, payload, one_by_one=False) for payload in units]
    encode, forward = engine.vae.encode, engine.text_encoder._forward
    sizes: dict[str, list[int]] = {"vae": [], "t5": []}

    def few_pixels(images: torch.Tensor) -> LatentDistribution:
        sizes["vae"].append(len(images))
        if images.numel() > 3 * 2 * 64**2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(images)

    def few_texts(ids: list[list[int]]) -> list[torch.Tensor]:
        sizes["t5"].append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(forward(ids))

    monkeypatch.setattr(engine.vae, "encode", few_pixels)
    monkeypatch.setattr(engine.text_encoder, "_forward", few_texts)
    for payload, whole in zip(units, expected, strict=True):
        found = job.process(engine, payload, one_by_one=False)
        for resolution, latents in whole.latents.items():
            torch.testing.assert_close(found.latents[resolution].mean, latents.mean, rtol=1e-4, atol=1e-5)
        assert found.captions is not None and whole.captions is not None
        torch.testing.assert_close(found.captions.tokens, whole.captions.tokens, rtol=1e-2, atol=1e-2)
    assert max(sizes["vae"]) > 2 and max(sizes["t5"]) > 2, "it was tried"


def test_features_that_are_not_numbers_cost_their_sample_alone_at_all_resolutions(tmp_path: Path, dataset: Path) -> None:
    """One NaN in latents at one of two resolutions, one beyond float16, one in the features of a second caption."""
    config = tiny_precompute(tmp_path, dataset, resolution=[32, 64], unit_size=20)
    prepared = prepare(config, describe=Encoders.describe)
    job, engine = prepared.job, prepared.job.load_engine()
    spoilt: dict[str, str] = {}
    for unit in prepared.units:
        payload, facts = job.prepare(unit, range(unit.num_images))
        output = job.process(engine, payload, one_by_one=False)
        keys = [one.key for one in facts.samples]
        if len(keys) >= 3 and not spoilt and output.captions is not None:
            chosen = next(index for index, one in enumerate(facts.samples) if len(one.captions) == 2)
            first, second = [index for index in range(len(keys)) if index != chosen][:2]
            output.latents[64].mean[first, 1, 2, 3] = float("nan")
            output.latents[32].mean[second, 0, 0, 0] = -70_000.0
            number = sum(len(one.captions) for one in facts.samples[:chosen]) + 1
            output.captions.tokens[int(output.captions.lengths[:number].sum())] = float("inf")
            spoilt = {keys[first]: "not_finite", keys[second]: "out_of_range", keys[chosen]: "not_finite"}
        assert job.finish(unit, facts=facts, output=output, excluded={}) is not None
    assert len(spoilt) == 3
    clean = tiny_precompute(tmp_path, dataset, resolution=[32, 64], unit_size=20, out=str(tmp_path / "clean"))
    make_features(clean)
    for resolution in (32, 64):
        features, expected = store(config, resolution), store(clean, resolution)
        rejected = _rejected(features)
        assert {key: reason for key, (reason, _) in rejected.items()} == spoilt
        messages = sorted(message for _, message in rejected.values())
        assert messages[0] == "a latent at 32 px is 7e+04 in size" and "caption 'alt_text' are NaN" in messages[2]
        samples, others = all_samples(features), all_samples(expected)
        assert set(samples) == set(others) - set(spoilt)
        for key, request in samples.items():  # what is left has kept its own features
            ours, theirs = features.read([request]), expected.read([others[key]])
            assert torch.equal(ours.mean, theirs.mean) and ours.texts == theirs.texts
            assert ours.captions is not None and theirs.captions is not None
            assert torch.equal(ours.captions.tokens, theirs.captions.tokens)


def test_encoders_that_answer_no_numbers_are_refused(tmp_path: Path, dataset: Path) -> None:
    config = tiny_precompute(tmp_path, dataset)
    prepared = prepare(config, describe=Encoders.describe)
    engine = prepared.job.load_engine()
    prepared.job.check(engine)
    torch.nn.init.constant_(engine.vae.model.quant_conv.bias, float("nan"))
    with pytest.raises(UserError, match=r"a grey image .* latents at 16 px are NaN or infinite: the weights are damaged"):
        prepared.job.check(engine)
    weights = tmp_path / "t5" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    tensors["encoder.final_layer_norm.weight"][0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"text encoder .*t5 answers NaN or infinity to the empty caption"):
        prepare(dataclasses.replace(config, out=str(tmp_path / "other")), describe=Encoders.describe)


def test_a_store_that_was_started_in_bfloat16_is_completed_in_it(tmp_path: Path, dataset: Path) -> None:
    config = tiny_precompute(tmp_path, dataset)
    prepare(config, describe=Encoders.describe)
    path = Path(config.out) / "alignment" / "32" / FEATURES_FILE
    record = json.loads(path.read_text())
    assert record["latent_dtype"] == "float16"
    del record["latent_dtype"]
    path.write_text(json.dumps(record | {"schema_version": 1}))
    make_features(config)
    features, exact = store(config), tiny_precompute(tmp_path, dataset, out=str(tmp_path / "exact"))
    make_features(exact)
    request = all_samples(features)["picture_003"]
    old, new = features.read([request]).mean, store(exact).read([all_samples(store(exact))["picture_003"]]).mean
    assert old.dtype == torch.bfloat16 and new.dtype == torch.float16
    torch.testing.assert_close(old.float(), new.float(), rtol=0.005, atol=1e-4)
