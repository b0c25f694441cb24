"""The start of a stage: its own newest checkpoint, the one that --init_from names, or that of the stage before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from foundry.storage.locations import is_local_path
from model.dit import DiT
from model.dit_config import DiTConfig
from model.formats.checkpoint import (
    find_checkpoint,
    is_control,
    read_own_control,
    read_pipeline_config,
    read_transformer_config,
)
from trainer.config.ladder import Rung, ladder_position
from trainer.config.train import SCRATCH, TrainConfig
from trainer.distributed import Workers
from trainer.features.info import FeaturesInfo, check_reading
from trainer.features.store import FeatureStore
from trainer.monitoring.run_folder import newest_checkpoint
from trainer.training.checkpoints import Position, load_training
from trainer.training.networks import config_from, features_command, make_state, network_from, new_config, new_network
from trainer.training.optimizer import optimizer_record
from trainer.training.techniques.control import controlled
from trainer.training.techniques.few_steps import check_teacher_checkpoint
from trainer.training.techniques.lora import adapted, check_same_network, find_base
from trainer.training.techniques.opening import check_group, open_techniques
from trainer.training.techniques.technique import SharedTechnique, setting_records
from trainer.training.train_step import TrainState


@dataclass(frozen=True, kw_only=True)
class Start:
    """The source of the weights."""

    checkpoint: Path | None
    """None: new weights."""
    resumes: bool = False
    """Whether it is a checkpoint of this training, which then continues as if it had not been interrupted."""

    @property
    def images_seen(self) -> int:
        """Images that this stage has seen already."""
        return int(self.checkpoint.name) if self.resumes and self.checkpoint else 0

    def __str__(self) -> str:
        if self.checkpoint is None:
            return "starts from nothing"
        return f"{'resumes' if self.resumes else 'starts from'} {self.checkpoint}"


def find_start(config: TrainConfig) -> Start:
    """Raises UserError, with the command to run first, where a stage has nothing to start from."""
    run = run_path(config)
    if own := newest_checkpoint(run):
        return Start(checkpoint=own, resumes=True)
    if config.init_from == SCRATCH:
        return Start(checkpoint=None)
    if config.init_from is not None:
        return Start(checkpoint=find_checkpoint(config.init_from))
    if config.follows is None:
        return Start(checkpoint=None)
    before = run_path(replace_stage(config))
    if found := newest_checkpoint(before):
        return Start(checkpoint=found)
    raise UserError(
        f"{config.stage} starts from the network of the stage {config.follows}, and {before} holds none: run "
        f"python -m trainer.fit --stage {config.follows}, or give a checkpoint, or {SCRATCH}",
        setting="init_from",
    )


def check_start(config: TrainConfig) -> None:
    """Raises UserError where a stage has nothing to start from: before a folder is made or Ray is started."""
    _check_has_start(config, find_start(config))


def run_path(config: TrainConfig) -> Path:
    """The folder of the run. Raises UserError for a URL: a checkpoint is published by renaming its folder."""
    if not is_local_path(config.run_dir):
        raise UserError(
            f"{config.run_dir}: expected a folder, on a disk that all workers share, found a URL", setting="run_dir"
        )
    return Path(config.run_folder.removeprefix("file://"))


def check_workers(config: TrainConfig, num_workers: int) -> None:
    """Raises UserError for a batch that cannot be shared evenly: every worker weighs the same in the gradient."""
    for rung in config.ladder:
        if rung.batch_size % num_workers:
            near = max(1, round(rung.batch_size / num_workers)) * num_workers
            raise UserError(
                f"a batch of {rung.batch_size} images cannot be shared by {num_workers} workers: give a multiple, as {near}"
            )
    check_group(config, num_workers)


def check_resume(
    config: TrainConfig,
    checkpoint: Path,
    info: FeaturesInfo,
    *,
    num_shards: int,
    techniques: Sequence[SharedTechnique] = (),
) -> None:
    """Raises UserError where the checkpoint was written under settings that this training cannot resume from."""
    position, pipeline = Position.read(checkpoint), read_pipeline_config(checkpoint)
    network, origin = read_transformer_config(checkpoint), str(checkpoint)
    copies: list[tuple[str, object, object]] = []
    if is_control(checkpoint):
        control = read_own_control(checkpoint)
        origin = control.base
        if config.control.is_on:
            copies = [("control.blocks", control.num_blocks, config.control.chosen_blocks(network.depth))]
    last_image = position.images_seen - 1
    was, now = ladder_position(position.ladder, last_image), ladder_position(config.ladder, last_image)
    assert was is not None, "the ladder of then reached as far as it did"
    problems = [
        f"{name} {old} then, {new} now"
        for name, old, new in [
            ("seed", position.seed, config.seed),
            ("objective", pipeline.objective, config.objective.name),
            ("settings of the objective", pipeline.objective_settings, config.objective.settings_at(was.rung.resolution)),
            ("finished rungs", position.ladder[: was.index], config.ladder[: was.index]),
            ("batch size", was.rung.batch_size, now and now.rung.batch_size),
            ("resolution", was.rung.resolution, now and now.rung.resolution),
            ("optimiser", position.optimizer, optimizer_record(config, num_shards=num_shards)),
            *([("data.aspect_ratio", position.aspect_ratio, config.data.aspect_ratio)] if network.micro_conditioning else []),
            *copies,
            *_technique_settings(position.techniques, setting_records(config, techniques)),
        ]
        if old != new
    ]
    following = ladder_position(config.ladder, position.images_seen)
    mid_rung = following is not None and position.images_seen > following.images_before
    if mid_rung and position.features not in info.fingerprints:
        problems.append(f"features {position.features} then, {info.fingerprint} now")
    if problems:
        raise UserError(
            f"{checkpoint} is of another training ({'; '.join(problems)}): use its settings, or give another folder and "
            f"init_from {origin}",
            setting="run_dir",
        )


def open_state(config: TrainConfig, start: Start, *, rung: Rung, store: FeatureStore, workers: Workers) -> TrainState:
    """The state that a training begins with or resumes from. Raises UserError for parts that do not fit together."""
    info = store.info
    if start.checkpoint is None:
        _check_has_start(config, start)
        fresh = new_config(config, rung, info)
        check_routing(config, fresh)
        techniques = open_techniques(config, fresh, store, workers)
        return make_state(new_network(fresh, seed=config.seed), config, workers, techniques)
    check_parts(start.checkpoint, config, rung, info)
    if config.few_steps.is_on and not start.resumes:
        check_teacher_checkpoint(config, start.checkpoint, rung)
    source = read_transformer_config(start.checkpoint)
    target = config_from(source, config, rung, info)
    check_routing(config, target)
    if config.lora.is_on or config.control.is_on:
        return _state_on_base(config, start, target, store=store, workers=workers)
    techniques = open_techniques(config, target, store, workers)
    if not start.resumes:
        return make_state(network_from(start.checkpoint, target, seed=config.seed), config, workers, techniques)
    check_resume(config, start.checkpoint, info, num_shards=workers.num_shards(config.distributed), techniques=techniques)
    if replace(target, sample_size=source.sample_size, position_scale=source.position_scale) != replace(
        source, max_caption_tokens=target.max_caption_tokens
    ):
        raise UserError(
            f"{start.checkpoint} holds another network than the settings ask for: give another folder", setting="run_dir"
        )
    state = make_state(DiT(replace(target, max_caption_tokens=source.max_caption_tokens)), config, workers, techniques)
    load_training(start.checkpoint, state, workers)
    return state


def _state_on_base(
    config: TrainConfig, start: Start, target: DiTConfig, *, store: FeatureStore, workers: Workers
) -> TrainState:
    """The state of a LoRA or a control: the base as it was found, with one that is new or the checkpoint's."""
    assert start.checkpoint is not None
    techniques = open_techniques(config, target, store, workers)
    if start.resumes:
        check_resume(
            config, start.checkpoint, store.info, num_shards=workers.num_shards(config.distributed), techniques=techniques
        )
    base, name = find_base(start.checkpoint, resumes=start.resumes)
    check_same_network(read_transformer_config(base), target, checkpoint=base)
    network = network_from(base, target, seed=config.seed)
    injection = config.lora.injection
    lora = None if injection is None else adapted(network, injection, config, name=name, base=base)
    control = controlled(network, config.control, name=name, base=base) if config.control.is_on else None
    state = make_state(network, config, workers, techniques, lora=lora, control=control)
    if start.resumes:
        load_training(start.checkpoint, state, workers)
    return state


def _check_has_start(config: TrainConfig, start: Start) -> None:
    """Raises UserError where a LoRA or a control has no network to start from, or a distillation none to learn from."""
    if config.few_steps.is_on and start.checkpoint is None:
        raise UserError(
            "few steps are distilled from a network that is trained already: give its checkpoint", setting="init_from"
        )
    if config.lora.is_on and start.checkpoint is None:
        raise UserError("a LoRA adapts a network that is trained already: give its checkpoint", setting="init_from")
    if config.control.is_on and start.checkpoint is None:
        raise UserError("a control is of a network that is trained already: give its checkpoint", setting="init_from")


def check_routing(config: TrainConfig, network: DiTConfig) -> None:
    """Raises UserError for blocks that the network cannot route, and for a loss that needs the same tokens of all samples."""
    blocks = config.routing.blocks
    if blocks is None:
        return
    try:
        network.check_routed(blocks)
    except ValueError as error:
        raise UserError(str(error), setting="routing") from error
    compared = config.dispersive.chosen_block(network.depth)
    if config.dispersive.is_on and blocks.before < compared <= network.depth - blocks.after:
        raise UserError(
            f"the dispersive loss compares the same tokens of different samples, and block {compared} sees others of each, "
            f"since routing acts from block {blocks.before + 1} on: give it a block up to {blocks.before}",
            setting="dispersive.block",
        )


def _technique_settings(was: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[tuple[str, object, object]]:
    """Each setting of each technique with its values then and now; a technique that is missing is `off`."""
    found: list[tuple[str, object, object]] = []
    for name in sorted({*was, *now}):
        if name in was and name in now:
            keys = sorted({*was[name], *now[name]})
            found += [(f"{name}.{key}", was[name].get(key), now[name].get(key)) for key in keys]
        else:
            found.append((name, "on" if name in was else "off", "on" if name in now else "off"))
    return found


def check_parts(checkpoint: Path, config: TrainConfig, rung: Rung, info: FeaturesInfo) -> None:
    """Raises UserError where the features come from another VAE or text encoder than the checkpoint was trained with."""
    pipeline = read_pipeline_config(checkpoint)
    pairs = [("VAE", pipeline.vae, info.vae)]
    text_encoder = pipeline.text_encoder if pipeline.text_encoder.name else info.text_encoder
    if info.text_encoder is not None:
        pairs.append(("text encoder", pipeline.text_encoder, info.text_encoder))
    for kind, trained, found in pairs:
        if trained.fingerprint and trained.fingerprint != found.fingerprint:
            raise UserError(
                f"{checkpoint} was trained with the {kind} {trained.name} ({trained.fingerprint}), the features in "
                f"{config.features_folder(rung)} come from {found.name} ({found.fingerprint}): make them again with that one: "
                f"{features_command(config, rung, vae=pipeline.vae, text_encoder=text_encoder)}"
            )

    if info.text_encoder is not None and pipeline.text_encoder.name:
        check_reading(pipeline, info, where=config.features_folder(rung), trained=str(checkpoint))


def keep_scale(start: Start, store: FeatureStore) -> str:
    """Scales the latents of the features as those that a checkpoint learned from; returns a line where that is another scale.

    Raises UserError where a network starts from scratch and the scale is not measured yet.
    """
    if start.checkpoint is None:
        if store.info.latent_scale == "measured" and store.info.measured_scale is None:
            raise UserError(
                f"{store.folder.url}: the scale of the latents is measured once all units are made: let "
                f"{store.info.command} finish"
            )
        return ""
    before = store.info.measured_scale
    store.scaled(read_pipeline_config(start.checkpoint).latent_scale)
    if before == store.info.measured_scale or start.resumes:
        return ""
    return f"the latents are scaled as those that {start.checkpoint} learned from, not as the features say"


def cleaning_note(start: Start, config: TrainConfig, info: FeaturesInfo) -> str:
    """A line where the features' captions were cleaned otherwise than those that the checkpoint learned from; else empty."""
    if start.checkpoint is None or info.text_encoder is None:
        return ""
    pipeline = read_pipeline_config(start.checkpoint)
    if not pipeline.text_encoder.name or pipeline.caption_cleaning == info.caption_cleaning:
        return ""
    return (
        f"the features' captions had {info.caption_cleaning} cleaning, those that {start.checkpoint} learned from "
        f"{pipeline.caption_cleaning}: the checkpoints of this training will clean prompts as the features; to keep the other, "
        f"make features with text_encoder.cleaning {pipeline.caption_cleaning} in another folder than {config.features}"
    )


def replace_stage(config: TrainConfig) -> TrainConfig:
    """The settings with the stage before, to find its folder."""
    return replace(config, stage=config.follows)  # type: ignore[arg-type]
