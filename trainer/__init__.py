"""Training stage by stage on a GPU cluster."""

from typing import TYPE_CHECKING

__all__ = [
    "Evaluation",
    "FeatureStore",
    "SampleRequest",
    "Training",
    "TrainingPlan",
    "evaluate_checkpoint",
    "load_metrics",
    "open_features",
    "open_training",
    "plan_training",
    "precompute_features",
    "train",
]

if TYPE_CHECKING:
    from trainer.api.evaluation import Evaluation, evaluate_checkpoint
    from trainer.api.features import open_features, precompute_features
    from trainer.api.metrics import load_metrics
    from trainer.api.planning import TrainingPlan, plan_training
    from trainer.api.training import Training, open_training, train
    from trainer.features.store import FeatureStore, SampleRequest
else:
    from foundry.api.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "trainer.api.evaluation": ["Evaluation", "evaluate_checkpoint"],
            "trainer.api.features": ["open_features", "precompute_features"],
            "trainer.api.metrics": ["load_metrics"],
            "trainer.api.planning": ["TrainingPlan", "plan_training"],
            "trainer.api.training": ["Training", "open_training", "train"],
            "trainer.features.store": ["FeatureStore", "SampleRequest"],
        },
    )
