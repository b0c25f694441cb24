"""Layers of the network that files of their own hold: linear layers, packed captions, the text adapter, token routing."""
