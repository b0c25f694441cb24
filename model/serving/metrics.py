"""Metrics of the image server in Prometheus' text format: requests, queue, batches, times."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class ServerMetrics:
    """Counters of one server; each has a registry to itself."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "t2i_requests", "Requests for images by status of the answer", ["status"], registry=self._registry
        )
        self.abandoned = Counter(
            "t2i_requests_abandoned", "Requests whose client went away before the answer", registry=self._registry
        )
        self.images = Counter("t2i_images", "Images drawn", registry=self._registry)
        self.steps = Histogram("t2i_step_images", "Images that took a step together", buckets=_ROWS, registry=self._registry)
        self.seconds = Histogram(
            "t2i_request_seconds",
            "Time from request to answer, of answers with images",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.step_seconds = Counter("t2i_step_seconds", "Time that steps took", registry=self._registry)

    def gauge(self, name: str, meaning: str, read: Callable[[], int]) -> None:
        """Adds a number that is read whenever metrics are asked for."""
        Gauge(name, meaning, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        """All metrics as Prometheus reads them."""
        return generate_latest(self._registry)
