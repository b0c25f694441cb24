"""The models that judge images."""
