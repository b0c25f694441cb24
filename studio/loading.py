"""Lock around the loading of large libraries: the tagger hides torch from spaCy while that is imported, so that no other thread
may import torch meanwhile."""

import threading

LOADING = threading.RLock()
