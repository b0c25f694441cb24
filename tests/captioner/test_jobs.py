"""The same command as a job on a running Ray with the package installed; test_engine_runs.py ships the code along."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dataset_builder.runs.status import read_status
from foundry.storage.folder import Folder
from tests.captioner.conftest import run_arguments, save_pictures
from tests.ray_nodes import RAY, ray_head

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def call(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address for jobs of a Ray head that asks for a token, as `ray.init` does by itself."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        call([RAY, "get-auth-token", "--generate"])
        with ray_head(num_cpus=2) as started:
            yield started.jobs


def test_a_job_captions(head: str, tmp_path: Path, tiny_llava: Path) -> None:
    images, run = save_pictures(tmp_path / "images", count=12), tmp_path / "run"
    submit = [RAY, "job", "submit", "--address", head, "--", "python", "-m", "captioner.run"]
    done = call([*submit, *run_arguments(images, run, tiny_llava)])
    assert done.returncode == 0, done.stdout + done.stderr
    status = read_status(Folder(str(run)))
    assert (status.planned, status.captioned, status.remaining) == (12, 12, 0)


def test_the_job_for_kuberay_captions(head: str, tmp_path: Path) -> None:
    """The entry point and the runtime environment of deploy/kuberay/caption.yaml, submitted as KubeRay does, on other paths."""
    job = yaml.safe_load((ROOT / "deploy" / "kuberay" / "caption.yaml").read_text())["spec"]
    words = job["entrypoint"].split()
    images, run = save_pictures(tmp_path / "images", count=4), tmp_path / "run"
    here = {"/data/images": str(images), "/data/runs/photos": str(run), "/data/models/llava-1.5-7b-hf": "mini"}
    words = [here.get(word, word) for word in words]
    words[words.index("--ray.wait_for_gpus") + 1] = "0"  # there are none
    small = ["--generation.max_new_tokens", "4", "--ray.num_replicas", "1"]
    environment = yaml.safe_load(job["runtimeEnvYAML"])
    submit = [RAY, "job", "submit", "--address", head, "--runtime-env-json", json.dumps(environment), "--"]
    done = call([*submit, *words, *small])
    assert done.returncode == 0, done.stdout + done.stderr
    status = read_status(Folder(str(run)))
    assert (status.planned, status.captioned, status.remaining) == (4, 4, 0)


def test_a_job_refuses_relative_paths(head: str, tmp_path: Path, tiny_llava: Path) -> None:
    submit = [RAY, "job", "submit", "--address", head, "--", "python", "-m", "captioner.run"]
    done = call([*submit, *run_arguments("photos", tmp_path / "run", tiny_llava)])
    assert done.returncode != 0 and "photos: a relative path inside a Ray job" in done.stdout
