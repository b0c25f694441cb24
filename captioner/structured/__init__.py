"""Structured captions: JSON schemas and the answers that follow them, and their rendering to prose."""
