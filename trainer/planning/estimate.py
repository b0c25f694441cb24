"""The estimate of a plan: steps, FLOPs, GPU-days, memory, disk and reading speed of each rung that is to be trained."""

from dataclasses import asdict
from functools import lru_cache
from math import ceil, gcd
from typing import Any

from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.hardware import AUTO
from model.dit_config import DiTConfig, RoutedBlocks
from model.flops import AdaptationSizes, ControlSizes, LoraSizes, dit_flops, total
from model.lora.settings import Injection
from trainer.config.ladder import Rung
from trainer.config.running import Sharding
from trainer.config.train import PAPER, TrainConfig
from trainer.planning.config import DiskPlan, EncodingPlan, MemoryPlan, PlanConfig, ReadingPlan, RungPlan
from trainer.planning.dataset import dataset_size
from trainer.planning.encoding import VAE_DOWNSAMPLING, is_t5, t5_flops, vae_flops
from trainer.planning.memory import Activations, measure_activations, training_memory
from trainer.planning.optimizer import optimizer_cost
from trainer.planning.project import project_costs
from trainer.planning.techniques import TechniqueCost, planned_adaptation, technique_costs
from trainer.stages import choose_stage, named_by, offered, stages_of

_GPUS_OF_A_NODE = 8
_KEY_BYTES = 100
"""A row of a feature store without latents and captions: key, sizes, names of the captions."""
_CAPTION_BYTES = 64
"""A stored caption without its tokens, at most."""
_TEXT_BYTES_PER_TOKEN = 5
"""English text of a T5 token, generously."""


def plan(config: PlanConfig) -> list[RungPlan]:
    """Plans each rung, in the order of training.

    Raises UserError for GPUs that cannot share a batch evenly, and for sizes that make no network.
    """
    stages = stage_configs(config)
    common = gcd(*(rung.batch_size for train in stages for rung in train.ladder))
    if common % config.num_gpus:
        near = max((number for number in range(1, common + 1) if common % number == 0 and number < config.num_gpus), default=1)
        batches = ", ".join(f"{rung.batch_size:,}" for train in stages for rung in train.ladder)
        raise UserError(f"{config.num_gpus} GPUs do not share the batches of {batches} evenly: try {near}", setting="num_gpus")
    return [_rung_plan(train, rung, config) for train in stages for rung in train.ladder]


def stage_configs(config: PlanConfig) -> list[TrainConfig]:
    """The settings that trainer.fit would use. Raises UserError for a file of settings that it would refuse."""
    recipe = config.recipe or (PAPER if config.fit_config is None else None)
    given = {"config": config.fit_config, "stage": config.stage, "recipe": recipe}
    arguments = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
    recipe_stages = stages_of(arguments)
    stages, chosen = offered(recipe_stages), named_by(arguments, "stage") or "all"
    names = [name for name in stages if name == chosen or (chosen == "all" and name in recipe_stages)]
    if config.fit_config is None:
        return [stages[name]() for name in names]
    found: list[TrainConfig] = []

    def keep(train: TrainConfig) -> int:
        found.append(train)
        return 0

    for name in names:
        words = choose_stage([*arguments, "--stage", name], stages)
        if run_command(TrainConfig, keep, prog="python -m trainer.fit", example="", presets={"stage": stages}, argv=words):
            raise UserError(f"trainer.fit would not start with {config.fit_config}", setting="fit_config")
    return found


def as_json(rungs: list[RungPlan], config: PlanConfig) -> dict[str, Any]:
    """All figures, with the settings."""
    rows = [{**asdict(rung), "passes": rung.passes} for rung in rungs]
    found = {"settings": asdict(config), "gpu": asdict(config.device), "rungs": rows}
    return found | ({"project": [asdict(step) for step in project_costs(rungs, config)]} if config.project else {})


def _rung_plan(train: TrainConfig, rung: Rung, config: PlanConfig) -> RungPlan:
    network = _network(train, rung, config)
    recomputes = config.gradient_checkpointing or train.gradient_checkpointing
    adapted = planned_adaptation(train, network)
    optimizer_flops = optimizer_cost(network, train.optim, adapted).step_flops
    routing, index, num_tokens = train.routing, train.ladder.index(rung), network.base_grid**2
    share = routing.routed_images(train.ladder, index, num_tokens=num_tokens) / rung.images_seen
    flops, again = _flops(network, config, routing.blocks, share=share, adapted=adapted)
    techniques = technique_costs(train, rung, network, stored_width=config.teacher_width, caption_tokens=config.caption_tokens)
    work = rung.images_seen * (flops + again * recomputes + sum(cost.mean_flops for cost in techniques))
    work += rung.num_steps * optimizer_flops
    gpu_days = work / (config.device.peak_flops * config.utilisation * 86_400)
    dataset = dataset_size(train, rung, num_images=config.num_images)
    images_per_s = rung.images_seen / (gpu_days * 86_400 / config.num_gpus)
    return RungPlan(
        stage=train.stage,
        resolution=rung.resolution,
        num_steps=rung.num_steps,
        batch_size=rung.batch_size,
        images_seen=rung.images_seen,
        dataset=dataset,
        flops_per_image=flops,
        optimizer_flops=optimizer_flops,
        gpu_days=gpu_days,
        cost=None if config.device.price is None else 24 * gpu_days * config.device.price,
        patches=num_tokens,
        techniques=techniques,
        lora_values=adapted.num_parameters if isinstance(adapted, LoraSizes) else 0,
        control_values=adapted.num_parameters if isinstance(adapted, ControlSizes) else 0,
        memory=_memory_plans(train, rung, network, config, techniques=techniques),
        disk=_disk_plan(train, rung, network, config, num_images=dataset.num_images),
        encoding=_encoding_plan(
            config,
            resolution=rung.resolution,
            num_images=dataset.num_images,
            has_captions=_has_captions(train, rung),
            images_each=2 if train.control.is_on else 1,
        ),
        images_per_s=images_per_s,
        reading=_reading_plan(train, network, config, images_per_s=images_per_s),
        routed=share,
        routing_warning=routing.does_not_pay(num_tokens) if share else "",
        unrouted=routing.off_reason(train.ladder, index, num_tokens=num_tokens) if routing.is_on else "",
    )


def _flops(
    network: DiTConfig, config: PlanConfig, routed: RoutedBlocks | None, *, share: float, adapted: AdaptationSizes | None
) -> tuple[float, float]:
    """FLOPs of an image's training, and those that recomputing its blocks adds; `share` of the images are routed."""

    def of(blocks: RoutedBlocks | None) -> tuple[float, float]:
        grid = (network.base_grid, network.base_grid)
        layers = dit_flops(network, grid=grid, caption_tokens=config.caption_tokens, routed=blocks, adapted=adapted)
        blocks_layers = ("text-adapter", "self-attention", "cross-attention", "mlp", "lora", "control")
        again = sum(layers[name].forward for name in blocks_layers if name in layers)
        return total(layers).training, again

    whole, few = of(None), of(routed)
    return whole[0] + share * (few[0] - whole[0]), whole[1] + share * (few[1] - whole[1])


def _network(train: TrainConfig, rung: Rung, config: PlanConfig) -> DiTConfig:
    try:
        network = train.network.dit_config(
            conditioning=train.conditioning,
            sample_size=rung.resolution // config.downsampling,
            in_channels=config.latent_channels,
            downsampling=config.downsampling,
            learned_variance=train.objective.learned_variance,
            caption_width=config.caption_width,
            max_caption_tokens=max(DiTConfig.max_caption_tokens, ceil(config.caption_tokens)),
        )
        if train.routing.blocks is not None:
            network.check_routed(train.routing.blocks)
    except ValueError as error:
        raise UserError(f"{config.fit_config}: {train.stage} at {rung.resolution} px: {error}") from error
    return network


def _memory_plans(
    train: TrainConfig, rung: Rung, network: DiTConfig, config: PlanConfig, *, techniques: tuple[TechniqueCost, ...]
) -> tuple[MemoryPlan, ...]:
    num_gpus = config.num_gpus
    without_bfloat16 = train.precision == AUTO and config.device.float32_flops is not None
    precision = "float32" if without_bfloat16 else train.precision
    num_images = min(rung.batch_size // num_gpus, max(1, train.device_tokens // network.base_grid**2))
    shardings: dict[Sharding, int] = {"ddp": 1, "fsdp": num_gpus} if num_gpus > 1 else {"ddp": 1}
    if num_gpus > 1 and train.distributed.sharding == "hsdp":
        shardings["hsdp"] = train.distributed.shard_workers or min(num_gpus, _GPUS_OF_A_NODE)
    control = planned_adaptation(train, network) if train.control.is_on else None
    adapted = control if isinstance(control, ControlSizes) else train.lora.injection
    as_set = (train.distributed.sharding if num_gpus > 1 else "ddp", train.gradient_checkpointing)
    plans = []
    for sharding, num_shards in shardings.items():
        for checkpointing in (False, True):
            memory = training_memory(
                network,
                _activations(network, checkpointing, precision, adapted),
                num_shards=num_shards,
                precision=precision,
                optim=train.optim,
                techniques=techniques,
                adapted=adapted,
                accumulates=num_images < rung.batch_size // num_gpus,
            )
            plan = MemoryPlan(
                sharding=sharding,
                num_shards=num_shards,
                gradient_checkpointing=checkpointing,
                memory=memory,
                num_images=num_images,
                as_set=(sharding, checkpointing) == as_set,
            )
            plans.append(plan)
    return tuple(plans)


@lru_cache
def _activations(
    network: DiTConfig, checkpointing: bool, precision: str, adapted: Injection | ControlSizes | None
) -> Activations:
    grid = (network.base_grid, network.base_grid)
    return measure_activations(network, grid=grid, gradient_checkpointing=checkpointing, precision=precision, adapted=adapted)


def _has_captions(train: TrainConfig, rung: Rung) -> bool:
    """Whether the features of this rung hold captions; the other rungs of the stage share them."""
    return train.conditioning == "text" and rung is train.ladder[0]


def _disk_plan(train: TrainConfig, rung: Rung, network: DiTConfig, config: PlanConfig, *, num_images: int) -> DiskPlan:
    captions = num_images * config.caption_variants * _has_captions(train, rung)
    bf16, int8, text = _caption_bytes(config)
    return DiskPlan(
        latents=num_images * _latents_bytes(train, network, config),
        captions_bf16=captions * bf16,
        captions_int8=captions * int8,
        texts=captions * text,
    )


def _encoding_plan(
    config: PlanConfig, *, resolution: int, num_images: int, has_captions: bool, images_each: int = 1
) -> EncodingPlan | None:
    """The work of a rung's features; None for encoders of other sizes than PixArt-alpha's, which a plan does not know.

    `images_each`: images that are encoded of each, 2 with control images.
    """
    if config.downsampling != VAE_DOWNSAMPLING or (has_captions and not is_t5(config.caption_width)):
        return None
    image = images_each * vae_flops(resolution, latent_channels=config.latent_channels)
    caption = t5_flops(config.caption_tokens) if has_captions else 0.0
    flops = num_images * (image + config.caption_variants * caption)
    hours = flops / (config.device.peak_flops * config.utilisation * 3600)
    return EncodingPlan(flops_per_image=image, flops_per_caption=caption, flops=flops, gpu_hours=hours)


def _reading_plan(train: TrainConfig, network: DiTConfig, config: PlanConfig, *, images_per_s: float) -> ReadingPlan:
    """An image is read with one of its captions."""
    latents = _latents_bytes(train, network, config)
    bf16, int8, text = _caption_bytes(config) if train.conditioning == "text" else (0.0, 0.0, 0.0)
    return ReadingPlan(
        bf16=images_per_s * (latents + bf16), int8=images_per_s * (latents + int8), online=images_per_s * (latents + text)
    )


def _latents_bytes(train: TrainConfig, network: DiTConfig, config: PlanConfig) -> int:
    """Bytes of an image's mean and, unless the VAE is deterministic, log-variance in float16; and its control image's mean."""
    parts = (2 if config.latent_variance else 1) + train.control.is_on
    return 2 * parts * network.in_channels * network.sample_size**2 + _KEY_BYTES


def _caption_bytes(config: PlanConfig) -> tuple[float, float, float]:
    """Bytes of a caption in bf16, in int8 (with a float32 scale per token), and as text."""
    tokens, width = config.caption_tokens, config.caption_width
    return 2 * tokens * width + _CAPTION_BYTES, tokens * (width + 4) + _CAPTION_BYTES, _TEXT_BYTES_PER_TOKEN * tokens
