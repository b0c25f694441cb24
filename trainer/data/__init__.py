"""The order of samples, their loading, and the micro-batches of a step."""
