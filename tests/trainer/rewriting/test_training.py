"""Training of a rewriter: killed and resumed it ends bit-equal; its pairs are those of the sources; it fits a checkpoint."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from dataset_builder.sql.dataset_files import open_stored
from foundry.command_line import run_command
from foundry.errors import UserError
from model.formats.checkpoint import read_pipeline_config
from model.rewriting.config import RewriteConfig
from model.rewriting.rewriting import open_prompt_rewriter
from tests.model.tiny_parts import save_tiny_checkpoint, save_tiny_t5
from trainer import fit_rewriter
from trainer.rewriting import training
from trainer.rewriting.config import FitRewriterConfig
from trainer.rewriting.pairs import Pair, read_pairs, split_pairs

NOUNS = ("owl", "key", "red owl", "blue key", "large owl", "small key", "red key", "blue owl")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewriter")
    save_tiny_checkpoint(folder)
    rows = [{"prompt": f"a {noun}", "caption": f"a {noun} on the left"} for noun in NOUNS]
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    return folder


def _fit(parts: Path, out: Path, *arguments: str) -> int:
    argv = [f"--pairs={parts / 'pairs.parquet'}", f"--text_encoder={parts / 't5'}", f"--out={out}", "--validation_pairs=2"]
    argv += ["--encoder_layers=2", "--decoder_layers=1", "--batch_size=4", "--checkpoint_steps=2", "--warmup_steps=0"]
    argv += ["--dtype=float32", "--max_caption_tokens=20", *arguments]
    return run_command(FitRewriterConfig, fit_rewriter.main, prog="python -m trainer.fit_rewriter", example="", argv=argv)


def _fit_until_killed(parts: Path, out: Path) -> None:
    """Dies right after the step 4, with what it learned since step 4's checkpoint unsaved."""
    original = training.batch_of_step

    def dies(pairs: list[Pair], *, step: int, batch_size: int, seed: int) -> list[Pair]:
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(pairs, step=step, batch_size=batch_size, seed=seed)

    training.batch_of_step = dies  # type: ignore[assignment]
    torch.set_num_threads(1)
    _fit(parts, out, "--steps=7")


def test_a_killed_training_ends_bit_equal(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _fit(parts, tmp_path / "whole", "--steps=7") == 0
    killed = multiprocessing.get_context("forkserver").Process(target=_fit_until_killed, args=(parts, tmp_path / "killed"))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "rewriter").exists()
    assert _fit(parts, tmp_path / "killed", "--steps=7") == 0
    assert "resumes after step 4" in capsys.readouterr().out
    whole, resumed = (load_file(tmp_path / name / "rewriter" / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert _fit(parts, tmp_path / "killed", "--steps=7") == 0
    assert "is finished" in capsys.readouterr().out
    (tmp_path / "killed" / "rewriter" / "rewriter.json").unlink()
    assert _fit(parts, tmp_path / "killed", "--steps=8") == 2
    assert "is of a training with other settings: give another folder (--out)" in capsys.readouterr().err


def test_it_learns_to_rewrite_and_the_checkpoint_names_it(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "own")
    arguments = ["--steps=120", "--lr=1e-2", "--checkpoint_steps=120", f"--checkpoint={checkpoint}"]
    assert _fit(parts, tmp_path / "rewriter", *arguments) == 0
    assert "names it as this checkpoint's rewriter" in capsys.readouterr().out
    rewriter = open_prompt_rewriter(RewriteConfig(model="checkpoint"), checkpoint=str(checkpoint))
    training_pairs, _ = split_pairs([Pair(f"a {noun}", f"a {noun} on the left") for noun in NOUNS], num_validation=2)
    prompts = [pair.prompt for pair in training_pairs]
    rewriting = rewriter.rewrite(prompts, cache=str(tmp_path / "cache"))
    assert rewriting.drawn(prompts) == tuple(f"{prompt} on the left" for prompt in prompts)

    path = checkpoint / "pipeline.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"rewriter": values["rewriter"] | {"fingerprint": "0" * 16}}))
    with pytest.raises(UserError, match="expects a rewriter with the fingerprint 0000000000000000"):
        open_prompt_rewriter(RewriteConfig(model="checkpoint"), checkpoint=str(checkpoint))
    path.write_text(json.dumps(values | {"text_encoder": values["text_encoder"] | {"fingerprint": "1" * 16}}))
    with pytest.raises(UserError, match="writes for a text encoder with the fingerprint .*, but this checkpoint's has 1111"):
        open_prompt_rewriter(RewriteConfig(model="checkpoint"), checkpoint=str(checkpoint))
    assert read_pipeline_config(checkpoint).rewriter.name == str((tmp_path / "rewriter" / "rewriter").resolve())


def test_validation_prompts_are_never_trained_on() -> None:
    pairs = [Pair(f"an owl {number % 5}", f"caption {number}") for number in range(20)]
    training_pairs, validation = split_pairs(pairs, num_validation=2)
    assert len(validation) == 2 and len(training_pairs) == 12
    assert not {pair.prompt for pair in validation} & {pair.prompt for pair in training_pairs}
    with pytest.raises(UserError, match="5 prompts, of which 5 are kept out: give more pairs"):
        split_pairs(pairs, num_validation=5)


def test_an_epoch_sees_each_pair_once() -> None:
    pairs = [Pair(str(number), "") for number in range(10)]
    seen = [pair for step in range(5) for pair in training.batch_of_step(pairs, step=step, batch_size=4, seed=1)]
    assert len(set(seen[:10])) == len(set(seen[10:])) == 10 and seen[:10] != seen[10:]


def test_captions_of_the_same_image_are_paired() -> None:
    config = FitRewriterConfig(out="", text_encoder="mini", captions=("tests/files/formats/run",), short=("dense",))
    with open_stored("tests/files/formats/run") as database:
        captions = database.fetch("SELECT DISTINCT caption FROM captions").to_pylist()
    # The run has one caption of each image: paired with itself, and with that of no other image.
    assert set(read_pairs(config)) == {Pair(row["caption"], row["caption"]) for row in captions}
    with pytest.raises(UserError, match="holds no image with a caption of short or medium and one of dense: .* ladder"):
        read_pairs(replace(config, short=("short", "medium")))


def test_a_file_without_the_columns_is_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["owl"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no")
    for name in ("a", "b", "c"):
        config = FitRewriterConfig(out="", text_encoder="mini", pairs=(str(tmp_path / f"{name}.parquet"),))
        with pytest.raises(UserError, match=f"{name}.parquet"):
            read_pairs(config)


def test_without_a_source_of_pairs_it_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = save_tiny_t5(tmp_path / "t5")
    argv = [f"--text_encoder={tiny}", f"--out={tmp_path / 'out'}"]
    assert run_command(FitRewriterConfig, fit_rewriter.main, prog="…", example="", argv=argv) == 2
    assert "captions or pairs: expected one of them" in capsys.readouterr().err
