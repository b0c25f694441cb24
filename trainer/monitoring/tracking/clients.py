"""Clients of trackers: each opens the run that its state names, or a new one, and sends rows to it.

A row is one record in all of them, so that a tracker can say how many it has. Keys come from the environment alone.
"""

import importlib.util
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.monitoring.tracking.rows import TrackedRow, Tracker, TrackerState

EVENTS = "tensorboard"
"""Folder of TensorBoard's events in a run's folder."""
_DEFAULT_PROJECT = "t2i-foundry"
_ROWS = "tracked_rows"
_MAX_PARAMS = 100
_PARAM_CHARS = 500


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of a run when it begins."""

    path: Path
    """Folder of the run."""
    name: str
    """Name of the run: RUNS/STAGE."""
    project: str | None
    """Project that was asked for."""
    settings: dict[str, Any]
    """All settings."""
    start: dict[str, Any]
    """Facts of the last start: time, origin, device, versions."""


class TensorBoardTracker:
    """TensorBoard: events in RUN/tensorboard, which are written anew at each start."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(run / EVENTS, ignore_errors=True)
        self.where = str(run / EVENTS)
        self._writer = SummaryWriter(self.where)

    def held(self, sent: int) -> int:  # noqa: ARG002 - as a Tracker
        """None: the folder is new."""
        return 0

    def log(self, row: TrackedRow, index: int) -> None:  # noqa: ARG002 - as a Tracker
        """Adds the row's values, the keys of a spike, or the image."""
        for name, value in row.scalars.items():
            self._writer.add_scalar(name, value, row.images_seen)
        if row.text:
            self._writer.add_text(row.kind, row.text, row.images_seen)
        if row.image is not None:
            self._writer.add_image(row.kind, _pixels(row.image), row.images_seen, dataformats="HWC")

    def flush(self) -> None:
        """Writes what is buffered."""
        self._writer.flush()

    def finish(self) -> None:
        """Closes the file."""
        self._writer.close()


class WandbTracker:
    """W&B, by WANDB_MODE online or offline. Offline, a folder of records is whole once it is closed; one that a kill cut off is
    set aside as incomplete-*, and what it held is sent again."""

    def __init__(self, run: TrackedRun, state: TrackerState) -> None:
        import wandb

        facts = state.facts or {"id": secrets.token_hex(4), "project": _project(run, "WANDB_PROJECT"), "settled": 0}
        if (unfinished := Path(facts.get("unfinished") or "")).name and unfinished.is_dir():
            unfinished.rename(unfinished.with_name(f"incomplete-{unfinished.name}"))
        state.keep(**facts)
        self._settled, self._state, self._image = facts["settled"], state, wandb.Image
        self._run = wandb.init(
            project=facts["project"],
            id=facts["id"],
            name=run.name,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(state.folder),
            config={"settings": run.settings},
            settings=wandb.Settings(console="off"),
        )
        self._offline = bool(self._run.offline)
        self.where = self._run.url or f"run {facts['id']} of the project {facts['project']}, in {Path(self._run.dir).parent}"
        state.keep(unfinished=str(Path(self._run.dir).parent) if self._offline else None)
        self._run.config.update({"start": run.start}, allow_val_change=True)
        self._run.define_metric("images_seen", hidden=True)
        self._run.define_metric("*", step_metric="images_seen")
        self._last = 0

    def held(self, sent: int) -> int:
        """W&B's own count, which offline is that of the folders that were closed."""
        self._last = min(sent, self._settled if self._offline else int(self._run.step))
        return self._last

    def log(self, row: TrackedRow, index: int) -> None:
        """Logs the row as one step of W&B's own count; images seen are the horizontal axis."""
        values: dict[str, Any] = {"images_seen": row.images_seen, **row.scalars}
        if row.text:
            values[f"{row.kind}/keys"] = row.text
        if row.image is not None:
            values[row.kind] = self._image(str(row.image))
        self._run.log(values)
        self._last = index + 1

    def finish(self) -> None:
        """Uploads, or closes the folder."""
        self._run.finish()
        self._state.keep(unfinished=None, settled=self._last)


class TrackioTracker:
    """trackio: its store on this machine, or the Space or server that TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names."""

    def __init__(self, run: TrackedRun, state: TrackerState) -> None:
        import trackio

        project = _project(run, "TRACKIO_PROJECT")
        facts = state.facts or {"project": project, "name": f"{run.name.replace('/', '-')}-{secrets.token_hex(2)}"}
        state.keep(**facts)
        self.where = f"run {facts['name']} of the project {facts['project']}"
        self._trackio = trackio
        self._run = trackio.init(
            **facts,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
            config={"settings": run.settings, "start": run.start},
        )
        self._is_local = not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"))

    def held(self, sent: int) -> int:
        """The rows of the store on this machine; another one is believed to have all."""
        from trackio.sqlite_storage import SQLiteStorage

        count = SQLiteStorage.get_log_count(self._run.project, self._run.name, self._run.id) if self._is_local else sent
        return min(sent, count)

    def log(self, row: TrackedRow, index: int) -> None:  # noqa: ARG002 - as a Tracker
        """Logs the row; its step counts images."""
        values: dict[str, Any] = dict(row.scalars)
        if row.text:
            values[f"{row.kind}/keys"] = row.text
        if row.image is not None:
            values[row.kind] = self._trackio.Image(str(row.image))
        self._run.log(values, step=row.images_seen)

    def finish(self) -> None:
        """Waits for the store."""
        self._trackio.finish()


class MlflowTracker:
    """MLflow: the server, database or folder of MLFLOW_TRACKING_URI, by default mlflow.db next to the run."""

    def __init__(self, run: TrackedRun, state: TrackerState) -> None:
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or _default_uri(run.path)
        self._client = MlflowClient(tracking_uri=uri)
        facts = state.facts
        if not facts:
            project = _project(run, "MLFLOW_EXPERIMENT_NAME")
            experiment = self._client.get_experiment_by_name(project)
            place = experiment.experiment_id if experiment else self._client.create_experiment(project, _artifacts(run.path))
            facts = {"id": self._client.create_run(place, run_name=run.name).info.run_id}
            self._log_settings(facts["id"], run.settings)
            state.keep(**facts)
        self._id = facts["id"]
        self.where = f"run {self._id} in {uri}"
        self._client.set_tag(self._id, f"start.{run.start.get('images_seen', 0)}", json.dumps(run.start))
        self._client.update_run(self._id, status="RUNNING")
        self._images = self._stored_images()

    def held(self, sent: int) -> int:
        """The number that the last row was stored with."""
        return min(sent, int(self._client.get_run(self._id).data.metrics.get(_ROWS, 0)))

    def log(self, row: TrackedRow, index: int) -> None:
        """Logs the row in one request, an image before it."""
        import time

        from mlflow.entities import Metric
        from PIL import Image

        if row.image is not None and row.images_seen not in self._images:
            with Image.open(row.image) as image:
                self._client.log_image(self._id, image.convert("RGB"), key=row.kind, step=row.images_seen)
        if row.text:
            self._client.log_text(self._id, row.text, f"{row.kind}/{row.images_seen}.txt")
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, row.images_seen) for name, value in row.scalars.items()]
        self._client.log_batch(self._id, metrics=[*metrics, Metric(_ROWS, index + 1, now, index + 1)])

    def finish(self) -> None:
        """Marks the run as finished; a resumed training opens it again."""
        self._client.set_terminated(self._id)

    def _log_settings(self, run_id: str, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:_PARAM_CHARS]) for name, value in _flat(settings).items()]
        for first in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(run_id, params=params[first : first + _MAX_PARAMS])

    def _stored_images(self) -> set[int]:
        names = [Path(file.path).name for file in self._client.list_artifacts(self._id, "images")]
        steps = set()
        for name in names:
            with suppress(ValueError, IndexError):
                steps.add(int(name.replace("+", "%").split("%step%")[1].split("%")[0]))
        return steps


CLIENTS: dict[str, Callable[[TrackedRun, TrackerState], Tracker]] = {
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
    "mlflow": MlflowTracker,
    "tensorboard": lambda run, _state: TensorBoardTracker(run.path),
}


def _default_uri(run: Path) -> str:
    """MLflow's database next to a run, where the environment names nothing."""
    return f"sqlite:///{run.absolute().parent / 'mlflow.db'}"


def _artifacts(run: Path) -> str | None:
    """Where images are stored: next to MLflow's database, or as the server says."""
    return None if os.environ.get("MLFLOW_TRACKING_URI") else (run.absolute().parent / "mlartifacts").as_uri()


def missing_packages(name: str) -> str:
    """What to install with pip for a tracker; empty where all is there."""
    needed = [name]
    if name == "mlflow" and (os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:").startswith("sqlite:"):
        needed += ["sqlalchemy", "alembic"]  # which mlflow has and mlflow-skinny lacks
    return name if any(_is_missing(module) for module in needed) else ""


def _is_missing(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is None or spec.origin is None  # a folder of that name is no package: wandb writes into one


def _project(run: TrackedRun, variable: str) -> str:
    return run.project or os.environ.get(variable) or _DEFAULT_PROJECT


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
