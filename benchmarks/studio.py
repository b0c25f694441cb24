"""Speed of the studio's captions tab on a large run: `python -m benchmarks.studio`.

A synthetic run (benchmarks/synthetic_run.py) whose images are JPEGs of one tar replaces the captioner's. first_page_s is from
opening the run to the HTML of the first page with its thumbnails, without an index, as on the first visit; first_html_s leaves
the thumbnails out; reopened_s is with an index. index_s is until the index is written by its thread. filter_s is the first page
under a filter that nobody asked for before, with its count; page_s another page, also in another order; histogram_s all
histograms under such a filter. Pages include their thumbnails. Of several, the median and the worst.
"""

import dataclasses
import io
import re
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import print_report
from foundry.command_line import run_command

if TYPE_CHECKING:
    from studio.captions.gallery import CaptionsTab, GalleryState
    from studio.captions.pictures import Pictures

_PICTURES = 64
_PAGES = 5
_CONNECTIONS = 6
"""Requests that a browser sends to a host at a time."""


@dataclass(frozen=True)
class StudioBenchmarkConfig:
    """Settings of the benchmark."""

    captions: int = 1_000_000
    """Rows of captions."""
    units: int = 2_000
    """Unit files of each kind."""
    nouns: int = 150_000
    """Words that nouns are drawn from."""
    side_px: int = 768
    """Sides of the images, in pixels."""
    folder: str = ""
    """Folder in which the run is written and stays; default: a temporary one. A run that is there already is used."""


def main(config: StudioBenchmarkConfig) -> int:
    """Prints the figures; returns 0."""
    if config.folder:
        _measure(config, Path(config.folder))
    else:
        with tempfile.TemporaryDirectory(prefix="t2i-studio-benchmark-") as directory:
            _measure(config, Path(directory))
    return 0


def _measure(config: StudioBenchmarkConfig, folder: Path) -> None:
    from benchmarks.synthetic_run import SyntheticRun, write_run

    folder.mkdir(parents=True, exist_ok=True)
    run, cache = folder / "run", folder / "cache"
    images = write_tar(folder / "images.tar", number=_PICTURES, side_px=config.side_px)
    size = SyntheticRun(num_captions=config.captions, num_units=config.units, num_nouns=config.nouns, images=images)
    write_run(run, size)
    shutil.rmtree(cache, ignore_errors=True)
    first = _first_page(run, cache)
    figures = _indexed(run, cache)
    reopened = _first_page(run, cache)
    index_bytes = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    print_report(
        "studio",
        {"rows": config.captions, **first, "reopened_s": reopened["first_page_s"], **figures} | {"index_gb": index_bytes / 1e9},
    )


def write_tar(path: Path, *, number: int, side_px: int) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Writes a tar of JPEGs, unless it is there; its path, and where each image begins and how long it is."""
    import numpy as np
    from PIL import Image

    if not path.exists():
        rng = np.random.default_rng(0)
        with tarfile.open(path, "w") as tar:
            for index in range(number):
                buffer = io.BytesIO()
                coarse = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
                coarse.resize((side_px, side_px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
                member = tarfile.TarInfo(f"{index:04d}.jpg")
                member.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(member, buffer)
    with tarfile.open(path) as tar:
        return str(path.absolute()), tuple((member.offset_data, member.size) for member in tar.getmembers())


def _first_page(run: Path, cache: Path) -> dict[str, float]:
    """Seconds to the first page, and until the index is there."""
    from studio.captions.gallery import CaptionsTab, GalleryState
    from studio.captions.pictures import Pictures
    from studio.captions.source import open_sources
    from studio.captions.sql_box import SqlBox

    started = time.perf_counter()
    with open_sources([str(run)], cache=cache) as sources:
        shown = CaptionsTab(sources, SqlBox(sources, limit_s=60)).show(GalleryState())
        html_s = time.perf_counter() - started
        _thumbnails(Pictures(sources), shown.state, shown.gallery)
        page_s = time.perf_counter() - started
        sources[0].index()
        return {"first_page_s": page_s, "first_html_s": html_s, "index_s": time.perf_counter() - started}


def _indexed(run: Path, cache: Path) -> dict[str, float]:
    """Seconds of filters, pages and histograms, each asked for once, with the index there."""
    from studio.captions.filters import CaptionFilter, Range
    from studio.captions.gallery import CaptionsTab, GalleryState
    from studio.captions.pictures import Pictures
    from studio.captions.source import open_sources
    from studio.captions.sql_box import SqlBox

    filters = [
        *(CaptionFilter(text=text) for text in ("aab", "zzq", "no such words", "AAD AA")),
        CaptionFilter(ranges=(Range(figure="num_words", low=80, high=100),)),
        CaptionFilter(text="aac", ranges=(Range(figure="density", low=20, high=30),)),
        CaptionFilter(prompt="dense", status="ok"),
        CaptionFilter(source="no such folder"),
    ]
    filter_s, page_s, histogram_s = [], [], []
    with open_sources([str(run)], cache=cache) as sources:
        tab, pictures = CaptionsTab(sources, SqlBox(sources, limit_s=60)), Pictures(sources)
        sources[0].index()
        for chosen in filters:
            for order in ("as in the files", "most different nouns"):
                state = tab.filtered(GalleryState(), dataclasses.replace(chosen), order)
                state, seconds = _timed(tab, pictures, state)
                filter_s += [seconds] if order == "as in the files" else []
                page_s += [seconds] if order != "as in the files" else []
                for _ in range(_PAGES if state.following else 0):
                    state, seconds = _timed(tab, pictures, state, turns=True)
                    page_s.append(seconds)
            histogram_s.append(_seconds(partial(tab.histograms, state)))
        histogram_s.append(_seconds(lambda: tab.histograms(GalleryState())))
    return {**_spread("filter_s", filter_s), **_spread("page_s", page_s), **_spread("histogram_s", histogram_s)}


def _timed(
    tab: "CaptionsTab", pictures: "Pictures", state: "GalleryState", *, turns: bool = False
) -> "tuple[GalleryState, float]":
    """The state after a page, or the page after it, and the seconds that it took with its thumbnails."""
    started = time.perf_counter()
    shown = tab.next_page(state) if turns else tab.show(state)
    _thumbnails(pictures, shown.state, shown.gallery)
    return shown.state, time.perf_counter() - started


def _thumbnails(pictures: "Pictures", state: "GalleryState", gallery: str) -> None:
    """Makes the pictures of a page, as a browser asks for them: some at a time."""

    def make(number: str) -> None:
        found = pictures.get(state.source, state.version, int(number), "small")
        assert found is not None and not found.problem, found

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(make, re.findall(r'data-pick="(\d+)"', gallery)))


def _seconds(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def _spread(name: str, seconds: Iterable[float]) -> dict[str, float]:
    found = list(seconds)
    return {name: statistics.median(found), f"{name.removesuffix('_s')}_worst_s": max(found)}


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            StudioBenchmarkConfig,
            main,
            prog="python -m benchmarks.studio",
            example="python -m benchmarks.studio --captions 100000 --units 200",
        )
    )
