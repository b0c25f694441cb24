"""Features of a vision tower for REPA, made of stored latents and read with them."""
