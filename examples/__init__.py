"""Worked examples; no package imports them."""
