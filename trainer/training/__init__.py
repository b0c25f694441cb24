"""The training loop, its step and its checkpoints, in one process or on Ray."""
