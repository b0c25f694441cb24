"""HTTP servers: what those of captions and of images have in common."""
