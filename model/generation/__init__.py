"""Generation of image files from prompts: requests, sizes, the pipeline and its memory."""
