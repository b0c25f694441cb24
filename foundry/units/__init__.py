"""Units of work: committed once, run on Ray, bisected when they fail."""
