"""Comparison of captioners: runs over the same images, paired image by image, in figures, on a page, and by drawing."""
