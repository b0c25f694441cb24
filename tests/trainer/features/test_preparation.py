"""Features are what on-the-fly encoding gives; a bad image costs itself; a stopped run resumes; another encoder is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits, decode_image
from foundry.storage.folder import Folder
from foundry.units.commits import committed_units, read_commits
from model.control.edges import edge_map
from model.control.settings import EDGES
from model.dit import Captions
from model.encoders.text_encoder import TextEncoderConfig, load_text_encoder
from model.encoders.vae import VAEConfig, load_vae
from model.generation.resolution import fit
from tests.foundry.units.plain_loop import run_plainly
from tests.model.tiny_parts import save_tiny_vae
from tests.trainer.tiny_sources import make_features, tiny_precompute, write_class_folders, write_dataset
from tests.trainer.tiny_training import tiny_config
from trainer.config.ladder import Rung
from trainer.features.buckets import decoding_side_px, nearest_buckets, to_signed
from trainer.features.config import ControlImagesConfig, PrecomputeConfig
from trainer.features.job import Encoders
from trainer.features.plan import read_feature_plan
from trainer.features.preparation import prepare
from trainer.features.store import FeatureStore, SampleRequest
from trainer.features.tables import Int8Captions
from trainer.fit import main as train
from trainer.monitoring.run_folder import read_metrics


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "dataset")


def store(config: PrecomputeConfig, resolution: int = 32) -> FeatureStore:
    return FeatureStore.open(f"{config.out}/{config.stage}/{resolution}")


def all_samples(features: FeatureStore) -> dict[str, SampleRequest]:
    """A request with the first caption for each sample, by key."""
    requests = [
        SampleRequest(unit=unit, row=row, caption=0)
        for split in features.splits
        for units in features.samples(split).values()
        for unit, rows in units
        for row in range(rows)
    ]
    return {features.read([request]).keys[0]: request for request in requests}


@pytest.mark.parametrize("embed", [False, True], ids=["references", "embedded"])
def test_what_is_stored_is_what_encoding_on_the_fly_gives(tmp_path: Path, embed: bool) -> None:
    config = tiny_precompute(tmp_path, write_dataset(tmp_path / "dataset", embed=embed))
    make_features(config)
    features, vae = store(config), load_vae(config.vae)
    text_encoder = load_text_encoder(config.text_encoder)
    table = features.info.buckets
    samples = all_samples(features)
    assert len(samples) == 20
    for key, request in samples.items():
        batch = features.read([request])
        data = (tmp_path / "dataset" / "pictures" / f"{key}.png").read_bytes()
        height, width = (int(side) for side in batch.sizes[0])
        size = table[nearest_buckets([height], [width], table)[0]]
        image = decode_image(data, limits=DecodeLimits(), target_side_px=decoding_side_px(height, width, [size]))
        assert (image.height, image.width) == (height, width)
        expected = vae.encode(to_signed(torch.from_numpy(fit(image.pixels, size))[None]))
        torch.testing.assert_close(batch.mean, expected.mean.half(), rtol=0.002, atol=1e-3)
        assert batch.log_variance is not None and expected.log_variance is not None
        torch.testing.assert_close(batch.log_variance, expected.log_variance.half(), rtol=0.002, atol=1e-3)
        assert batch.texts is not None and batch.captions is not None
        assert batch.texts[0] == f"a large owl number {int(key[-3:])} on the left"
        tokens = text_encoder.encode(batch.texts).tokens.bfloat16()
        torch.testing.assert_close(batch.captions.tokens, tokens, rtol=0.02, atol=1e-2)
        assert batch.bucket == (size[0] // 2, size[1] // 2)


def test_control_images_are_the_edges_of_what_was_cropped(tmp_path: Path, dataset: Path) -> None:
    config = tiny_precompute(tmp_path, dataset, control=ControlImagesConfig(kind="edges"))
    make_features(config)
    plain = tiny_precompute(tmp_path, dataset, out=str(tmp_path / "plain"))
    make_features(plain)
    vae, without, features = load_vae(config.vae), store(plain), FeatureStore.open(store(config).folder.url, control=EDGES)
    assert features.info.fingerprint != without.info.fingerprint and "control" not in without.info.settings
    for key, request in all_samples(features).items():
        batch = features.read([request])
        data = (tmp_path / "dataset" / "pictures" / f"{key}.png").read_bytes()
        height, width = (int(side) for side in batch.sizes[0])
        size = (2 * batch.bucket[0], 2 * batch.bucket[1])
        image = decode_image(data, limits=DecodeLimits(), target_side_px=decoding_side_px(height, width, [size]))
        edges = np.repeat(edge_map(fit(image.pixels, size))[..., None], 3, axis=2)
        expected = vae.encode(to_signed(torch.from_numpy(edges)[None])).mean.half()
        assert batch.control is not None
        torch.testing.assert_close(batch.control, expected, rtol=0.002, atol=1e-3)
    with pytest.raises(UserError, match="was made with another control.kind"):
        make_features(dataclasses.replace(config, control=ControlImagesConfig()))
    with pytest.raises(UserError, match="was made with another control.kind"):
        make_features(dataclasses.replace(plain, control=config.control))
    with pytest.raises(UserError, match="has control images none, expected edges/1: .*--control.kind edges"):
        FeatureStore.open(without.folder.url, control=EDGES)


def test_two_resolutions_share_their_captions(tmp_path: Path, dataset: Path) -> None:
    config = tiny_precompute(tmp_path, dataset, resolution=[64, 32])
    make_features(config)
    small, large = store(config, 32), store(config, 64)
    assert not (tmp_path / "features" / "alignment" / "64" / "captions").exists()
    for key, request in all_samples(large).items():
        batches = [features.read([request]) for features in (small, large)]
        assert batches[0].keys == batches[1].keys == [key]
        assert batches[0].captions is not None and batches[1].captions is not None
        assert torch.equal(batches[0].captions.tokens, batches[1].captions.tokens)
    alone = tiny_precompute(tmp_path, dataset, resolution=[64], out=str(tmp_path / "alone"))
    make_features(alone)
    one, both = store(alone, 64), large
    request = all_samples(one)["picture_003"]
    torch.testing.assert_close(one.read([request]).mean, both.read([all_samples(both)["picture_003"]]).mean)


def test_features_live_on_object_storage_too(tmp_path: Path, dataset: Path) -> None:
    config = tiny_precompute(tmp_path, dataset, resolution=[32, 64], out="memory://features")
    make_features(config)
    for resolution in (32, 64):
        features = store(config, resolution)
        request = all_samples(features)["picture_003"]
        read = FeatureStore.open(features.folder.url)
        batch, again = read.read([request]), read.read([request])
        assert batch.texts == ["a large owl number 3 on the left"]
        files = next(one for one in read_commits(features.folder) if one.unit == request.unit).files
        whole = sum(files[name].num_bytes for name in ("latents", "captions"))
        assert (batch.read_bytes, again.read_bytes) == (whole, 0), "units are fetched whole, and stay open"


def test_splits_and_buckets_are_kept_apart(tmp_path: Path, dataset: Path) -> None:
    config = tiny_precompute(tmp_path, dataset)
    make_features(config)
    features = store(config)
    assert features.splits == ("train", "validation") and features.missing_units == 0
    assert sum(features.bucket_sizes("train").values()) == 16
    assert sum(features.bucket_sizes("validation").values()) == 4
    assert len(features.bucket_sizes("train")) > 2
    with pytest.raises(UserError, match="no samples of the split test; there is train, validation"):
        features.samples("test")


def test_every_caption_variant_is_stored_and_the_null_caption_once(tmp_path: Path, dataset: Path) -> None:
    config = tiny_precompute(tmp_path, dataset)
    make_features(config)
    features = store(config)
    encoder = load_text_encoder(config.text_encoder)
    samples = all_samples(features)
    with_alt, without_alt = samples["picture_002"], samples["picture_001"]
    assert features.caption_names(with_alt.unit, with_alt.row) == ("dense", "alt_text")
    assert features.caption_names(without_alt.unit, without_alt.row) == ("dense",)
    chosen = dataclasses.replace(with_alt, caption=1)
    assert features.read([chosen]).texts == ["an owl 2"]
    null = features.read([dataclasses.replace(with_alt, caption=None)])
    assert null.texts == [""] and null.captions is not None
    torch.testing.assert_close(null.captions.tokens, encoder.null_captions().tokens.bfloat16())


def test_int8_is_close_and_half_the_size(tmp_path: Path, dataset: Path) -> None:
    exact, small = (
        tiny_precompute(tmp_path, dataset, captions=storage, out=str(tmp_path / storage)) for storage in ("bfloat16", "int8")
    )
    for config in (exact, small):
        make_features(config)
    stores = [store(config) for config in (exact, small)]
    requests = [all_samples(features)["picture_004"] for features in stores]
    batches = [
        features.read([request, dataclasses.replace(request, caption=None)])
        for features, request in zip(stores, requests, strict=True)
    ]
    (large, packed) = (batch.captions for batch in batches)
    assert isinstance(large, Captions) and isinstance(packed, Int8Captions)
    tokens = [captions.tokens.float() for captions in (large, packed.expanded())]
    assert packed.tokens.dtype == torch.int8 and torch.equal(packed.lengths, large.lengths)
    assert (tokens[0] - tokens[1]).abs().max() < tokens[0].abs().max() / 100
    assert not torch.equal(tokens[0], tokens[1])


def test_texts_alone_are_stored_for_training_that_encodes(tmp_path: Path, dataset: Path) -> None:
    config = tiny_precompute(tmp_path, dataset, captions="none")
    make_features(config)
    features = store(config)
    batch = features.read([all_samples(features)["picture_002"]])
    assert batch.captions is None and batch.texts == ["a large owl number 2 on the left"]
    stored = tiny_precompute(tmp_path, dataset, out=str(tmp_path / "stored"))
    make_features(stored)
    settings = tiny_config(tmp_path, ladder=(Rung(resolution=32, images=12, batch_size=4),), features=config.out)
    with pytest.raises(UserError, match="holds texts without features, which `online` encodes"):
        train(settings)
    online = dataclasses.replace(settings, online=True)
    other = dataclasses.replace(settings, features=stored.out, run_dir=str(tmp_path / "other"))
    assert train(online) == train(other) == 0
    losses = [[row["loss"] for row in read_metrics(Path(one.run_folder)) if row["kind"] == "train"] for one in (online, other)]
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_bad_image_costs_itself_alone(tmp_path: Path, dataset: Path) -> None:
    (dataset / "pictures" / "picture_007.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (dataset / "pictures" / "picture_009.png").unlink()
    config = tiny_precompute(tmp_path, dataset)
    make_features(config)
    features = store(config)
    assert set(all_samples(features)) == {f"picture_{number:03d}" for number in range(20)} - {"picture_007", "picture_009"}
    assert features.num_rejected == 2
    commits = [commit for commit in read_commits(features.folder) if commit.rejected]
    rows = [row for one in commits for row in pq.read_table(features.folder.path(one.files["rejected"].path)).to_pylist()]
    assert {(row["key"], row["reason"]) for row in rows} == {("picture_007", "broken"), ("picture_009", "unreadable")}


def test_a_link_that_nobody_serves_costs_its_image_alone(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    for part in (dataset / "samples").rglob("*.parquet"):
        table = pq.read_table(part)
        uris = [uri.replace(f"{dataset}/pictures/picture_007", "http://127.0.0.1:9/7") for uri in table["uri"].to_pylist()]
        column = table.schema.get_field_index("uri")
        pq.write_table(table.set_column(column, table.schema.field("uri"), pa.array(uris)), part)
    config = tiny_precompute(tmp_path, dataset)
    make_features(config)
    features = store(config)
    assert set(all_samples(features)) == {f"picture_{number:03d}" for number in range(20)} - {"picture_007"}
    [commit] = [commit for commit in read_commits(features.folder) if commit.rejected]
    [row] = pq.read_table(features.folder.path(commit.files["rejected"].path)).to_pylist()
    assert (row["key"], row["reason"], row["uri"]) == ("picture_007", "unreadable", "http://127.0.0.1:9/7.png")


def test_a_bucket_without_a_sample_that_can_be_used_is_trained_around(tmp_path: Path, dataset: Path) -> None:
    wide = [number for number in range(20) if number % 4 == 2]  # 30 x 64 pixels, alone in their bucket
    for number in wide:
        (dataset / "pictures" / f"picture_{number:03d}.png").write_bytes(b"broken")
    config = tiny_precompute(tmp_path, dataset)
    make_features(config)
    features = store(config)
    assert features.num_rejected == len(wide) and features.missing_units == 0
    planned = {unit.buckets[32] for unit in read_feature_plan(features.folder).units}
    assert len({bucket for split in features.splits for bucket in features.samples(split)}) == len(planned) - 1
    settings = tiny_config(tmp_path, ladder=(Rung(resolution=32, images=24, batch_size=4),), features=config.out)
    assert train(settings) == 0


def test_the_same_command_resumes_where_the_commits_end(tmp_path: Path, dataset: Path) -> None:
    config = tiny_precompute(tmp_path, dataset, resolution=[32, 64])
    prepared = prepare(config, describe=Encoders.describe)
    run_plainly(prepared.job, prepared.units[:3])
    stopped_between = f"{config.out}/alignment/64/commits/{prepared.units[0].number:08d}.json"
    Path(stopped_between).unlink()
    before = read_commits(Folder(f"{config.out}/alignment/32"))
    again = prepare(config, describe=Encoders.describe)
    assert [unit.resolutions for unit in again.units[:1]] == [(64,)]
    assert len(again.units) == len(prepared.units) - 2
    run_plainly(again.job, again.units)
    for resolution in (32, 64):
        assert store(config, resolution).missing_units == 0 and len(all_samples(store(config, resolution))) == 20
    after = read_commits(Folder(f"{config.out}/alignment/32"))
    assert [commit for commit in after if commit.unit in {one.unit for one in before}] == before
    assert not prepare(config, describe=Encoders.describe).units


def test_a_relative_path_to_the_same_data_set_resumes(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_precompute(tmp_path, dataset)
    prepared = prepare(config, describe=Encoders.describe)
    run_plainly(prepared.job, prepared.units[:1])
    monkeypatch.chdir(dataset.parent)
    again = prepare(dataclasses.replace(config, dataset=dataset.name), describe=Encoders.describe)
    assert len(again.units) == len(prepared.units) - 1
    with pytest.raises(UserError, match="made with another dataset"):
        prepare(
            dataclasses.replace(config, dataset=str(write_dataset(tmp_path / "other", count=10))), describe=Encoders.describe
        )


def test_what_a_node_keeps_of_containers_changes_no_feature(tmp_path: Path) -> None:
    """Bit for bit, in any order of units, also in a second start that kept nothing of the first."""
    embedded = write_dataset(tmp_path / "dataset", embed=True)
    made = {}
    for name, shuffle_gb in (("kept", 1.0), ("alone", 0.0)):
        config = tiny_precompute(tmp_path, embedded, out=str(tmp_path / name), shuffle_gb=shuffle_gb)
        prepared = prepare(config, describe=Encoders.describe)
        extents = prepared.job.extents
        run_plainly(prepared.job, prepared.units[::-2])
        assert (extents is not None and any(extents.folder.iterdir())) == bool(shuffle_gb)
        again = prepare(config, describe=Encoders.describe)
        assert len(again.units) == len(prepared.units) // 2
        run_plainly(again.job, again.units)
        made[name] = [
            {kind: file.sha256 for kind, file in commit.files.items()}
            for commit in read_commits(Folder(f"{config.out}/alignment/32"))
        ]
    assert made["kept"] == made["alone"]


def test_sources_that_grew_get_units_of_their_own(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", count=10)
    config = tiny_precompute(tmp_path, tmp_path / "dataset")
    make_features(config)
    before = committed_units(Folder(f"{config.out}/alignment/32"))
    write_dataset(tmp_path / "dataset", count=15)
    new = [unit.number for unit in make_features(config)]
    assert min(new) > max(before)
    assert len(all_samples(store(config))) == 15


def test_class_folders_make_labels_by_name(tmp_path: Path) -> None:
    config = tiny_precompute(tmp_path, write_class_folders(tmp_path / "classes"), stage="pixel", min_validation=1)
    make_features(config)
    features = store(config)
    assert features.info.class_names == ("key", "owl") and features.info.buckets == ((32, 32),)
    samples = all_samples(features)
    for key, label in (("owl/0.png", 1), ("key/3.png", 0)):
        batch = features.read([samples[key]])
        assert batch.class_labels is not None and batch.class_labels.tolist() == [label]
        assert batch.captions is None and batch.texts is None and batch.bucket == (16, 16)


def test_another_encoder_cannot_resume(tmp_path: Path, dataset: Path) -> None:
    config = tiny_precompute(tmp_path, dataset)
    prepared = prepare(config, describe=Encoders.describe)
    run_plainly(prepared.job, prepared.units[:1])
    save_tiny_vae(tmp_path / "vae", seed=1)
    with pytest.raises(UserError, match="started with another vae"):
        prepare(config, describe=Encoders.describe)


def test_other_settings_are_refused(tmp_path: Path, dataset: Path) -> None:
    config = tiny_precompute(tmp_path, dataset)
    prepare(config, describe=Encoders.describe)
    shorter = TextEncoderConfig(name=str(tmp_path / "t5"), max_caption_tokens=10)
    other = dataclasses.replace(config, text_encoder=shorter, seed=3)
    with pytest.raises(UserError, match="was made with another seed, text_encoder|was made with another text_encoder, seed"):
        prepare(other, describe=Encoders.describe)


def test_resolutions_that_make_no_buckets_are_refused(tmp_path: Path, dataset: Path) -> None:
    config = tiny_precompute(tmp_path, dataset, resolution=[33])
    with pytest.raises(UserError, match="33 px: expected a multiple of 4 px, try 32"):
        prepare(config, describe=Encoders.describe)


@pytest.mark.parametrize("resolution", [[], [0], [-32], [32, 32]])
def test_resolutions_are_different_numbers_above_0(tmp_path: Path, resolution: list[int]) -> None:
    with pytest.raises(ValueError, match="resolution must be different numbers above 0"):
        PrecomputeConfig(
            dataset=str(tmp_path), out=str(tmp_path), stage="pixel", resolution=resolution, vae=VAEConfig(name="mini")
        )


def test_the_pixel_stage_is_the_same_whatever_would_read_captions(tmp_path: Path) -> None:
    config = tiny_precompute(tmp_path, write_class_folders(tmp_path / "classes"), stage="pixel")
    prepare(config, describe=Encoders.describe)
    other = dataclasses.replace(config, text_encoder=TextEncoderConfig(name=""))
    assert prepare(other, describe=Encoders.describe).job.encoders.text_encoder is None
