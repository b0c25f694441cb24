"""What a file is, judged by its name alone: an image, a file beside one, a tar, Parquet, a list, or nothing to look at."""

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".ico"),
    )
)
"""HEIC is listed although no decoder is at hand: such a file is better rejected by name than passed over."""

SIDECAR_SUFFIXES = (".txt", ".caption", ".cls", ".json")
"""Files that share the stem of an image and describe it: two kinds of text, a class label, JSON. The first counts."""

TAR_SUFFIX = ".tar"
COMPRESSED_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
PARQUET_SUFFIX = ".parquet"
TEXT_LIST_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")

EXPECTED = "image files, .tar (WebDataset, SA-1B), .parquet with image bytes, or a list of paths (.jsonl, .csv, .tsv, .parquet)"


def is_ignored(name: str) -> bool:
    """Whether one component of a path is passed over in a search: hidden, marked by `_`, or made by macOS (`__MACOSX`)."""
    return name.startswith(("_", "."))


def is_image(name: str) -> bool:
    """Whether the suffix is that of an image, in any case."""
    return suffix_of(name) in IMAGE_SUFFIXES


def is_compressed_tar(name: str) -> bool:
    """Whether the suffix is that of a tar in which bytes cannot be found again by their offset."""
    return name.lower().endswith(COMPRESSED_TAR_SUFFIXES)


def split_suffix(path: str) -> tuple[str, str]:
    """A path without its last suffix, and that suffix with its dot in lower case, empty if there is none.

    What os.path.splitext does, in a third of the time: it is the inner loop of indexing.

    >>> split_suffix("a.b/sa_1.JPG"), split_suffix("a.b/readme"), split_suffix("a/.hidden")
    (('a.b/sa_1', '.jpg'), ('a.b/readme', ''), ('a/.hidden', ''))
    """
    dot = path.rfind(".")
    return (path[:dot], path[dot:].lower()) if dot > path.rfind("/") + 1 else (path, "")


def suffix_of(path: str) -> str:
    """The last suffix in lower case with its dot; empty for a name without one."""
    return split_suffix(path)[1]


def stem_of(path: str) -> str:
    """The last component of a path or URL without its last suffix; the query of a URL is cut off first.

    >>> stem_of("https://host/a/sa_1.jpg?size=large"), stem_of("a/b.c.png")
    ('sa_1', 'b.c')
    """
    if "://" in path:
        path = path.split("?", 1)[0].split("#", 1)[0]
    return split_suffix(path[path.rfind("/") + 1 :])[0]
