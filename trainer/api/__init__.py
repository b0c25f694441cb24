"""Python API of training: features, trainings and their metrics, plans, evaluations."""
