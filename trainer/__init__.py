"""Training stage by stage on a GPU cluster."""
