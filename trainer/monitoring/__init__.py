"""What a training reports: metrics, validation loss, sample grids, its run folder."""
