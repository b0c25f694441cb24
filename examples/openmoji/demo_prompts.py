"""The prompts that the demo draws after each stage: those of `trainer.evaluate` for the reduced world."""

from examples.openmoji.demo_commands import NUM_KINDS
from examples.openmoji.prompts import WorldPrompt, draw_prompts
from trainer.evaluation.config import OpenMojiConfig


def demo_prompts(prompts_per_category: int) -> tuple[WorldPrompt, ...]:
    """This many of each category and split. Raises UserError for a world that does not have that many."""
    seed = OpenMojiConfig().prompt_seed
    return draw_prompts(count=prompts_per_category, seed=seed, single_object=True, num_kinds=NUM_KINDS)
