"""Settings of fetching images from the web; they change no image, so a run may be resumed with others."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WebSettings:
    """Settings of fetching images from `http://` and `https://` addresses."""

    parallel: int = 32
    """Number of images that each worker process fetches at once."""
    parallel_per_host: int = 8
    """Maximum of them from one host."""
    timeout_s: float = 15.0
    """Seconds until a fetch counts as failed; a failed fetch is repeated once."""
    user_agent: str = "t2i-foundry"
    """Name that servers see, and that robots.txt and X-Robots-Tag may mention; best with an address to ask at."""
    opt_out: bool = True
    """Reject images that come with X-Robots-Tag noai, noimageai, noindex or noimageindex."""
    robots_txt: bool = False
    """Read the robots.txt of each host, and reject images that it disallows; one more request per host."""
    host_failures: int = 5
    """Failures in a row, without any answer, after which a host counts as down."""
    host_pause_s: float = 60.0
    """Seconds for which images of a host that is down are not asked for, and fail at once."""

    def __post_init__(self) -> None:
        wrong = [
            name
            for name in ("parallel", "parallel_per_host", "timeout_s", "host_failures", "host_pause_s")
            if not getattr(self, name) > 0
        ]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} must be above 0")
        if not self.user_agent.strip() or not self.user_agent.isprintable():
            raise ValueError("user_agent must be a name in one line")
