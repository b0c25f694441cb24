"""Drawing with checkpoints: requests, pipelines that stay loaded, the history on disk."""
