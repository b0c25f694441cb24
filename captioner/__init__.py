"""Captions for images at scale: LLaVA on Ray, units of work that commit, concept density for each caption."""
