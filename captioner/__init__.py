"""Captions for images at scale: LLaVA on Ray, units of work that commit, the nouns of each caption."""
