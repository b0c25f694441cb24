"""HTML of the captions tab: gallery, histograms, and an image with its captions side by side, their nouns marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataset_builder.concepts.tagger import Noun
from dataset_builder.reports.charts import short_number
from studio.captions.caption_index import FigureBins
from studio.captions.filters import FIGURES, Range
from studio.html import quiet, text

_SNIPPET = 160


@dataclass(frozen=True, kw_only=True)
class ShownCaption:
    """A caption of an image, and where it is from."""

    source: str
    row: Mapping[str, Any]
    nouns: Sequence[Noun] | None
    """None where the tagger is unavailable."""


def gallery_html(rows: Sequence[Mapping[str, Any]], *, pictures: str, picked: int | None = None) -> str:
    """Pictures with the beginnings of their captions, each a button. `pictures` is the address of those of this index."""
    if not rows:
        return quiet("No caption meets these filters: loosen one, or clear them.")
    items = "".join(f"<li>{_item(row, pictures, is_picked=row['n'] == picked)}</li>" for row in rows)
    return f'<ul class="pictures" aria-label="Captions">{items}</ul>'


def histograms_html(bins: Sequence[FigureBins], ranges: Sequence[Range]) -> str:
    """A histogram per figure whose bars are buttons: one of them is reached by Tab, the others by the arrow keys."""
    chosen = {one.figure: one for one in ranges}
    drawn = [_histogram(one, chosen.pop(one.figure, None)) for one in bins]
    drawn += [f'<div class="histogram">{_heading(figure, one)}</div>' for figure, one in chosen.items()]
    return f'<div class="histograms">{"".join(drawn)}</div>' if drawn else quiet("No figure has more than one value.")


def detail_html(shown: Sequence[ShownCaption], *, picture: str, problem: str = "") -> str:
    """An image, and all captions of it next to each other."""
    first = shown[0].row
    facts = [f"{first['width']} × {first['height']} px"] if first["width"] else []
    facts += [f"{name} {short_number(first[column])}" for column, name in _SCORES.items() if first[column] is not None]
    where = " · ".join(text(part) for part in (first["uri"], first["member"]) if part)
    alt = f"<p><b>Alt text</b> {text(first['alt_text'])}</p>" if first["alt_text"] else ""
    note = quiet(f"Nouns are not marked: {problem}") if problem else ""
    return (
        f'<section class="detail" tabindex="-1" aria-label="{text(first["key"])}"><figure><img src="{text(picture)}" '
        f'alt="{text(_alt(first))}"><figcaption><b>{text(first["key"])}</b> {text(" · ".join(facts))}<br>'
        f'<span class="where">{where}</span></figcaption></figure><div class="beside">{"".join(map(_caption, shown))}</div>'
        f"{alt}{note}</section>"
    )


_SCORES = {"clip_mean": "CLIP", "aesthetic": "aesthetic"}


def marked_nouns(caption: str, nouns: Sequence[Noun]) -> str:
    """A caption as HTML with its nouns marked."""
    parts, end = [], 0
    for noun in nouns:
        if noun.start_char >= end:
            word = text(caption[noun.start_char : noun.end_char])
            parts += [text(caption[end : noun.start_char]), f'<mark title="{text(noun.lemma)}">{word}</mark>']
            end = noun.end_char
    return "".join([*parts, text(caption[end:])])


def _item(row: Mapping[str, Any], pictures: str, *, is_picked: bool) -> str:
    said = row["edited"] or row["caption"]
    snippet = said if len(said) <= _SNIPPET else f"{said[:_SNIPPET]}…"
    badges = [row["flag"], "edited" if row["edited"] else "", row["status"] if row["status"] != "ok" else ""]
    shown = "".join(f'<span class="badge {text(badge.replace(" ", "-"))}">{text(badge)}</span>' for badge in badges if badge)
    pressed = ' aria-current="true"' if is_picked else ""
    number = int(row["n"])
    return (
        f'<button type="button" data-pick="{number}"{pressed}><img loading="lazy" src="{text(pictures)}/{number}/small" '
        f'alt="{text(_alt(row))}" width="220" height="160"><span class="key">{text(row["key"])}</span>{shown}'
        f'<span class="snippet">{text(snippet) or "(no caption)"}</span></button>'
    )


def _alt(row: Mapping[str, Any]) -> str:
    """What is said in place of the image: the alt text that it came with, else its name; the caption is read out anyway."""
    return row["alt_text"] or f"image {row['key']}"


def _heading(figure: str, chosen: Range | None) -> str:
    """The name of a figure, with the range that is chosen and a button that clears it."""
    name = FIGURES[figure]
    if chosen is None:
        return f"<h4>{name}</h4>"
    clear = f'<button type="button" class="clear" data-figure="{figure}" data-clear="1">any {name}</button>'
    return f'<h4>{name} <span class="quiet">{chosen.name}</span>{clear}</h4>'


def _histogram(one: FigureBins, chosen: Range | None) -> str:
    name, most = FIGURES[one.figure], max([*one.counts, 1])
    bars = []
    for number, ((low, high), count) in enumerate(zip(one.bins, one.counts, strict=True)):
        is_in = chosen is None or (low <= chosen.high and high >= chosen.low)
        span = Range(figure=one.figure, low=low, high=high).name
        label = f"{name} {span}: {count:,} captions"
        focus = "0" if number == 0 else "-1"
        pressed = "true" if chosen and is_in else "false"
        bars.append(
            f'<button type="button" tabindex="{focus}" class="bar{"" if is_in else " out"}" title="{label}" '
            f'aria-label="{label}" aria-pressed="{pressed}" data-figure="{one.figure}" data-low="{low!r}" '
            f'data-high="{high!r}"><span style="height:{100 * count / most:.1f}%"></span></button>'
        )
    return (
        f'<div class="histogram">{_heading(one.figure, chosen)}'
        f'<div class="bars" role="group" aria-label="Filter by {name}; arrow keys move">{"".join(bars)}</div>'
        f'<div class="axis"><span>{short_number(one.bins[0][0])}</span><span>{short_number(one.bins[-1][1])}</span></div></div>'
    )


def _caption(shown: ShownCaption) -> str:
    row = shown.row
    said = row["edited"] or row["caption"]
    body = marked_nouns(said, shown.nouns) if shown.nouns is not None else text(said)
    facts = [f"{row['num_words']:,} words", f"{row['density']:,} different nouns", f"{row['num_t5_tokens']:,} T5 tokens"]
    original = f'<p class="quiet">edited; the original: {text(row["caption"])}</p>' if row["edited"] else ""
    badge = f' <span class="badge {text(row["flag"].replace(" ", "-"))}">{text(row["flag"])}</span>' if row["flag"] else ""
    status = f" · {text(row['status'])}" if row["status"] != "ok" else ""
    return (
        f'<article><h4>{text(row["prompt"])}{badge}</h4><p class="quiet">{text(shown.source)}{status}</p>'
        f'<p class="said">{body or "(no caption)"}</p><p class="quiet">{text(" · ".join(facts))}</p>{original}</article>'
    )
