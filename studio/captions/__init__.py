"""Captions of runs and data sets: index, pages, filters, histograms, thumbnails, edits and flags."""
