"""Python API of captioning: runs from images, cleaned captions."""
