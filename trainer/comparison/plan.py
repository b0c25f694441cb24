"""Plan of a comparison: each arm is opened and checked before anything is trained, and gets its images at equal compute.

comparison.json of the folder keeps what is compared and the images of each arm, so that a resumed comparison has the same.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from foundry.errors import UserError
from foundry.storage.folder import Folder, new_file, store_errors
from foundry.wording import counted
from model.dit_config import DiTConfig
from trainer.comparison.arms import BASE, Arm, differences
from trainer.comparison.config import BATCH_SIZE, CompareConfig
from trainer.config.ladder import LadderPosition, Rung
from trainer.config.train import TrainConfig
from trainer.distributed import Workers
from trainer.features.info import FEATURES_FILE
from trainer.features.plan import VALIDATION
from trainer.features.store import FeatureStore
from trainer.monitoring.run_folder import RunFolder
from trainer.planning.work import TrainingWork, training_work
from trainer.training.networks import open_features
from trainer.training.rung_parts import RungParts, open_loader, open_rung
from trainer.training.start import check_workers, find_start, keep_scale, open_state
from trainer.training.techniques.opening import with_features_vae
from trainer.training.train_step import TrainState

IDENTITY = "comparison.json"
_SAMPLED_BATCHES = 4
"""Batches whose captions are counted for the planner."""
_MAY_CHANGE = (
    *("arms", "seeds", "features", "run_dir", "device", "num_workers", "distributed", "checkpoint", "teacher"),
    *("vae", "text_encoder", "licence"),
)
"""Settings of a comparison that may change in its folder: arms are compared by theirs, features by what they hold."""


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenedArm:
    """An arm that can be trained, and what the planner needs to know of it."""

    arm: Arm
    network: DiTConfig
    num_parameters: int
    """Parameters that are trained, those of techniques included."""
    same_start: float
    """Share of base's weights that this arm starts with too, from the same seed."""
    planned: TrainConfig
    """The settings as the planner reads them, with the VAE that a teacher needs."""
    caption_tokens: float
    """Mean tokens of a caption as training draws them."""
    teacher_width: int

    def work(self, images: int) -> TrainingWork:
        """The operations of a training on this many images. Raises UserError for a teacher that is unavailable."""
        rung = replace(self.planned.ladder[0], images=images)
        train = replace(self.planned, ladder=(rung,))
        return training_work(train, rung, self.network, caption_tokens=self.caption_tokens, teacher_width=self.teacher_width)

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return self.arm.config.ladder[0].batch_size


@dataclass(frozen=True, eq=False, kw_only=True)
class ArmPlan:
    """An arm with the images that each of its trainings sees."""

    opened: OpenedArm
    images: int
    """A whole number of steps."""
    step_s: float | None = None
    """Seconds of a step, as timed at the start; None if nothing was timed."""

    @property
    def arm(self) -> Arm:
        """The arm."""
        return self.opened.arm


def find_rung(config: CompareConfig) -> Rung:
    """The resolution that is trained, with its batch size: the ladder's, or that of the features.

    Raises UserError if there are none, or several.
    """
    images = config.num_images or BATCH_SIZE
    if config.ladder:
        return replace(config.ladder[0], images=config.num_images or config.ladder[0].images)
    folder = Folder(f"{config.features.rstrip('/')}/{config.stage}")
    found = _resolutions(folder)
    if len(found) == 1:
        return Rung(resolution=found[0], images=images, batch_size=BATCH_SIZE)
    if found:
        raise UserError(
            f"{folder.url} holds features of {', '.join(map(str, found))} px: give one as `[{{resolution: {found[0]}, "
            f"images: 100000, batch_size: {BATCH_SIZE}}}]`",
            setting="ladder",
        )
    raise UserError(
        f"{folder.url} holds no features: make them with trainer.precompute, or give another folder or stage",
        setting="features",
    )


def _resolutions(folder: Folder) -> list[int]:
    try:
        paths = folder.filesystem.ls(folder.root, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = sorted(int(name) for name in (Path(path).name for path in paths) if name.isdigit())
    return [name for name in names if folder.exists(f"{name}/{FEATURES_FILE}")]


def kept_images(config: CompareConfig, arms: Sequence[Arm]) -> dict[str, int]:
    """The images of the arms that the folder has already. Raises UserError if it holds another comparison or other files."""
    folder = Path(config.run_dir)
    path = folder / IDENTITY
    if not path.exists():
        if folder.is_dir() and any(not one.name.startswith(".") for one in folder.iterdir()):
            raise UserError(f"{folder} holds other files and no {IDENTITY}: give another folder", setting="run_dir")
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    was, now = found["settings"], _identity(config, arms[0])
    named = [name for name in {**was, **now} if "benchmark" in was or name not in ("benchmark", "evaluation")]  # may be added
    problems = [
        f"{name} {was.get(name, 'as by default')} then, {now.get(name, 'as by default')} now"
        for name in named
        if was.get(name) != now.get(name)
    ]
    for arm in arms:
        kept = found["arms"].get(arm.name)
        if kept is not None and kept["changes"] != _plain(arm.changes):
            problems.append(f"the arm {arm.name} {kept['changes']} then, {_plain(arm.changes)} now")
    if problems:
        raise UserError(
            f"{folder} holds another comparison ({'; '.join(problems)}): use its settings, or give another folder",
            setting="run_dir",
        )
    return {name: int(arm["images"]) for name, arm in found["arms"].items()}


def claim_folder(config: CompareConfig, plans: Sequence[ArmPlan]) -> None:
    """Records in the folder what is compared, and the images of each arm; arms of earlier commands stay."""
    path = Path(config.run_dir) / IDENTITY
    arms = json.loads(path.read_text(encoding="utf-8"))["arms"] if path.exists() else {}
    for plan in plans:
        record = {"changes": _plain(plan.arm.changes), "images": plan.images, "timed_step_s": plan.step_s}
        arms.setdefault(plan.arm.name, record)
    text = json.dumps({"settings": _identity(config, plans[0].arm), "arms": arms}, indent=1)
    with store_errors(Folder(config.run_dir)), new_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def _identity(config: CompareConfig, base: Arm) -> dict[str, Any]:
    """Settings that all arms of a folder share, in plain JSON: the settings that are not as by default, and the features."""
    (rung,) = base.config.ladder
    store = open_features(base.config, rung)
    settings = dict(differences(CompareConfig(arms=config.arms, num_images=1), config))
    kept = {name: value for name, value in settings.items() if name.split(".")[0] not in _MAY_CHANGE}
    ladder = [asdict(one) for one in config.ladder]
    return _plain(kept | {"ladder": ladder, "resolution": rung.resolution, "content of the features": _content(store)})


def _content(store: FeatureStore) -> str:
    return f"{store.info.fingerprint} {store.content}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON returns them."""
    found: dict[str, Any] = json.loads(json.dumps(dict(values)))
    return found


def open_arms(arms: Sequence[Arm], *, num_workers: int) -> list[OpenedArm]:
    """Opens each arm as its training will, on the CPU, and closes it again. Raises UserError for one that cannot be trained."""
    found: list[OpenedArm] = []
    base: dict[str, torch.Tensor] = {}
    for arm in arms:
        try:
            opened, weights = _open_arm(arm, base, num_workers=num_workers)
        except UserError as error:
            raise UserError(f"{arm.name}: {error}", setting=error.setting) from error
        base = base or weights
        found.append(opened)
    return found


def _open_arm(arm: Arm, base: dict[str, torch.Tensor], *, num_workers: int) -> tuple[OpenedArm, dict[str, torch.Tensor]]:
    """The arm, and the network's weights at its start."""
    config = replace(arm.config, device="cpu", compile=False, watch=replace(arm.config.watch, sample_every_images=0))
    (rung,) = config.ladder
    check_workers(config, num_workers)
    store, start = open_features(config, rung), find_start(config)
    if VALIDATION not in store.splits:
        raise UserError(f"{store.folder.url} has no validation split, and arms are compared by its loss", setting="features")
    keep_scale(start, store)
    workers = Workers()
    state = open_state(config, start, rung=rung, store=store, workers=workers)
    weights = {name: parameter.detach().clone() for name, parameter in state.network.named_parameters()}
    run = RunFolder(Path(config.run_folder), Workers(rank=1))  # which writes nothing
    position = LadderPosition(index=0, rung=rung, images_before=0)
    if config.precision == "auto":
        config = replace(config, precision="float32")
    parts = open_rung(config, position, workers=workers, run=run, state=state, store=store)
    if "routing.kind" in arm.changes:
        _check_routing(parts)
    opened = OpenedArm(
        arm=arm,
        network=parts.network,
        num_parameters=sum(parameter.numel() for parameter in state.parameters()),
        same_start=_same_share(base, weights) if base else 1.0,
        planned=with_features_vae(config, store.info),
        caption_tokens=_caption_tokens(parts, state, store),
        teacher_width=0 if store.teacher is None else store.teacher.info.width,
    )
    return opened, weights


def _check_routing(parts: RungParts) -> None:
    """Raises UserError if the arm routes no tokens, since it would train as one without."""
    routing, ladder = parts.config.routing, parts.config.ladder
    if reason := routing.is_on and routing.off_reason(ladder, 0, num_tokens=parts.network.base_grid**2):
        raise UserError(f"no token would be routed at {reason}", setting="routing.min_tokens")


def _same_share(base: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> float:
    same = sum(tensor.numel() for name, tensor in base.items() if name in weights and torch.equal(tensor, weights[name]))
    return same / sum(tensor.numel() for tensor in base.values())


def _caption_tokens(parts: RungParts, state: TrainState, store: FeatureStore) -> float:
    """The mean over the first batches; where captions are not stored, the longest that are read; 0 without captions."""
    if store.info.class_names:
        return 0.0
    if store.info.caption_storage == "none":
        return float(store.info.max_caption_tokens)
    with open_loader(parts, state) as loader:
        batches = [next(loader).captions for _ in range(_SAMPLED_BATCHES)]
    return float(torch.cat([captions.lengths for captions in batches if captions is not None]).float().mean())


def plan_images(
    config: CompareConfig, opened: Sequence[OpenedArm], *, kept: Mapping[str, int], step_s: Mapping[str, float]
) -> list[ArmPlan]:
    """The images of each arm; `kept`: those that the folder has already. Base is the first arm.

    `step_s`, by arm, is read where compute is in seconds. Raises UserError for a budget with too few steps.
    """
    base = opened[0]
    base_images = kept.get(BASE) or _base_steps(config, base, step_s) * base.batch_size
    plans = []
    for one in opened:
        name, size = one.arm.name, one.batch_size
        images = base_images if one is base else kept.get(name) or size * _steps(config, one, base_images, base, step_s=step_s)
        if images < config.validations * size:
            raise UserError(
                f"{name} would train for {counted(images // size, 'step')} of {size} images, and be validated "
                f"{config.validations} times: give more compute, or fewer validations",
                setting="validations",
            )
        plans.append(ArmPlan(opened=one, images=images, step_s=step_s.get(name)))
    return plans


def _base_steps(config: CompareConfig, base: OpenedArm, step_s: Mapping[str, float]) -> int:
    if config.budget is not None:
        return int(60 * config.budget / step_s[BASE])
    if config.flops is not None:
        return most_steps(config.flops, lambda steps: base.work(steps * base.batch_size).flops())
    return base.arm.config.ladder[0].num_steps


def _steps(config: CompareConfig, arm: OpenedArm, base_images: int, base: OpenedArm, *, step_s: Mapping[str, float]) -> int:
    """The steps of an arm that take as much as base's; the nearest number."""
    if config.equal == "images":
        return base_images // arm.batch_size
    if config.equal == "seconds":
        return round(base_images / base.batch_size * step_s[BASE] / step_s[arm.arm.name])

    def flops(steps: int) -> float:
        return arm.work(steps * arm.batch_size).flops() if steps else 0.0

    whole = base.work(base_images).flops()
    steps = most_steps(whole, flops)
    return steps + (flops(steps + 1) - whole < whole - flops(steps))


def most_steps(flops: float, of_steps: Callable[[int], float]) -> int:
    """The most steps that this many operations allow; `of_steps` counts those of a number of steps, and grows with it."""
    low, high = 0, 1
    while of_steps(high) <= flops:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if of_steps(middle) <= flops else (low, middle)
    return low
