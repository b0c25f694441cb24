"""Scripts for Slurm with stand-ins for srun, scontrol and sbatch: what they run, how they stop, queue again and resume."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from tests.deploy.commands import DEPLOY, ROOT, commands, parses
from tests.trainer.tiny_training import tiny_config, training_losses, write_store
from trainer.config.running import CheckpointConfig, WatchConfig

IMAGES = 1200
SCRIPTS = ("caption", "features", "train_ray", "train_torchrun")
SETTINGS = {
    "caption": {"IMAGES": "/shared/images", "OUT": "/shared/runs/photos", "MODEL": "/shared/llava"},
    "features": {"DATASET": "/shared/dataset", "OUT": "/shared/features", "STAGE": "alignment", "MODEL": "/shared/pixart"},
    "train_ray": {"FEATURES": "/shared/features", "RUN_DIR": "/shared/runs", "STAGE": "alignment"},
    "train_torchrun": {"FEATURES": "/shared/features", "RUN_DIR": "/shared/runs", "STAGE": "alignment"},
}
MORE = {
    "caption": ["--limit", "7"],
    "features": ["--ray.num_replicas", "2"],
    "train_ray": ["--seed", "3"],
    "train_torchrun": ["--seed", "3"],
}
SBATCH = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "exclusive", "time", "requeue", "open-mode", "signal"}
STAND_INS = {
    "scontrol": """
echo "scontrol $*" >> "$SAID"
if [ "$1" = show ]; then printf '127.0.0.1\\nnode-2\\n'; fi
""",
    # Options go to srun, the rest is run as Slurm runs it: in a process of its own, to which srun hands signals on.
    "srun": """
echo "srun $*" >> "$SAID"
while [[ "$1" == --* ]]; do shift; done
[ -n "${STEP:-}" ] && set -- bash -c "$STEP"
"$@" &
task=$!
trap 'kill -TERM $task' TERM
wait $task; code=$?
while kill -0 $task 2>/dev/null; do wait $task; code=$?; done
exit $code
""",
    "sbatch": """
while [[ "$1" == --* ]]; do shift; done
exec bash "$@"
""",
}


class Slurm:
    """A job's surroundings: stand-ins on the path, Slurm's variables, and the commands that were called."""

    def __init__(self, folder: Path) -> None:
        self.said = folder / "said"
        programs = folder / "bin"
        programs.mkdir()
        for name, text in STAND_INS.items():
            (programs / name).write_text(f"#!/bin/bash{text}")
            (programs / name).chmod(0o755)
        venv = folder / "venv" / "bin"
        venv.mkdir(parents=True)
        (venv / "activate").write_text(f'PATH="{programs}:{Path(sys.executable).parent}:$PATH"\n')
        self.environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "SAID": str(self.said),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "40123",
            "SLURM_JOB_NODELIST": "node-[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_GPUS_ON_NODE": "8",
            "VENV": str(folder / "venv"),
        }

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """The script as sbatch starts it, in a process of its own."""
        return subprocess.Popen(
            ["sbatch", "--requeue", str(DEPLOY / "slurm" / f"{script}.sh"), *arguments],
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def calls(self, program: str) -> list[str]:
        """What a program was called with."""
        lines = self.said.read_text().splitlines() if self.said.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{program} ")]


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[str], *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_a_command_that_parses(slurm: Slurm, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    process = slurm.start(script, *MORE[script], **SETTINGS[script], STEP="true")
    assert process.communicate(timeout=60)[0] == "" and process.returncode == 0
    (said,) = slurm.calls("srun")
    ((module, words),) = commands(said)
    assert parses(module, words, monkeypatch)
    assert words[-2:] == MORE[script]
    launcher = said.split(" -m ")[0].split()
    if "torchrun" in launcher:
        from torch.distributed.run import parse_args

        taken = parse_args([*launcher[launcher.index("torchrun") + 1 :], "-m", module])
        assert (taken.nnodes, taken.nproc_per_node, taken.rdzv_endpoint) == ("2", "8", "127.0.0.1:20123")
    else:
        assert launcher == ["ray", "symmetric-run", "--address", "127.0.0.1:20123", "--min-nodes", "2", "--", "python"]
        assert words[words.index("127.0.0.1:20123") - 1] in ("--ray.address", "--distributed.address")
    if script == "train_ray":
        assert words[words.index("--num_workers") + 1] == "16"


@pytest.mark.parametrize("script", SCRIPTS)
def test_options_of_sbatch(script: str) -> None:
    text = (DEPLOY / "slurm" / f"{script}.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert len(options) == text.count("#SBATCH") and set(options) == SBATCH
    assert options["signal"] == "B:USR1@600" and options["open-mode"] == "append"


def test_what_is_not_set_is_named_before_anything_runs(slurm: Slurm) -> None:
    process = slurm.start("train_ray", STAGE="alignment")
    assert "error: RUN_DIR FEATURES must be set" in process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert slurm.calls("srun") == []


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, ["requeue 40123"]), (signal.SIGTERM, [])])
def test_captioning_ends_at_once_and_is_queued_again_before_the_time_limit(
    slurm: Slurm, sent: signal.Signals, requeued: list[str]
) -> None:
    step = 'trap "echo ended; exit 143" TERM; echo begun; while true; do sleep 0.1; done'
    process = slurm.start("caption", **SETTINGS["caption"], STEP=step)
    wait_until(lambda: slurm.calls("srun") != [], process)
    time.sleep(0.3)
    process.send_signal(sent)
    output = process.communicate(timeout=60)[0]
    assert "ended" in output
    assert process.returncode == 143
    assert [call for call in slurm.calls("scontrol") if "show" not in call] == requeued


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_of_a_step_is_that_of_the_job(slurm: Slurm, code: int) -> None:
    process = slurm.start("caption", **SETTINGS["caption"], STEP=f"exit {code}")
    process.communicate(timeout=60)
    assert process.returncode == code
    assert [call for call in slurm.calls("scontrol") if "show" not in call] == []


@pytest.mark.slow
def test_a_training_is_stopped_queued_again_and_resumes_to_its_end(slurm: Slurm, tmp_path: Path) -> None:
    write_store(tmp_path / "features")
    config = tiny_config(
        tmp_path,
        images=IMAGES,
        checkpoint=CheckpointConfig(every_images=IMAGES),
        watch=WatchConfig(every_steps=1, validate_every_images=0, sample_every_images=0),
    )
    settings = tmp_path / "train.yaml"
    settings.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config)))))
    own = {"FEATURES": config.features, "RUN_DIR": config.run_dir, "STAGE": "alignment"}
    own |= {"SLURM_JOB_NUM_NODES": "1", "GPUS_PER_NODE": "1"}
    run = Path(config.run_folder)
    process = slurm.start("train_torchrun", "--config", str(settings), **own)
    wait_until(lambda: bool(training_losses(config)) if run.exists() else False, process)
    process.send_signal(signal.SIGUSR1)  # as Slurm does ten minutes before the time limit
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and "is queued again" in output, output
    assert [call for call in slurm.calls("scontrol") if "show" not in call] == ["requeue 40123"]
    seen = max(training_losses(config))
    assert 0 < seen < IMAGES, "stopped too late to interrupt anything"
    again = slurm.start("train_torchrun", "--config", str(settings), **own, SLURM_RESTART_COUNT="1")
    output = again.communicate(timeout=120)[0]
    assert again.returncode == 0, output
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    assert [start["images_seen"] for start in starts] == [0, seen], "steps are lost, or done twice"
    assert max(training_losses(config)) == IMAGES
