"""Prompts rewritten into captions like those of the training data, before an image is drawn of them."""
