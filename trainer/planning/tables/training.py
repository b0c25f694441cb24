"""A plan as text: time and money, memory of a GPU, disk, and the paper's own figures for comparison."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from trainer.config.routing import ADVICE
from trainer.data.passes import count_passes, passes_text, passes_warning
from trainer.monitoring.gpus import PAPER_A100_PER_V100
from trainer.planning.paper import PAPER_A100_DAYS, PAPER_DOLLARS, PAPER_ROWS, paper_a100_days, paper_dollars_per_a100_hour
from trainer.planning.project import project_costs
from trainer.planning.tables.project import project_section
from trainer.planning.tables.text import aligned, count, gigabytes, hours, money

if TYPE_CHECKING:
    from trainer.planning.config import MemoryPlan, PlanConfig, RungPlan

_COST = ("stage", "px", "images", "passes", "steps", "batch", "TFLOP/image", "FLOP", "GPU-days", "days", "dollars")
_SIZES = ("stage", "px", "sharding", "recompute", "weights", "grads", "optim", "EMA", "copies", "an image", "images", "total")
_DISK = ("stage", "px", "images", "latents", "captions bf16", "captions int8", "--online")
_ENCODING = ("stage", "px", "images", "TFLOP/image", "TFLOP/caption", "FLOP", "GPU-hours", "hours", "dollars")
_READING = ("stage", "px", "images/s", "bf16", "int8", "--online")
_PAPER = ("stage", "px", "images", "V100-days", "FLOP", "used")
_TECHNIQUES = (
    "stage",
    "px",
    "technique",
    "TFLOP/image",
    "of images",
    "FLOP more",
    "trained",
    "GB",
    "an image",
    "GB a checkpoint",
    "GB of features",
)
_TEXT_COLUMNS = {"technique", "stage", "sharding", "recompute", "fit at most"}


def plan_table(rungs: "Sequence[RungPlan]", config: "PlanConfig") -> str:
    """The whole answer."""
    sections = (
        _cost_section(rungs, config),
        *([_technique_section(rungs)] if any(rung.techniques for rung in rungs) else []),
        _memory_section(rungs, config),
        _disk_section(rungs, config),
        _encoding_section(rungs, config),
        _reading_section(rungs, config),
        _paper_section(),
        *([project_section(project_costs(rungs, config), config)] if config.project else []),
        _summary(rungs, config),
    )
    return "\n\n".join("\n".join(section) for section in sections)


def _cost_section(rungs: "Sequence[RungPlan]", config: "PlanConfig") -> Iterator[str]:
    gpu, num = config.device, config.num_gpus
    price = "no price known: --price" if gpu.price is None else f"${gpu.price:.2f} an hour"
    recomputes = config.gradient_checkpointing or any(rung.memory_as_set.gradient_checkpointing for rung in rungs)
    extra = ", gradient checkpointing" if recomputes else ""
    yield f"{num} x {config.gpu} of {gpu.peak_flops / 1e12:,.0f} TFLOP/s, {config.utilisation:.0%} of them used{extra}; {price}"
    if gpu.float32_flops is not None:
        yield (
            f"{config.gpu} has no bfloat16: trainer.fit computes in float32 there, at no more than "
            f"{gpu.float32_flops / 1e12:.1f} TFLOP/s; plan that with --peak_tflops {gpu.float32_flops / 1e12:.1f}"
        )
    if values := max(rung.lora_values for rung in rungs):
        yield f"LoRA: {values:,} values are trained; the weights are frozen, and make no gradients"
    if values := max(rung.control_values for rung in rungs):
        yield f"control: {values:,} values are trained; the network is frozen, and its weights make no gradients"
    rows = [
        (*_what(rung), f"{rung.flops_per_image / 1e12:.2f}", *_work(rung.flops, rung.gpu_days, num), money(rung.cost))
        for rung in rungs
    ]
    flops, days = (sum(values) for values in zip(*((rung.flops, rung.gpu_days) for rung in rungs), strict=True))
    cost = None if gpu.price is None else 24 * days * gpu.price
    images, steps = sum(rung.images_seen for rung in rungs), sum(rung.num_steps for rung in rungs)
    rows.append(("in all", "", count(images), "", f"{steps:,}", "", "", *_work(flops, days, num), money(cost)))
    yield from aligned(_COST, rows, words=_TEXT_COLUMNS)
    yield f"passes: how often each image is seen. Data sets: {_datasets(rungs)}"
    for rung in rungs:
        if rung.routed:
            yield (
                f"{rung.stage} {rung.resolution} px: {rung.routed:.0%} of the images with token routing, in the means above; "
                "memory is that of the rest"
            )
        if rung.unrouted:
            yield f"{rung.stage} {rung.resolution} px: no token routing at {rung.unrouted}"
    others = "validation, samples" if config.project else "captions, scores, features (see --project), validation, samples"
    yield f"Not in it: {others}. Gradient checkpointing takes up to a third more."


def _technique_section(rungs: "Sequence[RungPlan]") -> Iterator[str]:
    yield "What techniques add, which is in FLOP, days, dollars and totals; an upper bound of the memory"
    rows = [
        (
            rung.stage,
            rung.resolution,
            cost.name,
            f"{cost.flops_per_image / 1e12:.3f}",
            f"{cost.share:.0%}",
            f"{cost.mean_flops / rung.flops_per_image:.1%}",
            f"{cost.parameters / 1e6:.1f}M",
            gigabytes(cost.fixed_bytes(shared_by=rung.memory_as_set.num_shards)),
            f"{cost.activations_per_image / 1e9:.3f}",
            f"{cost.checkpoint_bytes / 1e9:.2f}",
            gigabytes(cost.stored_bytes * rung.dataset.num_images) if cost.stored_bytes else "-",
        )
        for rung in rungs
        for cost in rung.techniques
    ]
    yield from aligned(_TECHNIQUES, rows, words=_TEXT_COLUMNS)
    yield "of images: in which it acts. FLOP more: of the network's. GB, an image: on a GPU. Features: in the sums below."


def _what(rung: "RungPlan") -> tuple[object, ...]:
    seen = count(rung.images_seen), passes_text(rung.passes)
    return rung.stage, rung.resolution, *seen, f"{rung.num_steps:,}", f"{rung.batch_size:,}"


def _datasets(rungs: "Sequence[RungPlan]") -> str:
    """The size of each data set, by where it is from."""
    sizes: dict[str, list[str]] = {}
    for rung in rungs:
        named = sizes.setdefault(rung.dataset.source, [])
        weighed = "" if rung.dataset.weighed is None else f" (chosen and weighed: {count(round(rung.dataset.weighed))} a pass)"
        if (size := f"{rung.stage} {count(rung.dataset.num_images)}{weighed}") not in named:
            named.append(size)
    return "; ".join(f"{', '.join(named)} images ({source})" for source, named in sizes.items())


def _work(flops: float, gpu_days: float, num_gpus: int) -> tuple[str, str, str]:
    return f"{flops:.2e}", f"{gpu_days:.1f}", f"{gpu_days / num_gpus:.2f}"


def _memory_section(rungs: "Sequence[RungPlan]", config: "PlanConfig") -> Iterator[str]:
    memory = config.device.memory_bytes
    yield f"GB on a GPU of {memory / 1e9:.0f}; an upper bound, since torch.compile takes less"
    rows = [
        (rung.stage, rung.resolution, *_memory_row(plan, memory_bytes=memory, patches=rung.patches))
        for rung in rungs
        for plan in rung.memory
    ]
    yield from aligned((*_SIZES, "fit at most"), rows, words=_TEXT_COLUMNS)
    yield "recompute: --gradient_checkpointing. copies: of weights, in bf16; under fsdp, blocks while they are whole."
    yield "*: as the settings say. images: that a GPU works on at once."
    yield "!: too many; take the --device_tokens on the right, recompute, or fsdp."


def _memory_row(plan: "MemoryPlan", *, memory_bytes: int, patches: int) -> tuple[str, ...]:
    part = plan.memory
    most = part.most_images(memory_bytes)
    fit = f"{most:,} (--device_tokens {most * patches})" if most else "none"
    states = (part.weights, part.gradients, part.optimiser, part.ema, part.gathered)
    image, total = f"{part.activations_per_image / 1e9:.2f}", gigabytes(part.total(plan.num_images))
    mark = "" if plan.num_images <= most else "!"
    recompute = "yes" if plan.gradient_checkpointing else "no"
    return (
        plan.sharding + "*" * plan.as_set,
        recompute,
        *map(gigabytes, states),
        image,
        str(plan.num_images),
        f"{mark}{total}",
        fit,
    )


def _disk_section(rungs: "Sequence[RungPlan]", config: "PlanConfig") -> Iterator[str]:
    yield f"GB of features; {config.caption_tokens:g} tokens a caption, captions of an image: {config.caption_variants}"
    sizes = [(rung.disk.latents, rung.disk.captions_bf16, rung.disk.captions_int8, rung.disk.texts) for rung in rungs]
    rows = [
        (rung.stage, rung.resolution, count(rung.dataset.num_images), *(gigabytes(part) if part else "-" for part in parts))
        for rung, parts in zip(rungs, sizes, strict=True)
    ]
    yield from aligned(_DISK, rows, words=_TEXT_COLUMNS)
    latents, *ways = (sum(column) for column in zip(*sizes, strict=True))
    teacher = sum(cost.stored_bytes * rung.dataset.num_images for rung in rungs for cost in rung.techniques)
    answers = (
        f"{gigabytes(latents + teacher + way)} with {name}"
        for way, name in zip(ways, ("bf16", "int8", "--online"), strict=True)
    )
    stored = f", {gigabytes(teacher)} of a teacher among them" if teacher else ""
    yield f"In all {', '.join(answers)}{stored}. Resolutions of a stage share their captions."


def _encoding_section(rungs: "Sequence[RungPlan]", config: "PlanConfig") -> Iterator[str]:
    plans = [(rung, rung.encoding) for rung in rungs if rung.encoding is not None]
    if len(plans) < len(rungs):
        yield "Making the features: no estimate for other encoders than Stable Diffusion's VAE and T5-XXL"
        return
    price = config.device.price
    rows = [
        (
            rung.stage,
            rung.resolution,
            count(rung.dataset.num_images),
            f"{work.flops_per_image / 1e12:.2f}",
            f"{work.flops_per_caption / 1e12:.2f}" if work.flops_per_caption else "-",
            f"{work.flops:.2e}",
            hours(work.gpu_hours),
            hours(work.gpu_hours / config.num_gpus),
            money(None if price is None else work.gpu_hours * price),
        )
        for rung, work in plans
    ]
    yield "Making the features with Stable Diffusion's VAE and T5-XXL, at the same share of the peak"
    yield from aligned(_ENCODING, rows, words=_TEXT_COLUMNS)
    in_all = sum(work.gpu_hours for _, work in plans)
    cost = "" if price is None else f", ${in_all * price:,.0f}"
    without = "without reading and decoding images, a teacher and padding of captions"
    yield f"In all {hours(in_all / config.num_gpus)} hours{cost}, {without}."


def _reading_section(rungs: "Sequence[RungPlan]", config: "PlanConfig") -> Iterator[str]:
    yield f"GB/s of features that {config.num_gpus} GPUs read while they train; their disk must give it"
    rows = [
        (rung.stage, rung.resolution, f"{rung.images_per_s:,.0f}", *(f"{rate / 1e9:.2f}" for rate in _rates(rung)))
        for rung in rungs
    ]
    yield from aligned(_READING, rows, words=_TEXT_COLUMNS)


def _rates(rung: "RungPlan") -> tuple[float, float, float]:
    return rung.reading.bf16, rung.reading.int8, rung.reading.online


def _paper_section() -> Iterator[str]:
    yield "For reference: Table 4 of the PixArt-alpha paper, and the share of a V100's 125 TFLOP/s that its days imply"
    rows = [
        (row.stage, row.resolution, count(row.images_seen), row.v100_days, f"{row.flops:.2e}", f"{row.utilisation:.1%}")
        for row in PAPER_ROWS
    ]
    yield from aligned(_PAPER, rows, words=_TEXT_COLUMNS)
    days = f"{sum(row.v100_days for row in PAPER_ROWS)} V100-days / {PAPER_A100_PER_V100} = {paper_a100_days():.0f} A100-days"
    yield f"{days}; ${PAPER_DOLLARS:,} / ({PAPER_A100_DAYS} x 24 h) = ${paper_dollars_per_a100_hour():.2f} per A100-hour"


def _summary(rungs: "Sequence[RungPlan]", config: "PlanConfig") -> Iterator[str]:
    """The figures that decide, and a line for each that should be looked at again."""
    gpu_days, memory = sum(rung.gpu_days for rung in rungs), config.device.memory_bytes
    cost = "" if config.device.price is None else f", ${24 * gpu_days * config.device.price:,.0f}"
    needed = max(rung.memory_as_set.memory.total(rung.memory_as_set.num_images) for rung in rungs)
    stages = {stage: [rung for rung in rungs if rung.stage == stage] for stage in dict.fromkeys(rung.stage for rung in rungs)}
    passes = {
        name: count_passes([(rung.images_seen, rung.dataset.images_per_pass) for rung in stage])
        for name, stage in stages.items()
    }
    often = ", ".join(f"{passes_text(times)} in {stage}" for stage, times in passes.items()).replace(" in", " times in", 1)
    yield (
        f"In short: {_duration(gpu_days / config.num_gpus)} on {config.num_gpus} x {config.gpu}{cost}; {gigabytes(needed)} of "
        f"{memory / 1e9:.0f} GB on a GPU; each image is seen {often}"
    )
    for stage, times in passes.items():
        if warning := passes_warning(stage, times, num_images=stages[stage][0].dataset.num_images):
            yield f"warning: {warning.fact}: {warning.advice}"
    for rung in rungs:
        if rung.routing_warning:
            yield f"warning: {rung.stage} {rung.resolution} px: {rung.routing_warning}: {ADVICE}"


def _duration(days: float) -> str:
    return f"{days:.2f} days" if days >= 1 else f"{24 * days:.1f} hours"
