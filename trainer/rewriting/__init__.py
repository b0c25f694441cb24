"""Rewriters: small encoder-decoders that turn short prompts into captions like those of the training data."""
