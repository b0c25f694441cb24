"""Few steps in the small world: `python -m benchmarks.few_steps`, half an hour on two cores.

dit-mini is distilled to four steps, as a LoRA, by consistency and by rectification with about as many operations. Both draw the
held-out prompts of examples/openmoji in 4, 2 and 1 steps, the network itself in 20 with guidance; both evaluators score them.

object_N, all_N      share of held-out prompts whose objects, or everything, are drawn in N steps; mean of both evaluators.
                     20: the network itself; 4, 2 and 1: distilled by the better method; other_*: by the other one
loss_N               largest loss among all scores of a prompt (objects, size, place, background, relation, count, everything),
                     in points of the mean of both evaluators, below 20 steps
speedup              time of an image in 20 steps with guidance to that in 4 steps: text encoder, network and VAE, in turn

Trainings are folders of --out; after a kill the same command resumes them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.commands import run_module
from benchmarks.report import print_report
from benchmarks.results_folder import claim
from benchmarks.world_scores import WorldScorer
from foundry.command_line import run_command

STEPS = (4, 2, 1)
METHODS = ("consistency", "rectification")
_MAY_CHANGE = ("out", "timed_images", "timed_rounds")


@dataclass(frozen=True, kw_only=True)
class FewStepsBenchmarkConfig:
    """Settings of the benchmark."""

    out: str = "runs/few_steps"
    """Folder for everything that is made; the same command again resumes in it."""
    training: str = "examples/openmoji/few_steps.yaml"
    """Settings of both trainings, as `trainer.fit --config` takes them."""
    scenes: int = 12_000
    """Number of scenes that both trainings see."""
    rectification_images: int = 5_120
    """Images that rectification sees; one of them takes about 8 / 5 of the time of one of consistency."""
    consistency_images: int = 8_000
    """Images that consistency sees."""
    prompts_per_category: int = 10
    """Prompts of each of the benchmark's categories and splits; the held-out ones count."""
    images_per_prompt: int = 3
    """Images of each prompt, each with another seed."""
    timed_images: int = 32
    """Images of a round of drawing whose time is taken."""
    timed_rounds: int = 5
    """Rounds of both pipelines in turn; the median counts."""

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in asdict(self).items() if isinstance(value, int)}
        if wrong := [name for name, value in numbers.items() if value < 1]:
            raise ValueError(f"{', '.join(wrong)} must be 1 or more")

    @property
    def folder(self) -> Path:
        """`out`, as a path."""
        return Path(self.out)


def main(config: FewStepsBenchmarkConfig) -> int:
    """Trains and scores what is not there yet, prints table and figures; returns 0. Raises UserError."""
    from benchmarks.few_steps_world import make_features

    claim(config.folder, {name: value for name, value in asdict(config).items() if name not in _MAY_CHANGE})
    features = make_features(config.folder / "world", scenes=config.scenes)
    for method, images in zip(METHODS, (config.consistency_images, config.rectification_images), strict=True):
        print(f"training by {method}", flush=True)
        ladder = f'[{{"resolution": 64, "images": {images}, "batch_size": 32}}]'
        settings = ("--config", config.training, "--few_steps.method", method, "--ladder", ladder)
        run_module("trainer.fit", *settings, "--features", str(features), "--run_dir", str(config.folder / method))
    arms = {"20": ("mini", 20)}
    for method in METHODS:
        arms |= {f"{method} {steps}": (str(config.folder / method / "few_steps"), steps) for steps in STEPS}
    scores = _scores(config, arms)
    text = _table(scores)
    (config.folder / "few_steps.md").write_text(text, encoding="utf-8")
    print(f"\n{text}", flush=True)
    print_report("Few steps", _figures(scores) | {"speedup": _speedup(config)}, dtype="float32")
    return 0


def _scores(config: FewStepsBenchmarkConfig, arms: Mapping[str, tuple[str, int]]) -> dict[str, dict[str, float]]:
    """Of each arm, a checkpoint and a number of steps, the mean of each metric over prompts, seeds and both evaluators."""
    from model.generation.pipeline import open_pipeline
    from model.generation.pipeline_parts import RuntimeConfig
    from model.sampling import SamplingConfig

    scorer = WorldScorer(prompts_per_category=config.prompts_per_category)
    found = {}
    for name, (checkpoint, steps) in arms.items():
        pipeline = open_pipeline(checkpoint, runtime=RuntimeConfig(dtype="float32", batch_size=32))
        sampling = SamplingConfig(num_inference_steps=steps)
        by_seed = scorer.scores(pipeline, sampling, num_seeds=config.images_per_prompt)
        found[name] = {metric: fmean(values) for metric, values in sorted(by_seed.items())}
        print(f"{name}: {found[name]['all']:.3f}", flush=True)
    return found


def _worst(scores: Mapping[str, float], base: Mapping[str, float]) -> float:
    """The largest loss among all scores, in points."""
    return max(100 * (base[metric] - value) for metric, value in scores.items())


def _table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each training and number of steps, in percent."""
    metrics = list(scores["20"])
    rows = ["| steps | " + " | ".join(metrics) + " | largest loss |", "|---" * (len(metrics) + 2) + "|"]
    for name, found in scores.items():
        worst = "" if name == "20" else f"{_worst(found, scores['20']):.1f}"
        rows.append(f"| {name} | " + " | ".join(f"{100 * found[metric]:.1f}" for metric in metrics) + f" | {worst} |")
    return "\n".join(rows) + "\n"


def _figures(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    """The figures of the better method by the largest loss in four steps, and of the other one."""
    base = scores["20"]
    better, other = sorted(METHODS, key=lambda method: _worst(scores[f"{method} 4"], base))
    figures: dict[str, float | None] = {"object_20": base["object"], "all_20": base["all"]}
    for prefix, method in (("", better), ("other_", other)):
        for steps in STEPS:
            found = scores[f"{method} {steps}"]
            figures |= {f"{prefix}object_{steps}": found["object"], f"{prefix}all_{steps}": found["all"]}
            figures[f"{prefix}loss_{steps}"] = _worst(found, base)
    return figures | {"rectification_is_better": float(better == "rectification")}


def _speedup(config: FewStepsBenchmarkConfig) -> float:
    """How many times as long an image takes in 20 steps with guidance."""
    import statistics
    import time

    from examples.openmoji.prompts import draw_prompts
    from model.generation.pipeline import open_pipeline
    from model.generation.pipeline_parts import RuntimeConfig
    from model.generation.request import GenerationRequest

    prompts = tuple(one.text for one in draw_prompts(count=4, seed=3))[: config.timed_images]
    request = GenerationRequest(prompts=prompts)
    runtime = RuntimeConfig(dtype="float32", batch_size=16)
    paths = ("mini", str(config.folder / METHODS[0] / "few_steps"))
    pipelines = [open_pipeline(path, runtime=runtime) for path in paths]
    seconds: list[list[float]] = [[], []]
    for _ in range(config.timed_rounds + 1):
        for pipeline, times in zip(pipelines, seconds, strict=True):
            start = time.perf_counter()
            pipeline(request)
            times.append(time.perf_counter() - start)
    slow, quick = (statistics.median(times[1:]) for times in seconds)  # the first round loads and warms up
    return slow / quick


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            FewStepsBenchmarkConfig,
            main,
            prog="python -m benchmarks.few_steps",
            example="python -m benchmarks.few_steps",
        )
    )
