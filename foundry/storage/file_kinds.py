"""File kinds, told by the name alone: image, sidecar, tar, Parquet, list, or a file to skip."""

from collections.abc import Collection
from dataclasses import dataclass

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

RESULTS = {"run.json": ("plans", "commits"), "dataset.json": ("samples",), "features.json": ("plan", "commits")}
"""Record of a folder of ours, and the folders of which one is next to it. The record's name alone may be a sidecar's."""

_MARKED_SUFFIXES = (PARQUET_SUFFIX, *TEXT_LIST_SUFFIXES)

EXPECTED = "image files, .tar (WebDataset, SA-1B), .parquet with image bytes, or a list of paths (.jsonl, .csv, .tsv, .parquet)"


@dataclass
class PassedOver:
    """Counts what a search leaves out because of its name: files that would have been taken, folders, and results of ours."""

    files: int = 0
    folders: int = 0
    results: int = 0

    def line(self, *, in_tars: int = 0) -> str:
        """One line for a person, empty where nothing was passed over; `in_tars` are more files."""
        counts = [(self.files + in_tars, "file"), (self.folders, "folder")]
        found = " and ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts if count)
        marks = "hidden (.), or a folder, Parquet file or list that begins with _"
        named = f"because of their names: {found} ({marks})" if found else ""
        ours = f"{self.results} folder{'s' if self.results > 1 else ''} of runs, data sets or features" if self.results else ""
        return f"passed over {' and '.join(part for part in (named, ours) if part)}" if named or ours else ""


def holds_results(files: Collection[str], subfolders: Collection[str]) -> bool:
    """Whether a folder with these names is a run, a data set or a feature store, which holds no images to caption."""
    return any(record in files and any(name in subfolders for name in folders) for record, folders in RESULTS.items())


def is_ignored(name: str, *, is_folder: bool) -> bool:
    """Whether a search passes over one component of a path: hidden, or a folder, Parquet file or list marked by `_`.

    `_` marks what belongs to the data and is none (`_SUCCESS`, `__MACOSX`); images keep it, since cameras write `_DSC1234.JPG`.
    """
    return name.startswith(".") or (name.startswith("_") and (is_folder or name.lower().endswith(_MARKED_SUFFIXES)))


def is_ignored_path(path: str) -> bool:
    """Whether any component of a file's path is passed over.

    >>> is_ignored_path("a/_DSC1.jpg"), is_ignored_path("__MACOSX/a.jpg"), is_ignored_path("a/._DSC1.jpg")
    (False, True, True)
    """
    if not path.startswith((".", "_")) and "/." not in path and "/_" not in path:
        return False  # the inner loop of indexing
    *folders, name = path.split("/")
    return is_ignored(name, is_folder=False) or any(is_ignored(folder, is_folder=True) for folder in folders)


def is_source(name: str) -> bool:
    """Whether the suffix is that of an image or of something that holds or names images."""
    return is_image(name) or is_compressed_tar(name) or name.lower().endswith((TAR_SUFFIX, *_MARKED_SUFFIXES))


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
