"""Runtime environment of a job: a Ray head that has Ray alone, whose workers get libraries and code with the job."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.commands import DEPLOY, ROOT
from tests.deploy.environments import closure, environment_of, write_wheel
from tests.ray_nodes import ray_head

pytestmark = pytest.mark.slow

PROBE = """
import json, sys
import ray

@ray.remote
def look():
    import foundry.command_line, jsonargparse
    return {"code": foundry.command_line.__file__, "library": jsonargparse.__file__, "python": sys.executable}

ray.init(address="auto", logging_level="error")
print("found", json.dumps(ray.get(look.remote())))
"""


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    """Wheels of what parses our options, and a lock of them: what a cluster with Ray alone lacks."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    on_nodes = closure("ray[default]")
    missing = {name: one for name, one in closure("jsonargparse", "docstring-parser", "shtab").items() if name not in on_nodes}
    assert "jsonargparse" in missing
    lock = "# a lock of a few libraries\n"
    for one in missing.values():
        requirement, digest = write_wheel(one, folder)
        lock += f"{requirement} \\\n    --hash=sha256:{digest}\n"
    (tmp_path / "requirements.lock").write_text(lock)
    return folder


def test_workers_get_the_libraries_of_the_lock_and_the_code_of_the_checkout(wheelhouse: Path, tmp_path: Path) -> None:
    python = environment_of(tmp_path / "node", closure("ray[default]", "pip", "setuptools").values())
    lacking = subprocess.run([python, "-c", "import ray, jsonargparse"], capture_output=True, text=True, check=False, cwd="/")
    assert "No module named 'jsonargparse'" in lacking.stderr
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "foundry", checkout / "foundry", ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "probe.py").write_text(PROBE)
    settings = yaml.safe_load((DEPLOY / "ray" / "runtime_env_wheelhouse.yaml").read_text())
    settings["pip"] = str(tmp_path / settings["pip"])
    settings["env_vars"]["PIP_FIND_LINKS"] = str(wheelhouse)
    own = tmp_path / "runtime_env.yaml"
    own.write_text(yaml.safe_dump(settings))
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = clean | {"RAY_AUTH_MODE": "disabled"}
    with ray_head(num_cpus=2, python=python, environment=environment, takes_jobs=True) as head:
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.jobs]
        done = subprocess.run(
            [*submit, "--runtime-env", str(own), "--working-dir", str(checkout), "--", "python", "probe.py"],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.partition("found ")[2].splitlines()[0])
    assert "working_dir_files" in found["code"], "the code came with the job"
    assert found["library"].startswith(str(Path(found["python"]).parents[1])), "the library is of the worker's environment"
    assert Path(found["python"]).parents[1] != tmp_path / "node"
