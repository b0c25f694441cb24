"""Captions for images at scale: LLaVA on Ray, units of work that commit, the nouns of each caption."""

from typing import TYPE_CHECKING

__all__ = ["CleanedCaption", "PromptSet", "Run", "caption", "clean_caption", "load_prompts", "open_run"]

if TYPE_CHECKING:
    from captioner.api.captioning import caption, clean_caption
    from captioner.cleaning import CleanedCaption
    from captioner.prompt_sets import load_prompts
    from captioner.prompts import PromptSet
    from dataset_builder.api.stored import Run, open_run
else:
    from foundry.api.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "captioner.api.captioning": ["caption", "clean_caption"],
            "captioner.cleaning": ["CleanedCaption"],
            "captioner.prompt_sets": ["load_prompts"],
            "captioner.prompts": ["PromptSet"],
            "dataset_builder.api.stored": ["Run", "open_run"],
        },
    )
