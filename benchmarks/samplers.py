"""Samplers in the small world: `python -m benchmarks.samplers`, three quarters of an hour on one core.

dit-mini draws the held-out prompts of examples/openmoji by each sampler, with each spacing of its noise levels, in 8, 12 and 20
steps, with several seeds; both evaluators score the images.

even       the same distance between two noise levels: the spacing that the samplers have by themselves
shift 3    even, then shifted towards noise
karras     even in the seventh root of noise / image (Karras et al. 2022, equation 5)
searched   those that lead nearest to the way of 100 small steps, found by dynamic programming over the error of single steps
           (as GITS, Chen et al. 2024, arXiv 2405.11326) on prompts that are not scored

all_SAMPLER_SPACING_N      share of images that show everything as asked; mean of both evaluators and all seeds; likewise
                           object_
spread_SAMPLER_SPACING_N   standard deviation of all_ over the seeds
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import print_report
from benchmarks.world_scores import WorldScorer
from foundry.command_line import run_command

if TYPE_CHECKING:
    from model.generation.pipeline import Pipeline

SAMPLERS = ("dpm-solver++", "sa-solver", "ddim")
SPACINGS = ("even", "shift 3", "karras", "searched")
_REFERENCE_STEPS = 100
_SEARCHED_PROMPTS = 4
_FLOOR, _RHO = 0.002, 7
"""Of Karras' spacing: the last noise level, and the root."""


@dataclass(frozen=True, kw_only=True)
class SamplersConfig:
    """Settings of the benchmark."""

    checkpoint: str = "mini"
    """Checkpoint of a rectified flow that knows the small world."""
    out: str = "runs/samplers"
    """Folder of the table."""
    steps: tuple[int, ...] = (8, 12, 20)
    """Numbers of steps."""
    prompts_per_category: int = 10
    """Prompts of each of the benchmark's categories; those of held-out combinations are drawn."""
    num_seeds: int = 3
    """Number of images of each prompt, each with another seed."""

    def __post_init__(self) -> None:
        if min(self.prompts_per_category, self.num_seeds, *self.steps) < 1:
            raise ValueError("steps, prompts_per_category and num_seeds must be 1 or more")


def main(config: SamplersConfig) -> int:
    """Draws and scores, prints table and figures; returns 0. Raises UserError."""
    from model.generation.pipeline import open_pipeline
    from model.generation.pipeline_parts import RuntimeConfig
    from model.sampling import SamplingConfig

    pipeline = open_pipeline(config.checkpoint, runtime=RuntimeConfig(dtype="float32", batch_size=32))
    levels, costs = _reference(pipeline)
    scorer = WorldScorer(prompts_per_category=config.prompts_per_category)
    found: dict[tuple[str, str, int], dict[str, list[float]]] = {}
    for steps in config.steps:
        chosen = {spacing: _spaced(spacing, steps) for spacing in SPACINGS[:-1]}
        chosen["searched"] = searched_levels(levels, costs, steps)
        print(f"{steps} steps, searched: {', '.join(f'{level:.3f}' for level in chosen['searched'])}", flush=True)
        for sampler in SAMPLERS:
            for spacing in SPACINGS:
                sampling = SamplingConfig(sampler=sampler, sigmas=chosen[spacing])
                found[sampler, spacing, steps] = scorer.scores(pipeline, sampling, num_seeds=config.num_seeds)
                print(
                    f"{sampler}, {spacing}, {steps}: {statistics.fmean(found[sampler, spacing, steps]['all']):.3f}", flush=True
                )
    text = _table(found, config.steps)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    (Path(config.out) / "samplers.md").write_text(text, encoding="utf-8")
    print(f"\n{text}", flush=True)
    print_report("Samplers", _figures(found), dtype="float32")
    return 0


def _spaced(spacing: str, num: int) -> tuple[float, ...]:
    """Noise levels of a spacing, from 1 down; the end, 0, is not among them."""
    even = [1 - step / num for step in range(num)]
    if spacing == "even":
        return tuple(even)
    if spacing == "shift 3":
        return tuple(3 * level / (1 + 2 * level) for level in even)
    first, last = ((level / (1 - level)) ** (1 / _RHO) for level in (0.999, _FLOOR))
    ratios = [(first + step / max(1, num - 1) * (last - first)) ** _RHO for step in range(num)]
    return tuple(ratio / (1 + ratio) for ratio in ratios)


def searched_levels(levels: Sequence[float], costs: Sequence[Sequence[float]], num: int) -> tuple[float, ...]:
    """The `num` of the falling levels, the first among them, whose steps cost least together; costs[i][j]: from i to j."""
    last = len(levels) - 1
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}
    for left in range(num - 1, -1, -1):
        ends = [last] if left == 0 else range(1, last)
        best = {
            end: min((cost + costs[start][end], (*path, end)) for start, (cost, path) in best.items() if start < end)
            for end in ends
            if any(start < end for start in best)
        }
    _, path = best[last]
    return tuple(levels[index] for index in path[:-1])


def _reference(pipeline: "Pipeline") -> tuple[list[float], list[list[float]]]:
    """Levels of the reference, and the error (squared) of a step of first order from each to each later one, on average."""
    import torch

    from examples.openmoji.prompts import draw_prompts
    from model.generation.request import GenerationRequest
    from model.sampling import SamplingConfig

    prompts = tuple(one.text for one in draw_prompts(count=_SEARCHED_PROMPTS, seed=99))
    levels = [1 - step / _REFERENCE_STEPS for step in range(_REFERENCE_STEPS + 1)]
    sampling = SamplingConfig(sampler="euler", sigmas=tuple(levels[:-1]))
    noise = torch.randn(
        len(prompts), *pipeline.latent_shape(pipeline.check(GenerationRequest(prompts=prompts, sampling=sampling)))
    )
    after: dict[int, list[torch.Tensor]] = {}
    request = GenerationRequest(prompts=prompts, noise=noise, sampling=sampling)
    pipeline(request, output="latents", on_step=lambda step, _, latents: after.setdefault(step, []).append(latents.clone()))
    ways = torch.stack([noise, *(torch.cat(after[step]) for step in range(_REFERENCE_STEPS))])  # (101, prompts, C, h, w)
    at = torch.tensor(levels)
    velocities = (ways[1:] - ways[:-1]) / (at[1:] - at[:-1]).view(-1, 1, 1, 1, 1)  # (100, …)
    costs = torch.zeros(len(levels), len(levels))
    for start in range(_REFERENCE_STEPS):
        length = (at[start + 1 :] - at[start]).view(-1, 1, 1, 1, 1)
        missed = ways[start] + length * velocities[start] - ways[start + 1 :]
        costs[start, start + 1 :] = missed.square().flatten(1).mean(1)
    return levels, costs.tolist()


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _table(found: Mapping[tuple[str, str, int], Mapping[str, list[float]]], steps: Sequence[int]) -> str:
    """A row for each sampler and spacing: all as asked, with its spread, and the objects, in percent."""
    rows = ["| sampler | spacing | " + " | ".join(f"{num} steps: all | objects" for num in steps) + " |"]
    rows.append("|---" * (2 + 2 * len(steps)) + "|")
    for sampler in SAMPLERS:
        for spacing in SPACINGS:
            cells = []
            for num in steps:
                scores = found[sampler, spacing, num]
                cells += [f"{100 * statistics.fmean(scores['all']):.1f} ± {100 * _spread(scores['all']):.1f}"]
                cells += [f"{100 * statistics.fmean(scores['object']):.1f}"]
            rows.append(f"| {sampler} | {spacing} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _figures(found: Mapping[tuple[str, str, int], Mapping[str, list[float]]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for (sampler, spacing, steps), scores in found.items():
        name = f"{sampler}_{spacing.replace(' ', '_')}_{steps}"
        figures |= {f"all_{name}": statistics.fmean(scores["all"]), f"object_{name}": statistics.fmean(scores["object"])}
        figures[f"spread_{name}"] = _spread(scores["all"])
    return figures


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            SamplersConfig,
            main,
            prog="python -m benchmarks.samplers",
            example="python -m benchmarks.samplers --steps 8 12",
        )
    )
