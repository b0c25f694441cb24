"""From runs to a data set: recipe, selection, samples, files."""
