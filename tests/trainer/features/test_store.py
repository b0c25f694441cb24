"""A store says what it is; what is missing, of another kind or damaged is one clear error; a stored caption costs what it
must."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.units.commits import CommittedFile, Unit, commit_unit, read_commits
from model.dit import Captions
from model.formats.checkpoint import PartConfig
from tests.trainer.tiny_training import write_store
from trainer.features.info import FEATURES_FILE, read_info
from trainer.features.store import FeatureStore, SampleRequest
from trainer.features.tables import OpenUnits, captions_table, from_int8, to_int8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_store(tmp_path)


def test_what_was_written_is_read(folder: Path) -> None:
    store = FeatureStore.open(str(folder))
    assert store.splits == ("train", "validation") and store.missing_units == 0
    assert store.samples("train") == {(8, 8): ((0, 6),), (12, 4): ((1, 6),)}
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(6, 4, 8, 8, generator=generator)
    log_variance = torch.randn(6, 4, 8, 8, generator=generator) - 3
    batch = store.read([SampleRequest(unit=0, row=row, caption=None) for row in (4, 1)])
    assert batch.log_variance is not None
    assert torch.equal(batch.mean, mean[[4, 1]].half()) and torch.equal(batch.log_variance, log_variance[[4, 1]].half())
    assert (batch.mean.float() - mean[[4, 1]]).square().mean().sqrt() < 3e-4 * mean.square().mean().sqrt()
    assert batch.keys == ["u0r4", "u0r1"] and batch.bucket == (8, 8)
    assert batch.sizes.tolist() == [[16, 16], [16, 16]] and batch.class_labels is None


def test_a_store_of_version_1_is_read_as_the_bfloat16_that_it_holds(tmp_path: Path) -> None:
    folder = write_store(tmp_path / "old", latent_dtype="bfloat16")
    record = json.loads((folder / FEATURES_FILE).read_text())
    del record["latent_dtype"]
    (folder / FEATURES_FILE).write_text(json.dumps(record | {"schema_version": 1}))
    requests = [SampleRequest(unit=0, row=row) for row in (4, 1)]
    old, new = (FeatureStore.open(str(one)) for one in (folder, write_store(tmp_path / "new")))
    assert old.info.latent_dtype == "bfloat16" and old.info.fingerprint == new.info.fingerprint
    found, exact = old.read(requests), new.read(requests)
    assert found.mean.dtype == torch.bfloat16 and exact.mean.dtype == torch.float16
    assert torch.equal(found.mean, exact.mean.bfloat16()) or (found.mean.float() - exact.mean.float()).abs().max() < 0.02


def test_a_batch_is_its_samples_one_by_one(folder: Path) -> None:
    store = FeatureStore.open(str(folder))
    requests = [SampleRequest(unit=0, row=row, caption=caption) for row, caption in [(0, 1), (3, None), (5, 0)]]
    together, alone = store.read(requests), [store.read([request]) for request in requests]
    captions = [batch.captions for batch in alone if isinstance(batch.captions, Captions)]
    assert together.captions is not None
    assert torch.equal(together.captions.tokens, Captions.cat(captions).tokens)
    assert torch.equal(together.captions.lengths, Captions.cat(captions).lengths)
    assert together.texts == [batch.texts[0] for batch in alone if batch.texts] == ["alt_text 0", "", "dense 5"]


def test_the_bytes_of_a_batch_are_those_of_its_samples(folder: Path) -> None:
    batch = FeatureStore.open(str(folder)).read([SampleRequest(unit=0, row=row, caption=0) for row in range(3)])
    assert isinstance(batch.captions, Captions)
    assert batch.read_bytes == 3 * 2 * 4 * 8 * 8 * 2 + batch.captions.tokens.numel() * 2


def test_a_caption_can_be_chosen_by_the_names_that_a_sample_has(folder: Path) -> None:
    store = FeatureStore.open(str(folder))
    asked: list[tuple[str, ...]] = []

    def second(names: Sequence[str]) -> int:
        asked.append(tuple(names))
        return 1

    chosen = store.read([SampleRequest(unit=0, row=row, caption=second) for row in (2, 4)])
    given = store.read([SampleRequest(unit=0, row=row, caption=1) for row in (2, 4)])
    assert asked == [("dense", "alt_text")] * 2 and chosen.texts == given.texts == ["alt_text 2", "alt_text 4"]
    assert chosen.captions is not None and given.captions is not None
    assert torch.equal(chosen.captions.tokens, given.captions.tokens)


def test_the_units_read_last_stay_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.features.tables.MAX_OPEN_UNITS", 2)
    units = OpenUnits(Folder(str(folder)), {commit.unit: commit for commit in read_commits(Folder(str(folder)))}, command="")
    first, second = units[0], units[1]
    assert units[0] is first  # so that the second is the one that was read longest ago
    units[2]
    assert units[0] is first and units[1] is not second


def test_a_store_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"there are no features in .*: make features with python -m trainer.precompute .* --vae.name VAE "
    ):
        FeatureStore.open(str(tmp_path / "nothing"))


def test_the_command_that_makes_a_store_names_its_encoders(folder: Path) -> None:
    info = FeatureStore.open(str(folder)).info
    theirs = replace(info, vae=PartConfig(name="org/vae", revision="abc"), text_encoder=PartConfig(name="org/t5"))
    assert theirs.command.endswith(
        f"--stage {info.stage} --resolution {info.resolution} --vae.name org/vae --vae.revision abc --text_encoder.name org/t5"
    )
    both = replace(theirs, settings={"resolution": [256, 512]})
    assert " --resolution 256 512 --vae.name org/vae " in both.command
    pixels = replace(theirs, class_names=("owl",), text_encoder=None)
    assert pixels.command.endswith("--vae.name org/vae --vae.revision abc")


def test_a_store_without_a_sample_is_refused(folder: Path) -> None:
    for record in (folder / "commits").iterdir():
        record.unlink()
    with pytest.raises(UserError, match="has no sample yet"):
        FeatureStore.open(str(folder))


def test_an_unfinished_store_is_read_as_far_as_it_goes(folder: Path) -> None:
    whole = FeatureStore.open(str(folder)).content
    (folder / "commits" / "00000001.json").unlink()
    store = FeatureStore.open(str(folder))
    assert store.missing_units == 1 and store.content != whole
    assert store.bucket_sizes("train") == {(8, 8): 6}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "version 99, this program reads 1 and 2"),
        ({"scaling_factor": 0.9}, "was changed by hand"),
        ({"buckets": None}, "says nothing of buckets"),
        ({"latent_dtype": "float8"}, "has latents in float8, this program reads bfloat16 and float16"),
    ],
)
def test_foreign_and_changed_stores_are_refused(folder: Path, change: dict[str, object], message: str) -> None:
    record = json.loads((folder / FEATURES_FILE).read_text())
    changed = {name: value for name, value in {**record, **change}.items() if value is not None}
    (folder / FEATURES_FILE).write_text(json.dumps(changed))
    with pytest.raises(UserError, match=message):
        FeatureStore.open(str(folder))


def test_a_damaged_file_is_named(folder: Path) -> None:
    latents = next((folder / "latents").iterdir())
    latents.write_bytes(latents.read_bytes()[:100])
    store = FeatureStore.open(str(folder))
    number = int(latents.name[:8])
    with pytest.raises(UserError, match=f"unit {number}: .*; delete commits/{number:08d}.json and run python -m"):
        store.read([SampleRequest(unit=number, row=0)])


def test_the_same_weights_by_another_name_are_the_same_features(folder: Path) -> None:
    info = read_info(Folder(str(folder)))
    moved = type(info)(**{**vars(info), "source": "elsewhere", "settings": {"a": 1}})
    assert moved.fingerprint == info.fingerprint
    assert type(info)(**{**vars(info), "scaling_factor": 0.1}).fingerprint != info.fingerprint


@pytest.mark.parametrize("as_int8", [False, True])
def test_a_stored_caption_costs_its_tokens_and_little_more(tmp_path: Path, as_int8: bool) -> None:
    lengths, width = [40, 80, 120] * 4, 4096
    tokens = torch.randn(sum(lengths), width, generator=torch.Generator().manual_seed(0))
    table = captions_table([["dense"]] * 12, Captions(tokens=tokens, lengths=torch.tensor(lengths)), as_int8=as_int8)
    unit = Unit(number=0, part="", row_group=0, num_images=12)
    commit = commit_unit(Folder(str(tmp_path)), run_id="r", unit=unit, tables={"captions": table}, arrow=["captions"])
    assert commit is not None
    budget = sum(1.03 * length * width * (1 if as_int8 else 2) + 64 + (4 * length if as_int8 else 0) for length in lengths)
    assert commit.files["captions"].num_bytes <= budget


@given(length=st.integers(1, 200), scale=st.floats(1e-6, 1e4))
def test_int8_is_off_by_half_a_step_at_most(length: int, scale: float) -> None:
    tokens = torch.randn(length, 16, generator=torch.Generator().manual_seed(length)) * scale
    stored, scales = to_int8(tokens)
    error = (from_int8(stored, scales).float() - tokens).abs()
    assert (error <= 0.5 * scales * 1.01 + tokens.abs() / 128).all()


def test_a_token_of_zeros_stays_one() -> None:
    stored, scales = to_int8(torch.zeros(2, 8))
    assert torch.equal(from_int8(stored, scales), torch.zeros(2, 8, dtype=torch.bfloat16))


def test_a_shared_file_stays_the_other_commits_own(tmp_path: Path) -> None:
    unit = Unit(number=0, part="", row_group=0, num_images=1)
    shared = {"captions": CommittedFile(path="../256/captions/a.arrow", rows=1, num_bytes=1, sha256="")}
    (tmp_path / "256" / "captions").mkdir(parents=True)
    (tmp_path / "256" / "captions" / "a.arrow").write_bytes(b"x")
    folder = Folder(str(tmp_path / "512"))
    for expected in (True, False):
        commit = commit_unit(folder, run_id="r", unit=unit, tables={}, shared=shared)
        assert (commit is not None) == expected
    assert folder.read("../256/captions/a.arrow") == b"x"
