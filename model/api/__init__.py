"""Python API of networks: images from prompts."""
