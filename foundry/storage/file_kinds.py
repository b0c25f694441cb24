"""File kinds, told by the name alone: image, sidecar, tar, Parquet, list, or a file to skip."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

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

MASKS = ("*.mask.png",)
"""Names of image files that are masks of other images: a search leaves them out unless it is told otherwise."""

_MARKED_SUFFIXES = (PARQUET_SUFFIX, *TEXT_LIST_SUFFIXES)
# Folders of network drives and systems, in lower case: thumbnails, snapshots and deleted files.
_DRIVE_FOLDERS = ("@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin")
_MARKS = ("/.", "/_", "/@", "/#", "/$")
_NAMED_SUFFIXES = 5

EXPECTED = "image files, .tar (WebDataset, SA-1B), .parquet with image bytes, or a list of paths (.jsonl, .csv, .tsv, .parquet)"


@dataclass
class PassedOver:
    """Counts what a search leaves out: because of its name (files that would have been taken, folders), results of ours, masks,
    names that are not UTF-8, and files of other kinds by suffix. `notes` are other findings that a user should know of."""

    files: int = 0
    folders: int = 0
    results: int = 0
    drive_folders: int = 0
    """Folders of is_drive_folder."""
    masks: int = 0
    """Images that one of the patterns to ignore fits."""
    not_utf8: int = 0
    """Files and folders whose names are not UTF-8, which no table can hold."""
    sidecars: int = 0
    """Texts, labels and JSONs in a folder or tar with images that share their name with none of them."""
    suffixes: Counter[str] = field(default_factory=Counter)
    """Files that are no image, sidecar or source by their suffix, by that suffix."""
    notes: dict[str, tuple[int, str]] = field(default_factory=dict)
    """A finding, as it reads after a number → how often it was made, and where first."""

    def note(self, finding: str, where: str, *, count: int = 1) -> None:
        """Adds to a finding."""
        before, first = self.notes.get(finding, (0, where))
        self.notes[finding] = (before + count, first)

    def add(self, other: "PassedOver") -> None:
        """Adds the counts and notes of another search."""
        self.files += other.files
        self.folders += other.folders
        self.results += other.results
        self.drive_folders += other.drive_folders
        self.masks += other.masks
        self.not_utf8 += other.not_utf8
        self.sidecars += other.sidecars
        self.suffixes += other.suffixes
        for finding, (count, where) in other.notes.items():
            self.note(finding, where, count=count)

    def line(self, *, in_tars: int = 0) -> str:
        """One line for a person, empty if nothing was passed over; `in_tars` are more files."""
        counts = [(self.files + in_tars, "file"), (self.folders, "folder")]
        found = " and ".join(_counted(count, what) for count, what in counts if count)
        marks = "name starts with ., or with _ for a folder, Parquet file or list"
        parts = [f"{found} ({marks})"] if found else []
        if self.results:
            parts.append(f"{_counted(self.results, 'folder')} of runs, data sets or features")
        if self.drive_folders:
            parts.append(f"{_counted(self.drive_folders, 'folder')} of thumbnails or deleted files on a drive")
        if self.masks:
            parts.append(f"{_counted(self.masks, 'mask')} of images")
        if self.not_utf8:
            parts.append(f"{_counted(self.not_utf8, 'name')} of files or folders that UTF-8 cannot hold (rename them)")
        if self.sidecars:
            parts.append(f"{_counted(self.sidecars, 'text or JSON file')} with the name of no image")
        if self.suffixes:
            parts.append(f"{_counted(self.suffixes.total(), 'file')} that no reader takes for images ({self._suffixes()})")
        return f"skipped {' and '.join(parts)}" if parts else ""

    def _suffixes(self) -> str:
        ranked = sorted(self.suffixes.items(), key=lambda item: (-item[1], item[0]))
        named = [f"{suffix or 'no suffix'} {count:,}" for suffix, count in ranked[:_NAMED_SUFFIXES]]
        return ", ".join([*named, *["…"] * (len(ranked) > _NAMED_SUFFIXES)])


def holds_results(files: Collection[str], subfolders: Collection[str]) -> bool:
    """Whether a folder with these names is a run, a data set or a feature store, which holds no images to caption."""
    return any(record in files and any(name in subfolders for name in folders) for record, folders in RESULTS.items())


def is_ignored(name: str, *, is_folder: bool) -> bool:
    """Whether a search passes over one component of a path: hidden, or a folder, Parquet file or list marked by `_`, or a
    folder in which a network drive keeps thumbnails or deleted files.

    `_` marks what belongs to the data and is none (`_SUCCESS`, `__MACOSX`); images keep it, since cameras write `_DSC1234.JPG`.
    """
    if is_folder and is_drive_folder(name):
        return True
    return name.startswith(".") or (name.startswith("_") and (is_folder or name.lower().endswith(_MARKED_SUFFIXES)))


def is_drive_folder(name: str) -> bool:
    """Whether a folder of this name holds a network drive's or a system's thumbnails, snapshots or deleted files."""
    return name.lower() in _DRIVE_FOLDERS


def is_ignored_path(path: str) -> bool:
    """Whether any component of a file's path is passed over.

    >>> is_ignored_path("a/_DSC1.jpg"), is_ignored_path("__MACOSX/a.jpg"), is_ignored_path("a/._DSC1.jpg")
    (False, True, True)
    """
    if not path.startswith((".", "_", "@", "#", "$")) and not any(mark in path for mark in _MARKS):
        return False  # the inner loop of indexing
    *folders, name = path.split("/")
    return is_ignored(name, is_folder=False) or any(is_ignored(folder, is_folder=True) for folder in folders)


def is_mask(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns fits a file's name, in any case.

    >>> is_mask("a.mask.PNG", MASKS), is_mask("mask.png", MASKS)
    (True, False)
    """
    return bool(patterns) and any(fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


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


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count > 1 else ''}"
