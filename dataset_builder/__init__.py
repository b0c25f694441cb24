"""Captions: nouns and their density, SQL, scores, imports, data sets and reports."""

from typing import TYPE_CHECKING

__all__ = [
    "Answer",
    "Dataset",
    "Density",
    "Run",
    "build_dataset",
    "measure_density",
    "open_dataset",
    "open_run",
    "preview_dataset",
    "score_images",
]

if TYPE_CHECKING:
    from dataset_builder.api.answer import Answer
    from dataset_builder.api.building import build_dataset, preview_dataset, score_images
    from dataset_builder.api.density import Density, measure_density
    from dataset_builder.api.stored import Dataset, Run, open_dataset, open_run
else:
    from foundry.api.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "dataset_builder.api.answer": ["Answer"],
            "dataset_builder.api.building": ["build_dataset", "preview_dataset", "score_images"],
            "dataset_builder.api.density": ["Density", "measure_density"],
            "dataset_builder.api.stored": ["Dataset", "Run", "open_dataset", "open_run"],
        },
    )
