"""What a teacher sees is stored sample by sample, once, is read with the latents, and is refused where it is not of them."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file

from foundry.errors import NotFinite, UserError
from foundry.storage.folder import Folder
from foundry.units.commits import read_commits
from model.encoders.text_encoder import TextEncoderConfig
from model.encoders.vae import VAEConfig
from tests.foundry.units.plain_loop import run_plainly
from tests.trainer.tiny_techniques import save_tiny_teacher, technique_config, write_features
from tests.trainer.tiny_training import training_losses
from trainer.config.data import DataConfig
from trainer.config.running import CheckpointConfig
from trainer.features.config import PrecomputeConfig, TeacherConfig
from trainer.features.store import FeatureStore, SampleRequest
from trainer.features.teacher.job import StoredLatents, TeacherEncoders, TeacherJob
from trainer.features.teacher.preparation import prepare_teacher
from trainer.features.teacher.store import TEACHER_FILE, TeacherStore, teacher_folder
from trainer.fit import main
from trainer.monitoring.run_folder import read_metrics


def _precompute(root: Path, **changes: Any) -> PrecomputeConfig:
    settings: dict[str, Any] = {
        "dataset": "-",
        "out": str(root / "features"),
        "stage": "alignment",
        "resolution": [16],
        "vae": VAEConfig(name=str(root / "vae"), dtype="float32"),
        "text_encoder": TextEncoderConfig(name="-"),
        "teacher": TeacherConfig(name=str(root / "teacher"), dtype="float32", patch_px=4),
    }
    return PrecomputeConfig(**settings | changes)


def _see(config: PrecomputeConfig, units: Sequence[int] | None = None) -> TeacherJob:
    """The command's steps in this process, of all units or of some; returns the job."""
    (tasks,) = prepare_teacher(config, describe=TeacherEncoders.describe).values()
    run_plainly(tasks.job, [unit for unit in tasks.units if units is None or unit.number in units])
    return tasks.job


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features with what a teacher saw."""
    root = tmp_path_factory.mktemp("teacher")
    write_features(root)
    _see(_precompute(root))
    return root


def _copied(seen: Path, tmp_path: Path) -> Path:
    """Features that a test may damage."""
    shutil.copytree(seen / "features", tmp_path / "features")
    return tmp_path


def test_the_vectors_are_what_the_teacher_sees_in_the_means(seen: Path) -> None:
    store = FeatureStore.open(str(seen / "features/alignment/16"), with_teacher=True)
    teacher = _precompute(seen)
    engine = TeacherEncoders(tower=prepared_tower(seen), vae=teacher.vae).load()
    for unit, grid in ((0, (4, 4)), (1, (6, 2))):
        batch = store.read([SampleRequest(unit=unit, row=row) for row in (4, 1)], with_teacher=True)
        expected = F.normalize(engine.features(store.scale.to_latents(batch.mean.float()), grid), dim=2)
        assert batch.teacher is not None and batch.teacher.dtype == torch.float16
        assert batch.teacher.shape == (2, grid[0] * grid[1], 16)
        torch.testing.assert_close(batch.teacher.float(), expected, atol=2e-3, rtol=0)
    assert store.read([SampleRequest(unit=0, row=0)]).teacher is None


def prepared_tower(root: Path) -> Any:
    (tasks,) = prepare_teacher(_precompute(root), describe=TeacherEncoders.describe).values()
    assert tasks.units == []  # all are made
    return tasks.job.encoders.tower


def test_a_training_reads_them_resumes_bit_for_bit_and_stops_reading(
    seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = CheckpointConfig(every_images=8, keep_last=9)
    config = technique_config(seen, tmp_path / "whole", "repa", images=16, checkpoint=keep)
    config = replace(config, repa=replace(config.repa, teacher="stored", stop_share=0.75))
    assert main(config) == 0
    losses = [row.get("technique_losses") for row in read_metrics(Path(config.run_folder)) if row["kind"] == "train"]
    assert [loss is not None for loss in losses] == [True, True, True, False]
    resumed = replace(config, run_dir=str(tmp_path / "resumed"))
    half = f"checkpoints/{8:012d}"
    shutil.copytree(Path(config.run_folder) / half, Path(resumed.run_folder) / half)
    assert main(resumed) == 0
    assert training_losses(resumed) == {seen_: loss for seen_, loss in training_losses(config).items() if seen_ > 8}
    longer = replace(config, ladder=(replace(config.ladder[0], images=24),))
    with pytest.raises(UserError, match=r"repa.stored True then, False now"):
        main(replace(longer, repa=replace(config.repa, teacher=str(seen / "teacher"))))
    asked: list[int] = []
    read = TeacherStore.read

    def counted(
        store: TeacherStore, rows: Sequence[tuple[int, int]], keys: Sequence[str], *, pin: bool = False
    ) -> torch.Tensor:
        asked.append(len(rows))
        return read(store, rows, keys, pin=pin)

    monkeypatch.setattr(TeacherStore, "read", counted)
    early = replace(config, run_dir=str(tmp_path / "early"), repa=replace(config.repa, stop_images=8))
    assert main(early) == 0 and asked == [4, 4]


def test_left_out_samples_do_not_shift_the_others(seen: Path, tmp_path: Path) -> None:
    skip = tmp_path / "skip.txt"
    skip.write_text("u0r0\nu0r3\n")
    url = str(seen / "features/alignment/16")
    whole, less = (FeatureStore.open(url, skip=keys, with_teacher=True) for keys in ((), ("u0r0", "u0r3")))
    ours, theirs = (store.read([SampleRequest(unit=0, row=row)], with_teacher=True) for store, row in ((whole, 4), (less, 2)))
    assert ours.keys == theirs.keys == ["u0r4"] and torch.equal(ours.teacher, theirs.teacher)  # type: ignore[arg-type]
    config = technique_config(seen, tmp_path, "repa", images=8, data=DataConfig(skip=str(skip)))
    assert main(replace(config, repa=replace(config.repa, teacher="stored"))) == 0


def test_what_is_not_of_these_features_is_refused_in_a_line(seen: Path, tmp_path: Path) -> None:
    root = _copied(seen, tmp_path)
    config = technique_config(root, tmp_path, "repa", images=8)
    config = replace(config, repa=replace(config.repa, teacher="stored"))
    folder = teacher_folder(str(root / "features/alignment/16"))
    path = Path(folder.path(TEACHER_FILE))
    record = json.loads(path.read_text())
    for change, words in [
        ({"patch_px": 8}, "in cells of 8 px, and a patch of the network is 4 px"),
        ({"features": "other"}, "is of other features"),
        ({"schema_version": 9}, "version 9, this program reads 1"),
    ]:
        path.write_text(json.dumps(record | change))
        with pytest.raises(UserError, match=rf"^[^\n]*{words}[^\n]*$"):
            main(config)
    path.write_text(json.dumps(record))
    Path(folder.path("commits/00000001.json")).unlink()
    with pytest.raises(UserError, match=r"has not seen 1 unit of .*trainer.precompute.*--teacher.name"):
        main(config)
    shutil.rmtree(folder.root)
    with pytest.raises(UserError, match="holds no features of a teacher, which .* make them with python -m trainer.precompute"):
        main(config)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"vae": VAEConfig(name="mini"), "teacher": TeacherConfig(name=str(seen / "teacher"))}, "come from another VAE"),
        ({"teacher": TeacherConfig(name=str(seen / "teacher"), patch_px=5)}, "cells of 5 px do not cut images"),
        ({"teacher": TeacherConfig(name="nowhere")}, "there is no vision tower in"),
    ]
    for change, words in refused:
        with pytest.raises(UserError, match=words):
            prepare_teacher(
                _precompute(root, **{"vae": VAEConfig(name=str(seen / "vae"), dtype="float32")} | change),
                describe=TeacherEncoders.describe,
            )


def test_features_of_another_teacher_are_not_mixed_in(seen: Path, tmp_path: Path) -> None:
    root = _copied(seen, tmp_path)
    other = TeacherConfig(name=str(save_tiny_teacher(tmp_path / "other", seed=1)), dtype="float32", patch_px=4)
    config = _precompute(seen, out=str(root / "features"), teacher=other)
    with pytest.raises(UserError, match=r"features/alignment/16/teacher holds what .* saw, expected .*: remove "):
        _see(config)
    moved = TeacherConfig(name=str(shutil.copytree(seen / "teacher", tmp_path / "moved")), dtype="float32", patch_px=4)
    assert _see(replace(config, teacher=moved)).info.name == str(seen / "teacher")


def test_units_that_came_later_are_added(tmp_path: Path) -> None:
    write_features(tmp_path)
    config = _precompute(tmp_path)
    _see(config, units=[0, 2])
    (tasks,) = prepare_teacher(config, describe=TeacherEncoders.describe).values()
    assert [unit.number for unit in tasks.units] == [1, 3]
    _see(config)
    assert FeatureStore.open(str(tmp_path / "features/alignment/16"), with_teacher=True).missing_units == 0


def test_a_sample_that_the_teacher_cannot_see_is_named_and_trained_only_by_mistake(
    seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _copied(seen, tmp_path)
    shutil.rmtree(root / "features/alignment/16/teacher")
    process = TeacherJob.process

    def blind(job: TeacherJob, engine: Any, payload: StoredLatents, *, one_by_one: bool) -> Any:
        found = process(job, engine, payload, one_by_one=one_by_one)
        found[2] = float("nan")
        return found

    monkeypatch.setattr(TeacherJob, "process", blind)
    _see(_precompute(seen, out=str(root / "features")))
    commits = read_commits(Folder(str(root / "features/alignment/16/teacher")))
    assert all(commit.rejected == {"not_finite": 1} and commit.planned == 6 for commit in commits)
    config = technique_config(root, tmp_path, "repa", images=40, batch_size=4)
    with pytest.raises(NotFinite, match=r"samples u\dr2[^u]*; .*--data.skip"):
        main(replace(config, repa=replace(config.repa, teacher="stored")))


def test_a_teacher_that_answers_nan_is_refused_before_the_first_unit(tmp_path: Path) -> None:
    write_features(tmp_path)
    (tasks,) = prepare_teacher(_precompute(tmp_path), describe=TeacherEncoders.describe).values()
    engine = tasks.job.load_engine()
    tasks.job.check(engine)
    weights = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.bias"][0] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="the teacher answers NaN or infinity to latents of zeros"):
        tasks.job.check(tasks.job.load_engine())
