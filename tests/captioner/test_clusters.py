"""Several nodes: the same captions as on one machine, also when one of them goes away in the middle."""

import threading
import time
from pathlib import Path

import pytest

from foundry.storage.folder import Folder
from foundry.units.commits import committed_units, read_commits
from tests.captioner.conftest import caption, caption_plainly, run_arguments, save_pictures
from tests.ray_nodes import kill_node, ray_head, ray_node

pytestmark = pytest.mark.slow

NUM_IMAGES = 160


def digests(run: Path) -> list[str]:
    return [commit.files["captions"].sha256 for commit in read_commits(Folder(str(run)))]


def test_a_node_that_is_lost_costs_nothing(tmp_path: Path, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of one core, a replica on each; one node is killed. Its replica is left out, its units are done again."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    images = save_pictures(tmp_path / "images", count=NUM_IMAGES)
    alone, run = tmp_path / "alone", tmp_path / "run"
    assert caption_plainly(run_arguments(images, alone, tiny_llava))[0] == 0
    lost = threading.Event()
    with ray_head(num_cpus=1) as head, ray_node(head) as node:

        def lose_the_node() -> None:
            deadline = time.monotonic() + 200
            while len(committed_units(Folder(str(run)))) < 3 and time.monotonic() < deadline:
                time.sleep(0.02)
            if len(committed_units(Folder(str(run)))) < len(digests(alone)):
                kill_node(node)
                lost.set()

        watcher = threading.Thread(target=lose_the_node)
        watcher.start()
        arguments = run_arguments(images, run, tiny_llava, "--ray.num_replicas", "0", "--ray.address", head.address)
        code, output = caption(arguments)
        watcher.join()
    assert code == 0 and "Traceback" not in output, output
    assert lost.is_set(), "the node was to be lost in the middle"
    assert f"{NUM_IMAGES} planned = {NUM_IMAGES} captioned + 0 rejected" in output
    assert digests(run) == digests(alone)
