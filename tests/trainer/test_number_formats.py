"""Number formats: what `auto` chooses is recorded, kept by whatever resumes, and no obstacle between kinds of machines."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

from foundry.hardware import AUTO_VARIABLE
from foundry.storage.folder import Folder
from model.encoders.text_encoder import TextEncoderConfig
from model.encoders.vae import VAEConfig
from model.generation.pipeline_parts import RuntimeConfig
from model.sampling import SamplingConfig
from tests.foundry.units.plain_loop import run_plainly
from tests.model.tiny_parts import save_tiny_checkpoint
from tests.trainer import toy_benchmark
from tests.trainer.tiny_sources import make_features, tiny_precompute, write_dataset
from tests.trainer.tiny_training import tiny_config, write_store
from trainer import evaluate
from trainer.config.ladder import Rung
from trainer.evaluation.config import EvaluateConfig
from trainer.features.config import PrecomputeConfig
from trainer.features.info import FEATURES_FILE, FeaturesInfo, read_info
from trainer.features.job import Encoders
from trainer.features.preparation import prepare
from trainer.fit import main as train
from trainer.monitoring.run_folder import LOG

BOTH = pytest.mark.parametrize("format_here", ["float32", "bfloat16"])


def _auto_is(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setenv(AUTO_VARIABLE, dtype)


def _precision(config_file: Path) -> str:
    return str(yaml.safe_load(config_file.read_text())["precision"])


@BOTH
def test_a_resumed_training_keeps_what_it_began_with(
    format_here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(tmp_path / "features")
    longer = tiny_config(tmp_path, images=24, precision="auto")
    shorter = dataclasses.replace(longer, ladder=(Rung(resolution=16, images=12, batch_size=4),))
    _auto_is(monkeypatch, format_here)
    assert train(shorter) == 0
    run = Path(longer.run_folder)
    assert _precision(run / "config.yaml") == format_here
    assert f"1 worker, cpu, {format_here}" in capsys.readouterr().out.splitlines()[0]
    _auto_is(monkeypatch, "float32" if format_here == "bfloat16" else "bfloat16")
    assert train(longer) == 0
    assert _precision(run / "config.yaml") == format_here
    resumed = capsys.readouterr().out.splitlines()
    assert "resumes" in resumed[0] and resumed[0].endswith(f"cpu, {format_here}")
    assert (": precision float32 is quicker here" in resumed[1]) is (format_here == "bfloat16")
    assert "quicker here" not in "".join(resumed[2:]) and resumed[0] in (run / LOG).read_text()


def test_an_explicit_precision_is_followed_when_a_training_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "features")
    _auto_is(monkeypatch, "bfloat16")
    assert train(tiny_config(tmp_path, images=12, precision="auto")) == 0
    again = tiny_config(tmp_path, images=24, precision="float32")
    assert train(again) == 0 and _precision(Path(again.run_folder) / "config.yaml") == "float32"


def _in_auto(config: PrecomputeConfig) -> PrecomputeConfig:
    return dataclasses.replace(
        config,
        vae=dataclasses.replace(config.vae, dtype="auto"),
        text_encoder=dataclasses.replace(config.text_encoder, dtype="auto"),
    )


@BOTH
def test_features_say_what_they_were_computed_in_and_are_finished_in_it(
    format_here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _in_auto(tiny_precompute(tmp_path, write_dataset(tmp_path / "dataset")))
    _auto_is(monkeypatch, format_here)
    prepared = prepare(config, describe=Encoders.describe)
    run_plainly(prepared.job, prepared.units[:2])
    info = read_info(Folder(f"{config.out}/alignment/32"))
    assert (info.vae_dtype, info.text_encoder_dtype) == (format_here, format_here)
    _auto_is(monkeypatch, "float32" if format_here == "bfloat16" else "bfloat16")
    rest = prepare(config, describe=Encoders.describe)
    assert len(rest.units) == len(prepared.units) - 2
    engine = rest.job.load_engine()
    assert engine.vae.model.dtype == engine.text_encoder.model.dtype == getattr(torch, format_here)  # type: ignore[union-attr]


def test_features_of_one_kind_of_machine_train_on_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    infos, trained = {}, {}
    for dtype in ("float32", "bfloat16"):
        _auto_is(monkeypatch, dtype)
        config = _in_auto(tiny_precompute(tmp_path, dataset, out=str(tmp_path / dtype)))
        make_features(config)
        infos[dtype] = read_info(Folder(f"{config.out}/alignment/32"))
        ladder = (Rung(resolution=32, images=24, batch_size=4),)
        trained[dtype] = tiny_config(tmp_path, ladder=ladder, features=config.out, run_dir=str(tmp_path / "runs"))
    assert infos["float32"].fingerprint == infos["bfloat16"].fingerprint
    assert infos["float32"].text_encoder_dtype == "float32" != infos["bfloat16"].text_encoder_dtype
    stopped = dataclasses.replace(trained["bfloat16"], ladder=(Rung(resolution=32, images=12, batch_size=4),))
    assert train(stopped) == 0
    resumed = dataclasses.replace(trained["float32"], precision="auto")  # in the middle of a step of the ladder
    assert train(resumed) == 0


def test_captions_are_encoded_in_training_by_what_this_machine_is_quick_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.monitoring.sample_grids import open_text_encoder

    config = _in_auto(tiny_precompute(tmp_path, write_dataset(tmp_path / "dataset"), captions="none"))
    _auto_is(monkeypatch, "bfloat16")
    make_features(config)
    info = read_info(Folder(f"{config.out}/alignment/32"))
    _auto_is(monkeypatch, "float32")
    assert open_text_encoder(tiny_config(tmp_path), info).model.dtype == torch.float32


def test_stores_of_before_are_read_with_the_fingerprint_that_they_have(tmp_path: Path) -> None:
    folder = write_store(tmp_path / "features", text_encoder_dtype="float32")
    record = json.loads((folder / FEATURES_FILE).read_text())
    now = read_info(Folder(str(folder)))
    of_before = now.fingerprints[1]
    assert record["fingerprint"] == now.fingerprint != of_before
    del record["vae_dtype"]
    (folder / FEATURES_FILE).write_text(json.dumps({**record, "fingerprint": of_before}))
    assert read_info(Folder(str(folder))).fingerprints == now.fingerprints
    in_bfloat16 = dataclasses.replace(now, text_encoder_dtype="bfloat16")
    assert set(in_bfloat16.fingerprints) == {now.fingerprint}  # what most stores of before have stays as it is
    quantised: FeaturesInfo = dataclasses.replace(now, text_encoder_dtype="float32/torchao")
    assert quantised.fingerprint != now.fingerprint


def test_each_part_follows_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.generation.pipeline_parts.resolve_dtype", lambda dtype, device: f"{dtype} on {device}")
    found = RuntimeConfig(device="cpu", text_encoder_device="meta").resolved()
    assert (found.dtype, found.text_encoder_dtype) == ("auto on cpu", "auto on meta")
    assert VAEConfig(name="a").dtype == TextEncoderConfig(name="a").dtype == "auto"


@BOTH
def test_a_resumed_evaluation_keeps_what_it_began_with(
    format_here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy_benchmark, "asked", [])
    config = EvaluateConfig(
        benchmark="tests.trainer.toy_benchmark",
        checkpoint=str(save_tiny_checkpoint(tmp_path / "tiny")),
        out=str(tmp_path / "out"),
        sampling=SamplingConfig(num_inference_steps=2),
    )
    _auto_is(monkeypatch, format_here)
    assert evaluate.main(config) == 0
    assert f"in {format_here}, judged in {format_here}" in capsys.readouterr().out.splitlines()[0]
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (record["dtype"], record["judge_dtype"]) == (format_here, format_here)
    _auto_is(monkeypatch, "float32" if format_here == "bfloat16" else "bfloat16")
    assert evaluate.main(config) == 0
    output = capsys.readouterr().out
    assert f"in {format_here}, judged in {format_here}" in output and "0 images drawn" in output
