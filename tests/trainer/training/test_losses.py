"""Losses of samples are recorded once each, whatever was killed, and SQL finds samples by them; skip and weights may be SQL."""



from trainer.config.ladder import Rung
from trainer.config.running import WatchConfig

HALF = (Rung(resolution=16, images=20, batch_size=4),)
WATCH = WatchConfig(every_steps=1, validate_every_images=0, sample_every_images=0, record_losses_every_steps=1)
