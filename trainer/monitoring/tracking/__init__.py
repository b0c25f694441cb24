"""Experiment trackers: what a run's folder holds is sent to W&B, trackio, MLflow and TensorBoard while it is trained."""
