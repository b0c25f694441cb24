"""A project's plan as text."""

from collections.abc import Iterator, Sequence

from trainer.planning.config import PlanConfig
from trainer.planning.project import StepCost, captions_per_s, kg_co2
from trainer.planning.tables.text import aligned, count, gigabytes, hours, money

_COLUMNS = ("step", "images", "GPU-hours", "hours", "dollars", "GB written", "GB read", "GB/s", "kg CO2")


def project_section(steps: Sequence[StepCost], config: PlanConfig) -> Iterator[str]:
    """The table, its sum, and what it assumes."""
    yield "The whole project, from images to model"
    known = sum(step.gpu_hours or 0 for step in steps)
    written, read = (sum(getattr(step, name) for step in steps) for name in ("written_bytes", "read_bytes"))
    in_all = StepCost(name="in all", num_images=0, gpu_hours=known, written_bytes=written, read_bytes=read)
    yield from aligned(_COLUMNS, [_row(step, config) for step in (*steps, in_all)], words={"step"})
    speed, assumed = captions_per_s(config), config.assume
    said = "as given" if assumed.captioner_images_per_s is not None else "scaled from 20 of an 8B model on an H200, by vLLM"
    yield f"captions: {speed:.1f} a second and GPU ({said}); images of {assumed.image_kb:g} kB; {assumed.kept:.0%} are kept"
    yield (
        f"kg CO2: GPUs at full power, PUE {assumed.pue:g}, {assumed.grams_co2_per_kwh:g} g/kWh. GB/s: what storage must give, "
        "or the step waits for it. Captions of features as int8"
    )
    if any(step.gpu_hours is None for step in steps):
        yield "?: no estimate for other encoders than Stable Diffusion's VAE and T5-XXL; it is missing in the sum"


def _row(step: StepCost, config: PlanConfig) -> tuple[str, ...]:
    price, used = config.device.price, step.gpu_hours
    wall = None if used is None else used / config.num_gpus
    co2 = None if used is None else kg_co2(used, config)
    return (
        step.name,
        count(step.num_images) if step.num_images else "",
        "?" if used is None else hours(used),
        "?" if wall is None else hours(wall),
        money(None if price is None or used is None else price * used),
        gigabytes(step.written_bytes) if step.written_bytes else "-",
        gigabytes(step.read_bytes),
        f"{step.read_bytes / (3600e9 * wall):.2f}" if wall and step.num_images else "",
        "?" if co2 is None else f"{co2:,.0f}" if co2 >= 10 else f"{co2:.1f}",
    )
