"""The settings of the benchmarks wise and wise_verified. Imports nothing heavy."""

from dataclasses import dataclass, field

from trainer.evaluation.benchmarks.judge_endpoint_config import JudgeEndpointConfig


@dataclass(frozen=True, kw_only=True)
class WiseConfig:
    """Where the prompts come from, and who judges."""

    folder: str | None = None
    """Your copy of the repository of WISE; default: a few prompts of our own."""
    instructions: str | None = None
    """What the judge is told: WISE's gpt_eval.py or vllm_eval.py, or a text with {prompt} and {explanation}; default: ours."""
    prompts_per_category: int | None = None
    """The first so many of each category, for a trial; default: all."""
    judge: JudgeEndpointConfig = field(default_factory=JudgeEndpointConfig)
    """The judge."""

    def __post_init__(self) -> None:
        if self.prompts_per_category is not None and self.prompts_per_category < 1:
            raise ValueError("wise.prompts_per_category must be 1 or more")
