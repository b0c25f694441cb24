"""The settings of an evaluation, and the benchmarks that there are. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Literal

from foundry.hardware import AutoDtype
from model.generation.pipeline_parts import RuntimeConfig
from model.sampling import SamplingConfig
from trainer.evaluation.benchmarks.geneval_config import GenEvalConfig
from trainer.evaluation.benchmarks.prompts_config import PromptsConfig
from trainer.evaluation.benchmarks.t2i_compbench_config import T2ICompBenchConfig
from trainer.evaluation.benchmarks.wise_config import WiseConfig

BENCHMARKS = {
    "openmoji": "examples.openmoji.benchmark",
    "t2i_compbench": "trainer.evaluation.benchmarks.t2i_compbench",
    "geneval": "trainer.evaluation.benchmarks.geneval",
    "wise": "trainer.evaluation.benchmarks.wise",
    "wise_verified": "trainer.evaluation.benchmarks.wise_verified",
    "prompts": "trainer.evaluation.benchmarks.prompts",
}
"""Modules by name, imported when chosen: see trainer/evaluation/benchmark.py."""


@dataclass(frozen=True, kw_only=True)
class OpenMojiConfig:
    """The prompts of the small world."""

    prompts_per_category: int = 25
    """Of each of the two splits: held-out combinations, and such as occur in training."""
    prompt_seed: int = 2026
    """Another seed gives other prompts."""
    style: Literal["person", "dense"] = "person"
    """As a person would write, or as llava-mini describes pictures."""
    single_objects: bool = False
    """One object in each scene; without the categories that need several."""
    num_kinds: int | None = None
    """Only the first kinds, for a network that was trained on those; default: all."""

    def __post_init__(self) -> None:
        if self.prompts_per_category < 1 or (self.num_kinds is not None and self.num_kinds < 1):
            raise ValueError("openmoji: prompts_per_category and num_kinds must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `python -m trainer.evaluate`."""

    benchmark: str
    """One of BENCHMARKS."""
    out: str
    """Folder of images, verdicts and results."""
    checkpoint: str | None = None
    """`mini` (shipped) or a folder with transformer/ and pipeline.json."""
    images: str | None = None
    """In place of a checkpoint: a folder of images that somebody else drew, named as `model.generate` names them."""
    num_images_per_prompt: int | None = None
    """Images of each prompt, with the seeds seed, seed + 1, …; default: as many as the benchmark is defined with."""
    seed: int = 0
    """Seed of the first image of each prompt; with openmoji of the first prompt, and the next goes on from there."""
    judges: tuple[str, ...] = ()
    """Which judges score; default: all that the benchmark has."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampler, steps, guidance."""
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(batch_size=16))
    """Where and how the pipeline runs."""
    num_workers: int = 0
    """Ray workers that draw, each with a GPU where there are any; 0: draw in this process."""
    text_encoder: str | None = None
    """Where the checkpoint's text encoder is, if not where pipeline.json says."""
    vae: str | None = None
    """Where the checkpoint's VAE is, if not where pipeline.json says."""
    features: str | None = None
    """FEATURES/<stage>/<resolution>: measure the checkpoint's loss on the validation split of these features too."""
    validation_images: int = 1024
    """Images that the loss is measured on, at most."""
    judge_batch_size: int = 64
    """Images that are judged together."""
    judge_device: str = "auto"
    """Where judges and set metrics with a network run: cuda, cpu, …; auto: cuda where there is one."""
    judge_dtype: AutoDtype = "auto"
    """Number format that they compute in; figures differ a little. auto: what an evaluation began with, else bfloat16 where the
    hardware has it, else float32."""
    page_images: int = 6
    """Images on the page of each category: so many of the worst and so many of the best."""
    openmoji: OpenMojiConfig = field(default_factory=OpenMojiConfig)
    """Of the benchmark openmoji."""
    t2i_compbench: T2ICompBenchConfig = field(default_factory=T2ICompBenchConfig)
    """Of the benchmark t2i_compbench."""
    geneval: GenEvalConfig = field(default_factory=GenEvalConfig)
    """Of the benchmark geneval."""
    wise: WiseConfig = field(default_factory=WiseConfig)
    """Of the benchmarks wise and wise_verified."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    """Of the benchmark prompts."""

    def __post_init__(self) -> None:
        problems = [
            message
            for message, holds in [
                (f"benchmark must be one of {', '.join(BENCHMARKS)}, found {self.benchmark}", self.benchmark in BENCHMARKS),
                ("give either --checkpoint or --images", (self.checkpoint is None) != (self.images is None)),
                ("--features needs --checkpoint", self.features is None or self.checkpoint is not None),
                (
                    "num_images_per_prompt must be 1 or more",
                    self.num_images_per_prompt is None or self.num_images_per_prompt >= 1,
                ),
                ("seed must be 0 or more", self.seed >= 0),
                ("num_workers must be 0 or more", self.num_workers >= 0),
                ("validation_images must be 1 or more", self.validation_images >= 1),
                ("judge_batch_size must be 1 or more", self.judge_batch_size >= 1),
                ("page_images must be 0 or more", self.page_images >= 0),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))
