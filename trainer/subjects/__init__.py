"""Subjects and styles learned from a handful of images (DreamBooth): their data set, with prior preservation."""
