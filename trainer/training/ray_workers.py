"""Training on Ray Train: workers that are replaced when they are lost, each running trainer.training.loop.

Every worker holds a GPU, or some cores, and all of them write and read the same run folder. A lost worker ends its group; Ray
starts a new one, which resumes from the last checkpoint, as any training does.
"""

import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from foundry.errors import UserError
from foundry.hardware import AUTO_VARIABLE, cpu_environment
from foundry.storage.folder import Folder, store_errors
from foundry.storage.locations import absolute, absolute_if_there, is_local_path
from foundry.units.cluster import RaySettings
from foundry.units.ray_session import check_visible, start_ray, wait_for_gpus
from trainer.config.data import is_query
from trainer.config.techniques import STORED
from trainer.config.train import TrainConfig
from trainer.monitoring.run_folder import STOP, StopSignals, printed_log
from trainer.training.start import run_path

LOGS = "/tmp/ray/session_latest/logs/train"
"""Folder of the workers' output on each node, unless Ray was started with another one."""
_LOOK_S = 0.5


def train_on_ray(config: TrainConfig) -> bool:
    """Trains a stage on `num_workers` workers; returns whether it is done, or was told to stop. Raises UserError."""
    config = with_absolute_paths(config)
    run = run_path(config)
    with store_errors(Folder(str(run))):
        run.mkdir(parents=True, exist_ok=True)
    start_ray(RaySettings(address=config.distributed.address))
    if wait_s := config.distributed.wait_for_gpus_s:
        wait_for_gpus(config.num_workers, timeout_s=wait_s, setting="distributed.wait_for_gpus_s")
    teacher = config.repa.teacher or ""
    paths = (str(run), config.features, *config.data.paths, *([teacher] if Path(teacher).is_absolute() else []))
    check_visible({path: "" for path in paths if is_local_path(path)})
    use_gpu = ray.cluster_resources().get("GPU", 0) > 0 and config.device in ("auto", "cuda")
    if config.device == "cuda" and not use_gpu:
        raise UserError(f"cuda for {config.num_workers} workers: this Ray has no GPU", setting="device")
    try:
        with (
            printed_log(run, stage=config.stage, images=config.images),
            StopSignals() as stop,
        ):  # the workers' own output stays in Ray's files
            result = _finished(_trainer(config, run, use_gpu=use_gpu), run, stop)
    except ray.train.TrainingFailedError as error:
        if isinstance(found := getattr(error, "controller_failure", None), UserError):
            raise found from None
        raise UserError(
            f"training failed more than distributed.max_failures {config.distributed.max_failures} times; the last time: "
            f"{_last_line(error)}; the workers' logs are in {LOGS} on their nodes; the same command resumes from the last "
            "checkpoint"
        ) from error
    return bool(result.return_value)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same settings with absolute paths, also of the start, the encoders, and what samples are chosen by."""
    data = config.data

    def source(name: str | None) -> str | None:
        """A file's or a folder's absolute path; SQL stays as it is."""
        return absolute(name) if name and not is_query(name) else name

    return replace(
        config,
        features=absolute(config.features),
        run_dir=absolute(config.run_dir),
        init_from=absolute_if_there(config.init_from),
        text_encoder=absolute_if_there(config.text_encoder),
        vae=absolute_if_there(config.vae),
        repa=replace(config.repa, teacher=_absolute_teacher(config.repa.teacher)),
        data=replace(data, skip=source(data.skip), weights=source(data.weights), dataset=source(data.dataset)),
    )


def _absolute_teacher(name: str | None) -> str | None:
    return name if name == STORED else absolute_if_there(name)


def _finished(trainer: TorchTrainer, run: Path, stop: StopSignals) -> Result:
    """Runs trainer.fit() in a thread: in the main one, Ray would take Ctrl-C to end it without saving.

    A signal is passed on by the file that the workers look for; again and again, since workers that start, also after a loss,
    remove it.
    """
    done: Future[Result] = Future()

    def fit() -> None:
        try:
            done.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001 - raised again by result()
            done.set_exception(error)

    threading.Thread(target=fit, name="train", daemon=True).start()
    while not done.done():
        wait([done], timeout=_LOOK_S)
        if stop.received:
            (run / STOP).touch()
    return done.result()


def _trainer(config: TrainConfig, run: Path, *, use_gpu: bool) -> TorchTrainer:
    resources, distributed = _resources(config, use_gpu=use_gpu), config.distributed
    environment = {} if use_gpu else cpu_environment(num_threads=distributed.cpus_per_worker)
    environment |= {AUTO_VARIABLE: os.environ[AUTO_VARIABLE]} if AUTO_VARIABLE in os.environ else {}
    return TorchTrainer(
        _work,
        train_loop_config={"config": config},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=distributed.timeout_s),
        scaling_config=ScalingConfig(num_workers=config.num_workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run),
            failure_config=FailureConfig(max_failures=distributed.max_failures),
            callbacks=[_FailFast()],
            worker_runtime_env={"env_vars": environment},
        ),
    )


def _resources(config: TrainConfig, *, use_gpu: bool) -> dict[str, float]:
    """Resources of a worker. Raises UserError for more workers than GPUs: Ray would wait for them without end."""
    available = ray.cluster_resources()
    if use_gpu:
        if available["GPU"] < config.num_workers:
            raise UserError(
                f"{config.num_workers} workers: this Ray has {available['GPU']:.0f} GPUs, one for each worker",
                setting="num_workers",
            )
        return {"GPU": 1}
    return {"CPU": min(config.distributed.cpus_per_worker, available.get("CPU", 1) / config.num_workers)}


def _work(settings: dict[str, Any]) -> bool:
    """Trains on a worker; returns whether the stage is done, or was told to stop. Raises UserError."""
    from trainer.training.loop import train_here

    config: TrainConfig = settings["config"]
    device = str(get_device()) if config.device in ("auto", "cuda") else config.device
    return train_here(config, device=device)


class _FailFast(UserCallback):  # type: ignore[misc]  # Ray's is untyped
    """Stops Ray Train from restarting workers after a UserError, which would recur."""

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, Exception]) -> None:  # noqa: ARG002
        """Raises the UserError of a worker: an error of its controller ends Ray Train at once."""
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
