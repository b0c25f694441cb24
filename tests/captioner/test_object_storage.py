"""Images and run on object storage: the same captions as on a disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import ray

from captioner.config import CaptionConfig
from captioner.run import main
from dataset_builder.runs.status import read_status
from foundry.command_line import run_command
from foundry.storage.folder import Folder
from foundry.units.commits import read_commits
from tests.captioner.conftest import run_arguments, save_pictures
from tests.foundry.units.plain_loop import run_plainly
from tests.s3 import s3_bucket

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket() -> Iterator[str]:
    """Ray, which a command starts, ends before the server that its workers know of."""
    with s3_bucket() as bucket:
        yield bucket
        ray.shutdown()


def caption(arguments: Sequence[str]) -> int:
    """The command in this process: on Ray, unless units are worked off by a plain loop."""
    float32 = ("--generation.dtype", "float32")  # else Ray is started to see what devices it has
    return run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=[*arguments, *float32])


def digests(run: str) -> list[str]:
    return [commit.files["captions"].sha256 for commit in read_commits(Folder(run))]


def test_images_and_run_on_object_storage(
    tmp_path: Path, tiny_llava: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = save_pictures(tmp_path / "images", count=20), f"{bucket}/runs/one"
    (images / "broken.jpg").write_bytes(b"nonsense")
    Folder(bucket).filesystem.put(f"{images}/", f"{bucket}/images/", recursive=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foundry.units.run.run_job", run_plainly)
        assert caption(run_arguments(images, tmp_path / "local", tiny_llava)) == 0
        capsys.readouterr()
        assert caption(run_arguments(f"{bucket}/images", run, tiny_llava, "--limit", "8")) == 0
    assert "13 to do" in capsys.readouterr().out
    assert caption(run_arguments(f"{bucket}/images", run, tiny_llava)) == 0
    status = read_status(Folder(run))
    assert (status.planned, status.captioned, status.rejected_by_reason) == (21, 20, {"not_an_image": 1})
    assert digests(run) == digests(str(tmp_path / "local"))
