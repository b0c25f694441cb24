"""Network and features of a rung: sizes follow from its start and the features, weights are new or a checkpoint's."""

import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from foundry.errors import UserError
from foundry.hardware import AUTO, auto_dtype
from foundry.records.packing import commits_of, commits_table
from foundry.reporting.lines import say
from foundry.storage.folder import Folder
from foundry.units.commits import Commit, read_commits, table_bytes
from model.control.control import control_blocks, num_copies
from model.dit import DiT, DiTConfig
from model.formats.checkpoint import PartConfig, load_checkpoint
from model.initialisation import initialise_from_class_dit
from model.layers.text_adapter import AdapterBlock
from trainer.config.ladder import Rung
from trainer.config.network import NetworkConfig
from trainer.config.techniques import STORED
from trainer.config.train import TrainConfig
from trainer.data.skip_list import read_skip_list
from trainer.data.weights import read_weights
from trainer.distributed import Workers
from trainer.features.info import FeaturesInfo, precompute_command
from trainer.features.plan import TRAIN
from trainer.features.store import FeatureStore
from trainer.training.ema import Ema
from trainer.training.optimizer import make_optimizer
from trainer.training.techniques.control import ControlState
from trainer.training.techniques.few_steps import Distillation
from trainer.training.techniques.lora import LoraState
from trainer.training.techniques.technique import SharedTechnique
from trainer.training.train_step import TrainState

_SIZES = ("width", "depth", "num_heads", "patch_size", "mlp_ratio")
_OF_CAPTIONS = ("qk_norm", "kv_compression")
"""Settings of networks that read captions, chosen anew where one starts from a network that reads classes."""


def new_config(config: TrainConfig, rung: Rung, info: FeaturesInfo) -> DiTConfig:
    """The configuration of a new network. Raises UserError for sizes that make no network."""
    text = config.conditioning == "text"
    try:
        return config.network.dit_config(
            conditioning=config.conditioning,
            sample_size=rung.resolution // info.downsampling,
            in_channels=info.latent_channels,
            downsampling=info.downsampling,
            learned_variance=config.objective.learned_variance,
            caption_width=info.caption_width if text else DiTConfig.caption_width,
            max_caption_tokens=info.max_caption_tokens if text else DiTConfig.max_caption_tokens,
            num_classes=DiTConfig.num_classes if text else len(info.class_names),
            position_scale=rung.position_scale or 1.0,
        )
    except ValueError as error:
        raise UserError(str(error), setting="network") from error


def config_from(source: DiTConfig, config: TrainConfig, rung: Rung, info: FeaturesInfo) -> DiTConfig:
    """The configuration of a network that starts from another: its sizes, with the rung's positions and the stage's conditions.

    Raises UserError where that and the settings or the features contradict each other.
    """
    kept = _SIZES if source.conditioning != config.conditioning else (*_SIZES, *_OF_CAPTIONS)
    default = NetworkConfig()
    asked = {name: getattr(config.network, name) for name in kept if getattr(config.network, name) != getattr(default, name)}
    if differing := [
        f"{name} {value} and {getattr(source, name)}" for name, value in asked.items() if value != getattr(source, name)
    ]:
        raise UserError(
            f"the network and the checkpoint to start from differ: {', '.join(differing)}; leave it out", setting="network"
        )
    sizes = {name: getattr(source, name) for name in kept}
    micro = config.network.micro_conditioning or source.micro_conditioning
    adapter = _adapter_blocks(source, config)
    network = replace(config.network, **sizes, micro_conditioning=micro, text_adapter_blocks=adapter)
    target = replace(new_config(replace(config, network=network), rung, info), null_class=source.null_class)
    names = ["in_channels"]
    if source.conditioning == target.conditioning:
        names += ["learned_variance", *(["caption_width"] if target.conditioning == "text" else ["num_classes"])]
    if differing := [
        f"{name} {getattr(source, name)} and {getattr(target, name)}"
        for name in names
        if getattr(source, name) != getattr(target, name)
    ]:
        raise UserError(
            f"the checkpoint to start from does not fit the features in {config.features_folder(rung)} or the objective: "
            f"{', '.join(differing)}; make features for it: {features_command(config, rung)}"
        )
    return with_positions(replace(target, sample_size=source.sample_size, position_scale=source.position_scale), rung, info)


def _adapter_blocks(source: DiTConfig, config: TrainConfig) -> int:
    """The text adapter's blocks: those that the settings ask for, else the source's. Raises UserError where it has more."""
    asked = config.network.text_adapter_blocks
    if 0 < asked < source.text_adapter_blocks:
        raise UserError(
            f"the checkpoint to start from has a text adapter of {source.text_adapter_blocks} blocks, the settings ask for "
            f"{asked}: leave it out, or give as many",
            setting="network.text_adapter_blocks",
        )
    return asked or source.text_adapter_blocks


def with_positions(network: DiTConfig, rung: Rung, info: FeaturesInfo) -> DiTConfig:
    """The same at a rung's resolution, its positions interpolated over the range that they had, or as the rung says."""
    sample_size = rung.resolution // info.downsampling
    scale = rung.position_scale or network.position_scale * sample_size / network.sample_size
    return replace(network, sample_size=sample_size, position_scale=scale)


def new_network(config: DiTConfig, *, seed: int) -> DiT:
    """A network with random weights, as the authors draw them."""
    return DiT(config).initialise(torch.Generator().manual_seed(seed))


def network_from(checkpoint: Path, config: DiTConfig, *, seed: int) -> DiT:
    """The EMA weights of a checkpoint; by re-parameterisation where it is class-conditional and the target is not.

    Embedders of sizes and blocks of the text adapter that it lacks start without an effect. Raises UserError where the target
    cannot come from it.
    """
    source = load_checkpoint(checkpoint, dtype=torch.float32)[0]
    if source.config.conditioning == "class" and config.conditioning == "text":
        try:
            return initialise_from_class_dit(DiT(config), source, generator=torch.Generator().manual_seed(seed))
        except ValueError as error:
            raise UserError(f"{checkpoint}: {error}") from error
    if source.config.conditioning != config.conditioning:
        raise UserError(
            f"{checkpoint} reads captions, this stage's network reads classes: give another, or scratch",
            setting="init_from",
        )
    network = new_network(config, seed=seed)
    state = source.state_dict()
    if config.max_caption_tokens != source.config.max_caption_tokens and config.conditioning == "text":
        del state["y_embedder.y_embedding"]  # a buffer that is never read, of another length
    missing = network.load_state_dict(state, strict=False).missing_keys
    gained = ("csize_embedder", "ar_embedder", "y_embedder.y_embedding", "text_adapter")
    assert all(name.startswith(gained) for name in missing), missing
    for embedder in {name.split(".")[0] for name in missing} & {"csize_embedder", "ar_embedder"}:
        last = getattr(network, embedder).mlp[2]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    for block in list(network.text_adapter)[source.config.text_adapter_blocks :]:
        assert isinstance(block, AdapterBlock)
        block.start_as_identity()
    return network


def network_around(config: DiTConfig, weights: Mapping[str, Tensor]) -> DiT:
    """A network around tensors that exist already, without a copy; with a control where they hold one."""
    with torch.device("meta"):
        network = DiT(config)
        network.control_blocks = control_blocks(config, num_copies(weights))
    network.load_state_dict(weights, assign=True)
    return network


def make_state(
    network: DiT,
    config: TrainConfig,
    workers: Workers,
    techniques: tuple[SharedTechnique, ...] = (),
    *,
    lora: LoraState | None = None,
    control: ControlState | None = None,
) -> TrainState:
    """The network on its device, shared among the workers as the settings say, with its optimiser and average.

    `lora` or `control`: what was put into it, which alone is trained.
    """
    network = network.to(workers.device, torch.float32).train()
    network.gradient_checkpointing = config.gradient_checkpointing
    model: torch.nn.Module = network
    if workers.num_shards(config.distributed) > 1:
        mesh = workers.mesh(config.distributed)
        for block in (*network.text_adapter, *network.blocks, *network.control_blocks):
            fully_shard(block, mesh=mesh, mp_policy=_gathered(config))
        fully_shard(network, mesh=mesh)
    elif workers.num > 1:
        # The one buffer never changes; gradients live in the buckets in which they travel, and not twice.
        model = DistributedDataParallel(network, forward_sync_buffers=False, gradient_as_bucket_view=True)
    if compiled := config.compile and can_compile(workers):
        # Captions make shapes that differ from step to step: were the first one compiled for itself, as torch does by default,
        # a resumed training, which begins with another, would round otherwise.
        network.compile_blocks(dynamic=True if config.conditioning == "text" else None)
    optimizer = make_optimizer(
        network,
        config.optim,
        projectors=[shared.technique for shared in techniques],
        dtype=getattr(torch, auto_dtype(workers.device.type) if config.precision == AUTO else config.precision),
        compiled=compiled,
    )
    return TrainState(
        network=network,
        model=model,
        optimizer=optimizer,
        ema=Ema(network),
        images_seen=0,
        techniques=techniques,
        lora=lora,
        control=control,
        distillation=Distillation(network, config) if config.few_steps.is_on else None,
    )


def attention_kernel(name: Literal["auto", "math"]) -> AbstractContextManager[None]:
    """A context in which attention uses the kernel of that name: see TrainConfig.attention."""
    return sdpa_kernel(SDPBackend.MATH) if name == "math" else nullcontext()


def can_compile(workers: Workers) -> bool:
    """True where torch finds a C++ compiler; prints a line where it does not."""
    found = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    if not found and workers.is_first:
        say("no C++ compiler on this machine: the network runs uncompiled, which is slower")
    return found


def sizes_text(config: DiTConfig) -> str:
    """The main sizes in a line, for the log."""
    values = asdict(config)
    names = ("conditioning", "width", "depth", "patch_size", "sample_size", "position_scale")
    adapter = ("text_adapter_blocks",) if config.text_adapter_blocks else ()
    return ", ".join(f"{name} {values[name]}" for name in (*names, *adapter))


def lora_text(state: TrainState) -> str:
    """The adapter that is trained and its base in a line, for the log."""
    assert state.lora is not None
    injection = state.lora.injection
    kinds = [name for name, is_on in (("DoRA", injection.dora), ("rsLoRA", injection.rslora)) if is_on] or ["LoRA"]
    trained = sum(parameter.numel() for parameter in state.network.parameters() if parameter.requires_grad)
    return (
        f"{' and '.join(kinds)} of rank {injection.rank}, alpha {injection.alpha:g}: {trained:,} values are trained, "
        f"{state.lora.base} ({state.lora.base_fingerprint}) is frozen in {injection.base}"
    )


def open_features(config: TrainConfig, rung: Rung, workers: Workers | None = None) -> FeatureStore:
    """The features of a rung; of several workers, all of which call this, the first one reads the commits for all.

    Raises UserError, with the command that makes them, where they are missing or unfit.
    """
    skip, weights = read_skip_list(config.data.skip), read_weights(config.data.weights)
    try:
        store = FeatureStore.open(
            config.features_folder(rung),
            skip=skip,
            weights=weights,
            with_teacher=config.repa.teacher == STORED,
            control=config.control.condition,
            read=read_commits if workers is None else partial(shared_commits, workers=workers),
        )
    except UserError as error:
        raise UserError(f"{error} (for this stage: {features_command(config, rung)})", setting=error.setting) from None
    info = store.info
    problems = {
        f"resolution {info.resolution}, expected {rung.resolution}": info.resolution != rung.resolution,
        "captions, expected classes": config.conditioning == "class" and not info.class_names,
        "classes, expected captions": config.conditioning == "text" and bool(info.class_names),
        "texts without features, which `online` encodes": (
            config.conditioning == "text" and not info.class_names and info.caption_storage == "none" and not config.online
        ),
    }
    if found := [text for text, holds in problems.items() if holds]:
        command = features_command(config, rung, vae=info.vae, text_encoder=info.text_encoder)
        raise UserError(f"{config.features_folder(rung)} holds {'; '.join(found)}: {command}")
    if TRAIN in store.splits and not store.images_per_pass(TRAIN):
        raise UserError(f"all training samples of {store.folder.url} have the weight 0", setting="data.weights")
    return store


def shared_commits(folder: Folder, *, workers: Workers) -> list[Commit]:
    """The commits of a store, read by the first worker alone; all call it. They travel packed: 20 MB for 100,000 units."""
    if workers.num == 1:
        return read_commits(folder)
    packed = workers.first_does(lambda: table_bytes(commits_table(read_commits(folder))))
    return commits_of(pq.read_table(pa.BufferReader(packed)))


def features_command(
    config: TrainConfig, rung: Rung, *, vae: PartConfig | None = None, text_encoder: PartConfig | None = None
) -> str:
    """The command that makes them, with the parts that are known to be needed."""
    parts = {"vae": vae} | ({"text_encoder": text_encoder} if config.conditioning == "text" else {})
    more = ["--captions none"] if config.online else []
    more += [f"--control.kind {config.control.kind}"] if config.control.is_on else []
    return precompute_command(
        parts,
        dataset="DATASET",
        out=config.features,
        stage=config.features_stage,
        resolution=str(rung.resolution),
        more=" ".join(more),
    )


def _gathered(config: TrainConfig) -> MixedPrecisionPolicy:
    """Weights of text blocks travel in the precision they are used in; class blocks need float32 for their modulation."""
    if config.precision == "float32" or config.conditioning == "class":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
