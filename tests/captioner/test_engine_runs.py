"""Engines from the command line, killed (transformers: test_kills.py), and as a Ray job, stopped: resumed, they caption alike.
Jobs also find the code where it is on the nodes already, as KubeRay starts them.

vLLM needs VLLM_PYTHON, the interpreter of an environment that has it (docs/captioning.md).
"""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from captioner.engines.generation import GenerationSettings
from captioner.engines.model_source import resolve_model
from captioner.engines.transformers_engine import TransformersModel
from captioner.prompt_sets import PROMPT_SETS
from dataset_builder.runs.status import read_status
from dataset_builder.sql.run_files import open_run
from foundry.storage.folder import Folder
from foundry.units.commits import committed_units
from tests.captioner.conftest import caption_plainly, run_arguments, save_pictures, start_captioner
from tests.ray_nodes import RAY, free_ports, ray_head

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
VLLM_PYTHON = os.environ.get("VLLM_PYTHON", "")
COUNT = 96
ENGINES = [
    "transformers",
    "endpoint",
    pytest.param("vllm", marks=pytest.mark.skipif(not VLLM_PYTHON, reason="VLLM_PYTHON names no environment with vLLM")),
]
FLOAT32 = ["--generation.dtype", "float32"]


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("no_proxy", "127.0.0.1")
        environment.setenv("HF_HUB_OFFLINE", "1")
        environment.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        environment.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "unseen"
    options = ["--count", str(COUNT), "--seed", "7", "--split", "unseen", "--out", str(folder)]
    subprocess.run([sys.executable, "-m", "examples.openmoji.scenes", *options], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def expected(scenes: Path) -> dict[str, str]:
    """The captions by the engine alone, in this process."""
    files = sorted(scenes.rglob("*.jpg"))
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    engine = TransformersModel(**vars(resolve_model("mini"))).load(GenerationSettings(dtype="float32", max_new_tokens=12))
    keys = [file.stem for file in files]
    said = engine.caption(images, [PROMPT_SETS["paper"].prompts[0].text] * len(files), keys)
    return {key: one.text for key, one in zip(keys, said, strict=True)}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of captioner.serve."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "captioner.serve", "--model", "mini", "--port", str(port), *FLOAT32]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture
def options(engine: str, request: pytest.FixtureRequest) -> list[str]:
    """The options that choose an engine."""
    if engine == "endpoint":
        return ["--engine", engine, "--endpoint.url", request.getfixturevalue("server")]
    if engine == "vllm":
        vllm = ["--vllm.max_model_len", "512", "--vllm.args", '{"enforce_eager": true}']
        return ["--engine", engine, "--ray.replica_python", VLLM_PYTHON, *vllm, *FLOAT32]
    return ["--engine", engine, *FLOAT32]


def captions(run: Path) -> dict[str, str]:
    with open_run(str(run)) as database:
        return {row["key"]: row["caption_raw"] for row in database.fetch("SELECT key, caption_raw FROM captions").to_pylist()}


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_a_run_that_was_killed_resumes_to_the_same_captions(
    tmp_path: Path, scenes: Path, expected: dict[str, str], options: list[str]
) -> None:
    run = tmp_path / "run"
    arguments = run_arguments(scenes, run, Path("mini"), *options)
    process = start_captioner(arguments)
    deadline = time.monotonic() + 300
    while len(committed_units(Folder(str(run)))) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    engines = [child for child in psutil.Process(process.pid).children(recursive=True) if "VLLM::" in " ".join(child.cmdline())]
    assert bool(engines) == ("vllm" in options)
    process.kill()
    process.communicate()
    interrupted = len(committed_units(Folder(str(run))))
    assert 0 < interrupted < COUNT // 8, "the kill came too late to interrupt anything"
    _, alive = psutil.wait_procs(engines, timeout=60)
    assert not alive, "an engine outlives its replica, and holds the memory that the next one needs"
    code, output = caption_plainly(arguments)
    assert code == 0, output
    assert f"{COUNT} planned = {COUNT} captioned + 0 rejected" in output
    assert captions(run) == expected


class Jobs:
    """Jobs of a Ray head, by its HTTP interface, which is quick enough to stop a job in the middle."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._http = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def close(self) -> None:
        self._http.close()

    def submit(self, *command: str) -> str:
        """The id of the job; the code is shipped along."""
        job = f"job-{uuid.uuid4().hex}"
        done = self.call("--working-dir", ".", "--no-wait", "--submission-id", job, "--", *command)
        assert done.returncode == 0, done.stdout + done.stderr
        return job

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit`."""
        submit = [RAY, "job", "submit", "--address", self._address, *arguments]
        return subprocess.run(submit, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)

    def stop(self, job: str) -> None:
        self._http.post(f"/api/jobs/{job}/stop").raise_for_status()

    def status(self, job: str) -> str:
        return str(self._http.get(f"/api/jobs/{job}").raise_for_status().json()["status"])

    def wait_until(self, is_so: Callable[[], bool], job: str) -> None:
        deadline = time.monotonic() + 400
        while not is_so():
            assert self.status(job) != "FAILED" and time.monotonic() < deadline, self.logs(job)
            time.sleep(0.02)

    def logs(self, job: str) -> str:
        return str(self._http.get(f"/api/jobs/{job}/logs").raise_for_status().json()["logs"])


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    """Jobs of a Ray head that asks for a token, as `ray.init` does by itself."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        command = [RAY, "get-auth-token", "--generate"]
        token = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
        with ray_head(num_cpus=2, takes_jobs=True) as started:
            jobs = Jobs(started.jobs, token)
            yield jobs
            jobs.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_job_that_was_stopped_resumes_to_the_same_captions(
    *, jobs: Jobs, tmp_path: Path, scenes: Path, expected: dict[str, str], options: list[str]
) -> None:
    run = tmp_path / "run"
    command = ["python", "-m", "captioner.run", *run_arguments(scenes, run, Path("mini"), *options)]
    job = jobs.submit(*command)
    jobs.wait_until(lambda: len(committed_units(Folder(str(run)))) >= 2, job)
    jobs.stop(job)
    jobs.wait_until(lambda: jobs.status(job) == "STOPPED", job)
    assert 0 < len(committed_units(Folder(str(run)))) < COUNT // 8, "the job was stopped too late to interrupt anything"
    if "transformers" in options:
        job = jobs.submit(*command)
        jobs.wait_until(lambda: jobs.status(job) == "SUCCEEDED", job)
    else:  # once as a user does; a plain loop is quicker
        assert caption_plainly(command[3:])[0] == 0
    status = read_status(Folder(str(run)))
    assert (status.planned, status.captioned, status.remaining) == (COUNT, COUNT, 0)
    assert captions(run) == expected


def test_a_job_captions(jobs: Jobs, tmp_path: Path, tiny_llava: Path) -> None:
    images, run = save_pictures(tmp_path / "images", count=12), tmp_path / "run"
    done = jobs.call("--", "python", "-m", "captioner.run", *run_arguments(images, run, tiny_llava))
    assert done.returncode == 0, done.stdout + done.stderr
    status = read_status(Folder(str(run)))
    assert (status.planned, status.captioned, status.remaining) == (12, 12, 0)


def test_the_job_for_kuberay_captions(jobs: Jobs, tmp_path: Path) -> None:
    """The entry point and the runtime environment of deploy/kuberay/caption.yaml, submitted as KubeRay does, on other paths."""
    spec = yaml.safe_load((ROOT / "deploy" / "kuberay" / "caption.yaml").read_text())["spec"]
    words = spec["entrypoint"].split()
    images, run = save_pictures(tmp_path / "images", count=4), tmp_path / "run"
    here = {"/data/images": str(images), "/data/runs/photos": str(run), "/data/models/llava-1.5-7b-hf": "mini"}
    words = [here.get(word, word) for word in words]
    words[words.index("--ray.wait_for_gpus") + 1] = "0"  # there are none
    small = ["--generation.max_new_tokens", "4", "--ray.num_replicas", "1"]
    environment = json.dumps(yaml.safe_load(spec["runtimeEnvYAML"]))
    done = jobs.call("--runtime-env-json", environment, "--", *words, *small)
    assert done.returncode == 0, done.stdout + done.stderr
    status = read_status(Folder(str(run)))
    assert (status.planned, status.captioned, status.remaining) == (4, 4, 0)


def test_a_job_refuses_relative_paths(jobs: Jobs, tmp_path: Path, tiny_llava: Path) -> None:
    done = jobs.call("--", "python", "-m", "captioner.run", *run_arguments("photos", tmp_path / "run", tiny_llava))
    assert done.returncode != 0 and "photos: a relative path inside a Ray job" in done.stdout
