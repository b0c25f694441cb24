"""A sample that ends a training is left out by the command that the error names; all else stays where nothing is left out."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from foundry.errors import UserError
from tests.trainer.tiny_training import newest_weights, tiny_config, training_losses, write_store
from trainer.config.data import DataConfig
from trainer.config.ladder import Rung
from trainer.config.train import TrainConfig
from trainer.data.skip_list import read_skip_list, write_skip_list
from trainer.features.store import FeatureStore, SampleRequest
from trainer.fit import main, run
from trainer.monitoring.run_folder import LOG, NOT_FINITE


def _spoil(folder: Path, key: str) -> None:
    """Makes the first latent of a sample that is the first of its unit a NaN, in float16 and in bf16 alike."""
    for path in (folder / "latents").iterdir():
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if table["key"][0].as_py() == key:
            data = bytearray(path.read_bytes())
            start = data.find(table["latents"].chunk(0).buffers()[1].to_pybytes()[:64])
            data[start : start + 2] = b"\xc0\x7f"
            path.write_bytes(bytes(data))


def _same(first: TrainConfig, second: TrainConfig) -> bool:
    ours, theirs = newest_weights(first), newest_weights(second)
    return training_losses(first) == training_losses(second) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _keys(store: FeatureStore) -> Iterator[str]:
    for split in store.splits:
        for units in store.samples(split).values():
            for unit, rows in units:
                yield from store.read([SampleRequest(unit=unit, row=row) for row in range(rows)]).keys


def test_the_command_that_the_error_names_trains_to_the_end(tmp_path: Path) -> None:
    folder = write_store(tmp_path / "features")
    config = tiny_config(tmp_path)
    assert main(replace(config, ladder=(Rung(resolution=16, images=12, batch_size=4),))) == 0
    _spoil(folder, "u0r0")
    _spoil(folder, "u1r0")
    path = Path(config.run_folder) / NOT_FINITE
    command, met = "", set()
    for _ in range(2):  # each of the two ends it once
        argv = shlex.split(command)[3:]
        with pytest.raises(UserError, match=r"not finite at step \d+, .* samples u\dr0\); the last good .*0012; ") as error:
            _raise(argv) if argv else main(config)
        command = str(error.value).partition("to leave them out, run: ")[2]
        met |= set(re.findall(r"samples (u\dr0)\)", str(error.value)))
        assert read_skip_list(str(path)) == met  # the second list has the first one's key too
        assert all(bool(weight.isfinite().all()) for weight in newest_weights(config).values())
    assert met == {"u0r0", "u1r0"}
    assert command.startswith("python -m trainer.fit --config ") and command.endswith(f" --data.skip {path}")
    assert run(shlex.split(command)[3:]) == 0
    assert max(training_losses(config)) == 40 and all(
        bool(weight.isfinite().all()) for weight in newest_weights(config).values()
    )
    log = (Path(config.run_folder) / LOG).read_text()
    assert f"{path} leaves out 2 samples, by 2 keys" in log
    assert "are not those of the checkpoint (more features, or another data.skip or data.weights)" in log


def _raise(argv: list[str]) -> None:
    """The command in this process, whose error would else be printed."""
    found: list[TrainConfig] = []

    def keep(config: TrainConfig) -> int:
        found.append(config)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.fit.main", keep)
        assert run(argv) == 0
    main(found[0])


def test_with_a_list_of_samples_that_are_not_there_it_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    write_store(tmp_path / "features")
    (tmp_path / "none.txt").write_text("somebody-elses\n")
    plain = tiny_config(tmp_path)
    listed = replace(
        plain, run_dir=str(tmp_path / "listed"), data=DataConfig(loader_threads=1, skip=str(tmp_path / "none.txt"))
    )
    assert main(plain) == main(listed) == 0
    assert _same(plain, listed)


def test_a_training_that_leaves_samples_out_resumes_bit_for_bit(tmp_path: Path) -> None:
    write_store(tmp_path / "features")
    (tmp_path / "skip.txt").write_text("u0r3\nu1r5\nu2r0\n")  # the last one is a sample of the validation split
    data = DataConfig(loader_threads=1, skip=str(tmp_path / "skip.txt"))
    unbroken = tiny_config(tmp_path, data=data)
    broken = replace(unbroken, run_dir=str(tmp_path / "broken"))
    assert main(unbroken) == 0
    half = (Rung(resolution=16, images=20, batch_size=4),)
    assert main(replace(broken, ladder=half)) == main(broken) == 0
    assert _same(unbroken, broken)
    assert not _same(unbroken, _trained(replace(unbroken, run_dir=str(tmp_path / "all"), data=DataConfig(loader_threads=1))))


def _trained(config: TrainConfig) -> TrainConfig:
    assert main(config) == 0
    return config


@pytest.mark.parametrize("local", [True, False])
def test_a_store_is_read_as_if_the_samples_had_never_been(tmp_path: Path, local: bool) -> None:
    folder = str(write_store(tmp_path))
    if not local:
        import fsspec

        fsspec.filesystem("memory").put(folder, "/skipped", recursive=True)
        folder = "memory://skipped"
    whole = FeatureStore.open(folder)
    store = FeatureStore.open(folder, skip={"u0r0", "u0r4", "u3r5", "nowhere"})
    assert store.num_skipped == 3 and store.num_samples("train") == 10 and store.num_samples("validation") == 11
    assert list(_keys(store)) == [key for key in _keys(whole) if key not in ("u0r0", "u0r4", "u3r5")]
    assert store.content != whole.content == FeatureStore.open(folder, skip={"nowhere"}).content
    left = store.read([SampleRequest(unit=0, row=row, caption=1) for row in range(4)])
    same = whole.read([SampleRequest(unit=0, row=row, caption=1) for row in (1, 2, 3, 5)])
    assert left.keys == same.keys and left.texts == same.texts and torch.equal(left.mean, same.mean)
    assert left.captions is not None and same.captions is not None
    assert torch.equal(left.captions.tokens, same.captions.tokens)
    assert store.caption_names(0, 3) == ("dense", "alt_text")
    emptied = FeatureStore.open(folder, skip={f"u{unit}r{row}" for unit in (0, 2, 3) for row in range(6)})
    assert emptied.splits == ("train",) and emptied.samples("train") == {(12, 4): ((1, 6),)}


def test_lists_are_text_or_parquet(tmp_path: Path) -> None:
    text, parquet = tmp_path / "a.txt", tmp_path / "a.parquet"
    text.write_bytes(b"\xef\xbb\xbfa b/c.png\r\n\n d \nd\n")
    assert read_skip_list(str(text)) == {"a b/c.png", " d ", "d"}
    write_skip_list(text, ["b", "a", "b"])
    assert text.read_text() == "a\nb\n"
    pq.write_table(pa.table({"reason": ["x", "y"], "key": ["a", "é"]}), parquet)
    assert read_skip_list(str(parquet)) == {"a", "é"} and read_skip_list(None) == frozenset()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*list: no such file or folder; expected a text file with a sample's key on each line"),
        (b"\xff\xfea", "list is neither UTF-8 nor Parquet .* at byte 0"),
        (pa.table({"keys": ["a"]}), "list has no column key, found keys"),
        (pa.table({"key": [1]}), "the column key is int64"),
        (pa.table({"key": ["a", None]}), "the column key is string with 1 empty rows"),
        (b"PAR1 cut off", "cannot read .*list"),
    ],
)
def test_what_is_not_a_list_is_said_in_a_line(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "list"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        pq.write_table(content, path)
    with pytest.raises(UserError, match=message) as error:
        read_skip_list(str(path))
    assert "\n" not in str(error.value)
