"""Comparison as a page in one file: the figures, and captions of the same image side by side with their differences marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from captioner.comparison.candidates import Candidate, rivals
from captioner.comparison.differences import marked
from captioner.comparison.measures import MEASURES
from captioner.comparison.sampled import SampledImage
from captioner.comparison.table import COST_COLUMNS, EXPLANATIONS, Comparison, candidate_rows, cost_rows, shown
from dataset_builder.concepts.noun_counts import load_tagger
from dataset_builder.concepts.tagger import TaggerConfig
from dataset_builder.reports.page import Section, Table, page, table_html
from dataset_builder.reports.thumbnails import read_thumbnails, thumbnail
from foundry.wording import counted

_SHOWN = {"num_words": "words", "num_nouns": "nouns", "confirmed": "confirmed", "clip_mean": "CLIP", "tabr": "TaBR"}
"""The measures under a caption, and what they are called there."""
_PIXEL_ART_PX = 96
_MARKS = (
    '<p class="note"><mark>Marked</mark>: words that no other caption of the image has in this order. '
    '<mark class="alone">Marked strongly</mark>: nouns that no other names. A model\'s own other prompts confirm nothing, '
    "unless all captions are of one run.</p>"
)


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """An image for the page, with its row of `measured`, and the first image that was drawn from each caption, if any."""

    sampled: SampledImage
    measured: Mapping[str, Any]
    drawn: Sequence[Path] = field(default=())


def comparison_page(
    found: Comparison, *, disagreeing: Sequence[ShownImage], random: Sequence[ShownImage], tagger: TaggerConfig
) -> str:
    """The whole document. Both lists of images are in the order in which they are shown."""
    title = f"{len(found.candidates)} captioners over {found.num_images:,} images"
    sections = [
        Section(title="Captioners", lead="Each letter is a run and one of its prompts.", body=table_html(_candidates(found))),
        Section(
            title="Figures",
            lead="Means over the images that all have captioned, with standard errors.",
            body=table_html(_figures(found)),
        ),
        Section(
            title="Differences from A",
            lead="Paired: the mean of the differences image by image, with its standard error.",
            body=table_html(_differences(found)),
        ),
        Section(
            title="Cost and speed",
            lead="Of whole runs, all prompts together: tokens written and read per image, speed of a replica, its hours.",
            body=table_html(Table(columns=COST_COLUMNS, rows=cost_rows(found.costs))),
        ),
        Section(
            title="Where they disagree most",
            lead="Of all compared images those whose captions share the fewest nouns.",
            body=_pairs(found.candidates, disagreeing, tagger),
        ),
        Section(
            title="A random choice",
            lead="Not chosen by their captions, so they show what is usual; those with the fewest shared nouns come first.",
            body=_pairs(found.candidates, random, tagger),
        ),
        Section(title="Notes", lead="", body="".join(f"<p>{escape(note)}</p>" for note in (*found.notes, *EXPLANATIONS))),
    ]
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    subtitle = "; ".join(f"{one.letter}: {one.source}, prompt {one.prompt}" for one in found.candidates)
    return page(title=title, subtitle=subtitle, sections=sections, style=style)


def _candidates(found: Comparison) -> Table:
    return Table(
        columns=("", "run and prompt", "model", "captions", "without text", "not compared"), rows=candidate_rows(found)
    )


def _figures(found: Comparison) -> Table:
    rows = [
        [figure.title, *(_unbroken(shown(value, is_share=figure.is_share)) for value in figure.values), figure.num_images]
        for figure in found.figures
    ]
    return Table(columns=("figure", *(one.letter for one in found.candidates), "images"), rows=rows)


def _differences(found: Comparison) -> Table:
    others = range(1, len(found.candidates))
    rows = [
        [
            figure.title,
            *(
                _unbroken(shown(figure.differences.get((0, other)), is_share=figure.is_share, is_difference=True))
                for other in others
            ),
        ]
        for figure in found.figures
    ]
    columns = ("figure", *(f"{found.candidates[other].letter} - A" for other in others))
    return Table(columns=columns, rows=rows, note="* more than two standard errors")


def _unbroken(cell: str) -> str:
    return cell.replace(" ", "\u00a0")


def _pairs(candidates: Sequence[Candidate], images: Sequence[ShownImage], tagger: TaggerConfig) -> str:
    if not images:
        return '<p class="none">Nothing to show.</p>'
    thumbnails = read_thumbnails([one.sampled.row for one in images])
    unread = thumbnails.unread
    note = (
        f'<p class="note">{counted(len(unread), "image")} could not be read, the first: {escape(unread[0])}</p>'
        if unread
        else ""
    )
    others = rivals(candidates)
    cards = []
    for image in images:
        texts = [one.readable(caption) for one, caption in zip(candidates, image.sampled.captions, strict=True)]
        words = [one.words(text) for one, text in zip(candidates, texts, strict=True)]
        captions = marked(texts, words, load_tagger(tagger).tag(words), others)
        said = "".join(_said(one, caption, image) for one, caption in zip(candidates, captions, strict=True))
        cards.append(_card(image, thumbnails.by_key.get(image.sampled.row["key"]), said))
    return _MARKS + note + "".join(cards)


def _card(image: ShownImage, picture: str | None, said: str) -> str:
    row = image.sampled.row
    shown = _image(picture, alt=row["key"]) if picture else ""
    is_small = " pixels" if min(row["width"], row["height"]) < _PIXEL_ART_PX else ""
    disagreement = image.measured["disagreement"]
    shared = "" if disagreement is None else f'<p class="figures">{1 - disagreement:.0%} of the nouns are shared</p>'
    return (
        f'<article class="pair{is_small}"><div>{shown}<div><h3>{escape(row["key"])}</h3>{shared}</div></div>'
        f'<div class="said">{said}</div></article>'
    )


def _said(one: Candidate, caption: str, image: ShownImage) -> str:
    """`caption` is HTML."""
    known = {name: image.measured.get(f"{name}_{one.index}") for name in _SHOWN}
    figures = " · ".join(
        f"{_SHOWN[name]} {value:.0%}" if MEASURES[name].is_share else f"{_SHOWN[name]} {value:.3g}"
        for name, value in known.items()
        if value is not None
    )
    drawn = ""
    if image.drawn:
        picture = _image(thumbnail(image.drawn[one.index].read_bytes()), alt=f"drawn from the caption of {one.letter}")
        drawn = f'<p class="figures">drawn from this caption:</p>{picture}'
    return (
        f'<div><h4>{one.letter} · {escape(one.prompt)}</h4><p class="figures">{escape(figures)}</p><p>{caption}</p>'
        f"{drawn}</div>"
    )


def _image(jpeg_base64: str, *, alt: str) -> str:
    return f'<img loading="lazy" alt="{escape(alt)}" src="data:image/jpeg;base64,{jpeg_base64}">'
