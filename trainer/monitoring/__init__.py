"""Reports of a training: metrics, validation loss, sample grids, its run folder."""
