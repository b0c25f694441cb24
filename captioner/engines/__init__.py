"""Engines that write captions, and the models that they load."""
