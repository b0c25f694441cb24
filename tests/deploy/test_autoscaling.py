"""GPUs that are waited for: an autoscaler adds nodes for a run that asks, and what does not come is said in one line."""

import os
import subprocess
import sys

import pytest

from tests.deploy.commands import ROOT
from tests.ray_nodes import ray_head

pytestmark = pytest.mark.slow

RUN = """
from foundry.errors import UserError
from foundry.units.cluster import RaySettings
from foundry.units.ray_session import replicas_use_gpus, start_ray, wait_for_gpus
settings = RaySettings(wait_for_gpus=2, wait_for_gpus_s=120)
start_ray(settings)
import ray
print("gpus", ray.cluster_resources().get("GPU", 0), replicas_use_gpus(settings))
try:
    wait_for_gpus(3, timeout_s=2, setting="ray.wait_for_gpus_s")
except UserError as error:
    print("refused", error, error.setting)
"""


def test_a_run_waits_for_the_gpus_that_it_asks_for() -> None:
    own = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    with ray_head(num_cpus=1, environment=own, gpu_nodes=2) as head:
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            cwd=ROOT,
            env=own | {"RAY_ADDRESS": head.address},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "waiting for 2 GPUs, 120 s at most" in lines
    assert "gpus 2.0 True" in lines
    assert (
        "refused 3 GPUs did not get free within 2 s: this Ray has 2, 2 of them free; wait for fewer, or longer "
        "ray.wait_for_gpus_s" in lines
    )
