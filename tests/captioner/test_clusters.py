"""Several nodes, and object storage: the same captions as on one machine."""

import threading
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from captioner.status import read_status
from dataset_builder.storage import Folder
from dataset_builder.units import committed_units, read_commits
from tests.captioner.conftest import caption, run_arguments, save_pictures
from tests.s3 import s3_bucket

pytestmark = pytest.mark.slow


def digests(run: str) -> list[str]:
    return [commit.files["captions"].sha256 for commit in read_commits(Folder(run))]


def test_a_node_that_is_lost_costs_nothing(tmp_path: Path, tiny_llava: Path) -> None:
    images = save_pictures(tmp_path / "images", count=160)
    assert caption(run_arguments(images, tmp_path / "alone", tiny_llava))[0] == 0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        run = tmp_path / "run"
        lose = threading.Thread(target=remove_when_working, args=(cluster, node, Folder(str(run))))
        lose.start()
        arguments = run_arguments(images, run, tiny_llava, "--ray.num_replicas", "2", "--ray.address", cluster.address)
        code, output = caption(arguments)
        lose.join()
    finally:
        cluster.shutdown()
    assert code == 0, output
    assert "160 planned = 160 captioned + 0 rejected" in output
    assert digests(str(run)) == digests(str(tmp_path / "alone"))


def remove_when_working(cluster: Cluster, node: object, run: Folder) -> None:
    deadline = time.monotonic() + 120
    while len(committed_units(run)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)


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
