"""Image sources: finds image files, tars, Parquet files and lists at paths and URLs, several at once, and indexes them by their
headers alone.

for source in find_sources(["~/photos", "s3://bucket/sa1b"]):
    for table in index_source(source):  # SOURCE_INDEX, at most 65,536 rows
        ...
"""

import itertools
import logging
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from foundry.errors import SourceError, UserError
from foundry.images.index import FolderNames, IndexRow, folder_names, index_file, index_folders, to_tables
from foundry.images.lists import ListedImages, find_path_column, index_list
from foundry.images.metadata import Scalar, duckdb_types, merge_types, parse_sidecars
from foundry.images.parquet import PATH_NAMES, index_parquet, layout_of, read_footer, read_schema
from foundry.images.tar import index_tar
from foundry.storage.file_kinds import (
    EXPECTED,
    MASKS,
    PARQUET_SUFFIX,
    TAR_SUFFIX,
    TEXT_LIST_SUFFIXES,
    PassedOver,
    is_compressed_tar,
    is_image,
    split_suffix,
    suffix_of,
)
from foundry.storage.locations import (
    Details,
    describe,
    forget_listings,
    is_inside,
    join,
    leads_nowhere,
    normalise,
    open_binary,
    parent,
    read_errors,
    walk,
)
from foundry.storage.schema import versioned
from foundry.units.rejection import ImageError

logger = logging.getLogger(__name__)
_SAMPLED_JSON = 8
_SAMPLED_FILES = 1000
_SEARCHING_THREADS = 16  # each waits for a store
_NAMED = 8
THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Source:
    """Folder or file that holds images or names them. All loose files below one folder are one source."""

    kind: Literal["files", "tar", "parquet", "list"]
    """Kind of source; "files" is a searched folder or a single image file."""
    uri: str
    """An absolute local path or an fsspec URL."""
    root: str
    """The folder that the user gave, or the folder of the file that the user gave; `relative` in the index begins there."""
    num_bytes: int | None = None
    """Size; None for a folder or where the store does not tell."""
    modified: str | None = None
    """Time of the last change in ISO 8601, or the store's entity tag; None for a folder."""
    path_column: str | None = None
    """The column of a list that names images."""
    is_searched: bool = False
    """Whether it was found by searching root (then a list's images may have sidecars) or was given itself."""
    lists: tuple[tuple[str, str], ...] = ()
    """Lists (uri, path column) whose images a source of files leaves to them."""
    ignore: tuple[str, ...] = ()
    """Patterns of the names of images to leave out."""
    folders: tuple[FolderNames, ...] = field(default=(), repr=False, compare=False)
    """Listing of a searched folder, so that the index need not list it again."""

    def record(self) -> dict[str, Any]:
        """The fields as JSON has them, without what was listed."""
        record = asdict(replace(self, folders=()))
        del record["folders"]
        return record


def find_sources(
    images: Sequence[str], *, passed_over: PassedOver | None = None, ignore: Sequence[str] = MASKS
) -> list[Source]:
    """Searches paths and fsspec URLs, each a folder or a single file, for all that holds images; sorted by path.

    Names as in file_kinds.is_ignored and images that fit a pattern of `ignore` are skipped, save those given themselves,
    and counted in `passed_over`. What lies in two of the given folders is found once. An image that a list names is left to
    the list. Each folder is listed once: the names of its images and sidecars are kept for `index_source`, and take as much
    memory as text.
    What a search finds and cannot use is passed over, and named in one warning: compressed tars, tables without images, without
    rows, or in no format that can be read, symbolic links that lead nowhere, and Parquet files with the web addresses of what
    img2dataset put into the tar or the folder of the same name. A tar or Parquet file that is damaged is an error all the same,
    since its images would be missing.
    Raises UserError in one line: nothing there, no images, a damaged Parquet file, and all of the above where it was given
    itself; a damaged tar is found out by `index_source`.
    """
    if not images:
        raise UserError("no images given; give folders, files or URLs that hold images")
    found: dict[str, Source] = {}
    unusable: dict[str, str] = {}
    for given in images:
        location = normalise(given)
        forget_listings(location)
        details = describe(location)
        if details.is_folder:
            search = _search(location, passed_over or PassedOver(), tuple(ignore))
            unusable |= search.unusable
        for source in search.sources if details.is_folder else [_single(location, details, tuple(ignore))]:
            found.setdefault(source.uri, source)
    if unusable:
        logger.warning("skipped: %s", _named(unusable))
    folders = [source.uri for source in found.values() if source.kind == "files" and source.is_searched]
    kept = [
        source
        for source in found.values()
        if not (source.kind == "files" and any(is_inside(source.uri, folder) for folder in folders))
    ]
    lists = tuple(sorted((source.uri, source.path_column) for source in kept if source.kind == "list" and source.path_column))
    kept = [replace(source, lists=lists) if source.kind == "files" else source for source in kept]
    return sorted(kept, key=lambda source: source.uri)


def index_source(
    source: Source, *, passed_over: PassedOver | None = None, types: dict[str, str] | None = None
) -> Iterator[pa.Table]:
    """The images of a source as tables of SOURCE_INDEX with at most 65,536 rows, in a fixed order; reads headers only.

    Rows are in the order of the tar, Parquet file or list; for loose files, those of a folder by name, then its subfolders.
    `relative` tells apart what one search finds, but a list may name an image twice, and two roots may hold the same paths.
    Memory: the names in one tar; for files next to lists, also 16 bytes for each listed image.
    `passed_over` counts what is left out of a tar, and notes what was taken in a way that may be meant otherwise. `types` gets
    the columns of a list that go to metadata with their DuckDB types, complete with the last table.
    Raises UserError in one line for a source that is empty, damaged or holds no image.
    """
    return to_tables(_rows(source, passed_over, types))


@dataclass(frozen=True, kw_only=True)
class IndexedSource:
    """`tables` as index_source yields them. The others are complete once `tables` are exhausted.

    carried has the names and DuckDB types (BIGINT, DOUBLE, BOOLEAN, VARCHAR) of what the source carries in the column
    `metadata`: from the schema of Parquet, all rows of a list, or the first 8 JSON sidecars. JSON read later may hold other
    names and types, so cast with TRY_CAST.
    """

    tables: Iterator[pa.Table]
    carried: dict[str, str]
    passed_over: PassedOver


def index_sources(sources: Sequence[Source]) -> Iterator[IndexedSource]:
    """The sources in their order; the next ones are read meanwhile, each as far as its first table (a tar's headers are then
    read to the end). Raises UserError as index_source does, for the first source in that order.
    """
    upcoming = iter(sources)
    with ThreadPoolExecutor(THREADS) as threads:
        begun = deque(threads.submit(_index, source) for source in itertools.islice(upcoming, 2 * THREADS))
        try:
            while begun:
                indexed = begun.popleft().result()
                begun.extend(threads.submit(_index, source) for source in itertools.islice(upcoming, 1))
                yield indexed
        finally:
            threads.shutdown(cancel_futures=True)


def _rows(source: Source, passed_over: PassedOver | None, types: dict[str, str] | None) -> Iterator[IndexRow]:
    if source.kind == "tar":
        return index_tar(source.uri, source.root, passed_over=passed_over, ignore=source.ignore)
    if source.kind == "parquet":
        return index_parquet(source.uri, source.root)
    if source.kind == "list":
        assert source.path_column is not None
        return index_list(
            source.uri,
            source.root,
            path_column=source.path_column,
            search_sidecars=source.is_searched,
            passed_over=passed_over,
            types=types,
        )
    if not source.is_searched:
        return (row for row in index_file(source.uri) if row.uri not in ListedImages(source.lists, folder=source.root))
    return index_folders(source.folders, listed=ListedImages(source.lists, folder=source.root))


@dataclass(frozen=True)
class _Found:
    """Result of a search: sources, and by their location the files that cannot be used, with the reason."""

    sources: list[Source] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)


def _search(root: str, passed_over: PassedOver, ignore: tuple[str, ...]) -> _Found:
    """All that lies below a folder; UserError if there is no source."""
    found = _Found()
    folders: list[FolderNames] = []
    containers: list[str] = []
    for folder in walk(root, passed_over=passed_over):
        if (names := folder_names(folder, ignore=ignore, passed_over=passed_over)) is not None:
            folders.append(names)
        containers += [join(folder.uri, name) for name in folder.files if _is_container(name)]
    holders = {names.uri: names.uri for names in folders}
    holders |= {split_suffix(location)[0]: location for location in containers if suffix_of(location) == TAR_SUFFIX}
    indexed = partial(_container, root=root, holders=holders, ignore=ignore)
    with ThreadPoolExecutor(_SEARCHING_THREADS) as threads:
        for location, source in zip(containers, threads.map(indexed, containers), strict=True):
            if isinstance(source, Source):
                found.sources.append(source)
            else:
                found.unusable[location] = source
    if folders:
        found.sources.append(Source(kind="files", uri=root, root=root, is_searched=True, ignore=ignore, folders=tuple(folders)))
    if not found.sources:
        unusable = f" ({_named(found.unusable)})" if found.unusable else ""
        passed = f" ({line})" if (line := passed_over.line()) else ""
        raise UserError(f"no images found in {root}; expected {EXPECTED}{unusable}{passed}")
    return found


def _is_container(name: str) -> bool:
    return is_compressed_tar(name) or name.lower().endswith((TAR_SUFFIX, PARQUET_SUFFIX, *TEXT_LIST_SUFFIXES))


def _named(unusable: Mapping[str, str]) -> str:
    """Number of files, and the first few with their reasons, on one line."""
    count = f"{len(unusable)} files that hold" if len(unusable) > 1 else "1 file that holds"
    named = [f"{location}: {reason}" for location, reason in list(unusable.items())[:_NAMED]]
    more = [f"and {len(unusable) - _NAMED} more"] if len(unusable) > _NAMED else []
    return f"{count} no images to read: {'; '.join(named + more)}"


def _container(location: str, *, root: str, holders: Mapping[str, str], ignore: tuple[str, ...]) -> Source | str:
    """The source that a file in a searched folder is, or why it is none. `holders` are the tars and the folders with images, by
    their location without suffix. Raises UserError for damaged Parquet."""
    if is_compressed_tar(location):
        return "a compressed tar, gunzip it first"
    if leads_nowhere(location):
        return "a broken symbolic link"
    try:
        container = _classify(location)
    except UserError as error:
        if suffix_of(location) == PARQUET_SUFFIX:
            raise
        return error.reason if isinstance(error, SourceError) else str(error)
    if container.kind is None:
        return "no column of images or of paths to images"
    if container.kind == "parquet" and not container.num_rows:
        return "no rows"
    if container.has_urls and (holder := holders.get(split_suffix(location)[0])):
        return f"the web addresses of images that are in {holder}"
    details = describe(location)
    return Source(
        kind=container.kind,
        uri=location,
        root=root,
        num_bytes=details.num_bytes,
        modified=details.modified,
        path_column=container.path_column,
        is_searched=True,
        ignore=ignore,
    )


def _single(location: str, details: Details, ignore: tuple[str, ...]) -> Source:
    """The source that a file given by itself is."""
    path = location.split("?", 1)[0] if "://" in location else location
    if is_compressed_tar(path):
        raise _compressed(location)
    kind: Literal["files", "tar", "parquet", "list"] | None = "files"
    column = None
    if not is_image(path):
        if not path.lower().endswith((TAR_SUFFIX, PARQUET_SUFFIX, *TEXT_LIST_SUFFIXES)):
            raise UserError(f"{location} is not a source of images; expected a folder, {EXPECTED}")
        container = _classify(location)
        kind, column = container.kind, container.path_column
        if container.has_urls and (holder := _holder_beside(location)):
            raise UserError(f"{location} has the web addresses of images that are in {holder} already: give {holder} instead")
    if kind is None:
        names = ", ".join(PATH_NAMES)
        raise UserError(f"{location} has no column of image bytes, nor one of paths to images; name the column one of: {names}")
    return Source(
        kind=kind,
        uri=location,
        root=parent(location),
        num_bytes=details.num_bytes,
        modified=details.modified,
        path_column=column,
        ignore=ignore,
    )


def _holder_beside(location: str) -> str | None:
    """The tar or the folder into which img2dataset put the images of a Parquet file with their addresses, if it is there."""
    if location.startswith(("http://", "https://")):
        return None
    for holder in (f"{split_suffix(location)[0]}{TAR_SUFFIX}", split_suffix(location)[0]):
        try:
            if describe(holder).is_folder != holder.endswith(TAR_SUFFIX):
                return holder
        except UserError:
            continue
    return None


@dataclass(frozen=True)
class _Container:
    """Kind of a file that may hold or name images."""

    kind: Literal["tar", "parquet", "list"] | None
    """None: it does neither."""
    path_column: str | None = None
    """Of a list."""
    num_rows: int | None = None
    """Of Parquet with images."""
    has_urls: bool = False
    """Whether it is a list in Parquet that names images by a column `url` alone, as img2dataset writes it."""


def _classify(location: str) -> _Container:
    if suffix_of(location) == TAR_SUFFIX:
        return _Container("tar")
    if suffix_of(location) != PARQUET_SUFFIX:
        column = find_path_column(location)
        return _Container("list" if column else None, column)
    footer = read_footer(location)
    layout = layout_of(footer.schema)
    twice = [name for name, count in Counter(footer.schema.names).items() if count > 1]
    if twice and (layout.image or layout.path):
        raise UserError(f"{location} has {footer.schema.names.count(twice[0])} columns named {twice[0]!r}; rename all but one")
    if layout.image is not None:
        return _Container("parquet", num_rows=footer.num_rows)
    # Our own files name tars in their column uri: they are results, not lists of images.
    is_ours = bool(versioned(pa.schema([])).metadata.keys() & (footer.schema.metadata or {}).keys())
    has_urls = layout.path is not None and layout.path.lower() == "url"
    return _Container("list", layout.path, has_urls=has_urls) if layout.path and not is_ours else _Container(None)


def _compressed(location: str) -> UserError:
    return UserError(f"{location} is a compressed tar, from which byte ranges cannot be read; gunzip it first")


def _carried_columns(source: Source, first: pa.Table, passed_over: PassedOver) -> dict[str, str]:
    """IndexedSource.carried, as far as the first table shows it. Raises UserError for a source that cannot be read."""
    if suffix_of(source.uri) == PARQUET_SUFFIX:
        return layout_of(read_schema(source.uri)).metadata_types
    return {} if source.kind == "list" else duckdb_types(_sampled_metadata(first, passed_over))


def _sampled_metadata(first: pa.Table, passed_over: PassedOver) -> Iterator[Mapping[str, Scalar]]:
    """Metadata from the first JSON sidecars of a tar or a folder."""
    rows = first.select(["uri", "sidecars"]).slice(0, _SAMPLED_FILES).to_pylist()
    found = [(row["uri"], sidecar) for row in rows for sidecar in row["sidecars"] if sidecar["suffix"] == ".json"]
    for image_uri, sidecar in found[:_SAMPLED_JSON]:
        uri = sidecar["uri"] or image_uri
        with read_errors(uri, "check its permissions"), open_binary(uri) as file:
            file.seek(sidecar["byte_offset"] or 0)
            content = file.read(-1 if sidecar["byte_length"] is None else sidecar["byte_length"])
        try:
            carried = parse_sidecars([(".json", content, uri)]).carried
        except ImageError:
            continue  # It will be rejected with its image, by name, when it is read.
        if carried.left_out:
            finding = f"of the first {_SAMPLED_JSON} JSON files of a source cannot be taken whole; their images are kept"
            passed_over.note(finding, f"{uri}: {carried.left_out[0]}")
        yield carried.all_metadata


def _index(source: Source) -> IndexedSource:
    passed_over = PassedOver()
    carried: dict[str, str] = {}
    tables = index_source(source, passed_over=passed_over, types=carried)
    first = next(tables, None)
    if first is None:
        return IndexedSource(tables=tables, carried={}, passed_over=passed_over)
    merge_types(carried, _carried_columns(source, first, passed_over))
    return IndexedSource(tables=itertools.chain([first], tables), carried=carried, passed_over=passed_over)
