"""Captions: nouns and their density, SQL, scores, imports, data sets and reports."""
