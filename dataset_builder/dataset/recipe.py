"""Recipe of a data set: what it takes of captioning runs, and where it is written. Imports neither pyarrow nor SQL."""

from dataclasses import dataclass, field

STATUS_OK = "ok"


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """Raises ValueError for settings out of range."""

    exact: bool = False
    """Drop images whose bytes equal those of another image."""
    max_hamming: int | None = None
    """Drop images whose perceptual hashes differ in at most this many of 64 bits (4 is usual); needs scores."""
    min_cosine: float | None = None
    """Drop images whose CLIP embeddings have at least this cosine similarity (0.95 is usual); needs scores with a CLIP."""

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


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """The steps, in the order in which they are taken. Raises ValueError for bounds that nothing can meet."""

    statuses: tuple[str, ...] = (STATUS_OK,)
    """Keep captions of these statuses."""
    prompts: tuple[str, ...] = ()
    """Keep captions of these prompts; default: of all prompts."""
    min_side_px: int = 0
    """Minimum length of the shorter side of an image, in pixels."""
    max_aspect: float | None = None
    """Maximum ratio of the longer to the shorter side; the buckets of the trainer end at 4."""
    least: dict[str, float] = field(default_factory=dict)
    """Minimum of numeric columns of captions, images and scores, such as clip_mean: 0.25; rows without a value are dropped."""
    where: str = ""
    """SQL condition on a caption, its image and its scores; keeps captions where it is true. Subqueries see all views."""
    quantiles: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Keep captions between two quantiles of a numeric column, computed over those still left: num_nouns: [0.1, 1]."""
    dedup: DedupConfig = field(default_factory=DedupConfig)
    """Duplicate settings: which images count as the same; one image of each group is kept."""
    max_per_noun: int | None = None
    """Cap the images of over-represented nouns at about this number; a hash chooses the images."""
    uncapped_nouns: tuple[str, ...] = ()
    """Nouns exempt from `max_per_noun`, in addition to the meta-nouns, for example those of every caption, such as a style."""
    splits: dict[str, float | str] = field(default_factory=lambda: {"validation": 0.01, "train": 0.99})
    """Share of the images (0 to 1, drawn by a hash of the key) or SQL condition of each split; the first match counts."""
    seed: int = 0
    """Random seed of the hashes that choose images."""

    def __post_init__(self) -> None:
        shares = [share for share in self.splits.values() if not isinstance(share, str)]
        problems = [
            message
            for message, holds in [
                ("statuses must name at least one status, such as ok", bool(self.statuses)),
                ("min_side_px must be 0 or more", self.min_side_px >= 0),
                ("max_aspect must be 1 or more", self.max_aspect is None or self.max_aspect >= 1),
                ("max_per_noun must be 1 or more", self.max_per_noun is None or self.max_per_noun >= 1),
                (
                    "quantiles must be two numbers, 0 <= from < to <= 1",
                    all(0 <= a < b <= 1 for a, b in self.quantiles.values()),
                ),
                ("splits must name at least one split", bool(self.splits)),
                ("shares of splits must be above 0 and sum to at most 1", all(shares) and 0 <= sum(shares) <= 1 + 1e-9),
                ("names of splits are letters, digits and _", all(name.isidentifier() for name in self.splits)),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class SelectionConfig(RecipeConfig):
    """The recipe and its runs. Raises ValueError as RecipeConfig does, and for no runs."""

    captions: tuple[str, ...]
    """Captioning runs, folders or URLs; of an unfinished run, the committed units are used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.captions:
            raise ValueError("captions must name at least one captioning run")


@dataclass(frozen=True, kw_only=True)
class BuildConfig(SelectionConfig):
    """The recipe, its runs and the folder of the result. Raises ValueError as SelectionConfig does."""

    out: str
    """Folder or URL of the data set: a new one, or the same data set again."""
    name: str = ""
    """Name on the data card; default: the last part of `out`."""
    embed: bool = False
    """Store image bytes in the samples instead of references."""
    dry_run: bool = False
    """Print the funnel and write nothing."""
