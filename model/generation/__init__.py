"""From prompts to image files: requests, sizes, the pipeline and its memory."""
