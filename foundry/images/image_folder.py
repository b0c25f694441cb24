"""Loose image files in a folder and the files beside them. Files are listed, never opened."""

import posixpath
from collections.abc import Container, Iterable, Iterator, Mapping

from foundry.images.index import IndexRow, SidecarRow
from foundry.storage.file_kinds import IMAGE_SUFFIXES, SIDECAR_SUFFIXES, split_suffix, stem_of
from foundry.storage.locations import join, list_files, parent, walk

SidecarsByStem = Mapping[str, tuple[SidecarRow, ...]]


def index_folder(folder: str, *, listed: Container[str]) -> Iterator[IndexRow]:
    """The image files below a folder, each with the files that share its stem; `listed` holds locations to leave out.

    Files of a folder first, sorted by name, then its subfolders. Memory holds the names of one folder at a time.
    """
    for visited in walk(folder):
        beside = _by_stem(visited.uri, visited.files)
        for name in visited.files:
            stem, suffix = split_suffix(name)
            if suffix in IMAGE_SUFFIXES and (location := join(visited.uri, name)) not in listed:
                relative = f"{visited.relative}/{name}" if visited.relative else name
                yield IndexRow(stem, relative, location, sidecars=beside.get(stem, ()))


def index_file(location: str) -> Iterator[IndexRow]:
    """A single image file, with the files beside it."""
    beside = sidecars_in(parent(location))
    stem = stem_of(location)
    yield IndexRow(stem, posixpath.basename(location), location, sidecars=beside.get(stem, ()))


def sidecars_in(folder: str) -> SidecarsByStem:
    """The files in a folder that may describe images, by stem. Raises UserError if it cannot be listed."""
    return _by_stem(folder, list_files(folder))


def _by_stem(folder: str, names: Iterable[str]) -> SidecarsByStem:
    found: dict[str, dict[str, SidecarRow]] = {}
    for name in names:
        stem, suffix = split_suffix(name)
        if suffix in SIDECAR_SUFFIXES:
            found.setdefault(stem, {})[suffix] = SidecarRow(suffix, join(folder, name))
    return {stem: tuple(rows[suffix] for suffix in SIDECAR_SUFFIXES if suffix in rows) for stem, rows in found.items()}
