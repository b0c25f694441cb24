"""Images and run on object storage: the same captions as on a disk."""

from pathlib import Path

import pytest

from captioner.status import read_status
from dataset_builder.storage import Folder
from dataset_builder.units import read_commits
from tests.captioner.conftest import caption, run_arguments, save_pictures
from tests.s3 import s3_bucket

pytestmark = pytest.mark.slow


def digests(run: str) -> list[str]:
    return [commit.files["captions"].sha256 for commit in read_commits(Folder(run))]


def test_images_and_run_on_object_storage(tmp_path: Path, tiny_llava: Path) -> None:
    images = save_pictures(tmp_path / "images", count=20)
    (images / "broken.jpg").write_bytes(b"nonsense")
    assert caption(run_arguments(images, tmp_path / "local", tiny_llava))[0] == 0
    with s3_bucket() as bucket:
        Folder(bucket).filesystem.put(f"{images}/", f"{bucket}/images/", recursive=True)
        run = f"{bucket}/runs/one"
        code, output = caption(run_arguments(f"{bucket}/images", run, tiny_llava, "--limit", "8"))
        assert code == 0 and "13 to do" in output, output
        code, output = caption(run_arguments(f"{bucket}/images", run, tiny_llava))
        assert code == 0, output
        status = read_status(Folder(run))
        assert (status.planned, status.captioned, status.rejected_by_reason) == (21, 20, {"not_an_image": 1})
        assert digests(run) == digests(str(tmp_path / "local"))
