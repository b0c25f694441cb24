"""Layers of the network with their own files: linear layers, packed captions, the text adapter, token routing."""
