"""Which images count as duplicates of each other; apart from dedup.py, so that a command can read it without pyarrow."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """Raises ValueError for settings out of range."""

    exact: bool = False
    """Drop images whose bytes stand there before."""
    max_hamming: int | None = None
    """Drop images whose perceptual hash differs in at most so many of 64 bits (4 is usual); needs scores."""
    min_cosine: float | None = None
    """Drop images whose CLIP embeddings have at least this cosine (0.95 is usual); needs scores with a CLIP."""

    def __post_init__(self) -> None:
        problems = []
        if self.max_hamming is not None and not 0 <= self.max_hamming <= 8:
            problems.append(
                f"max_hamming must be between 0 and 8, found {self.max_hamming}: above it, other pictures match too"
            )
        if self.min_cosine is not None and not 0.5 <= self.min_cosine <= 1:
            problems.append(f"min_cosine must be between 0.5 and 1, found {self.min_cosine}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def is_near(self) -> bool:
        """Whether images that are nearly the same are looked for."""
        return self.max_hamming is not None or self.min_cosine is not None

    @property
    def is_on(self) -> bool:
        """Whether there is anything to do."""
        return self.exact or self.is_near
