"""HTML page of a report, in one file: it fetches no script, style, font or picture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from dataset_builder.reports.charts import short_number


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that the reader can sort by any column. Cells are text or numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A thumbnail with its caption. `figures` are shown under it, and the gallery can be sorted by them."""

    key: str
    jpeg_base64: str
    caption: str
    figures: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures, and why others that were chosen are not among them, a line each."""

    pictures: Sequence[Picture]
    unread: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a line of explanation, and its contents as HTML."""

    title: str
    lead: str
    body: str


def page(*, title: str, subtitle: str, sections: Sequence[Section], style: str = "") -> str:
    """The whole document; `style` is CSS that comes after the report's own."""
    links = " ".join(f'<a href="#s{number}">{escape(section.title)}</a>' for number, section in enumerate(sections))
    bodies = "".join(
        f'<section id="s{number}"><h2>{escape(one.title)}</h2><p class="lead">{escape(one.lead)}</p>{one.body}</section>'
        for number, one in enumerate(sections)
    )
    own_style, script = (_beside(f"page.{kind}") for kind in ("css", "js"))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{own_style}{style}</style></head><body>'
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><nav>{links}</nav></header><main>{bodies}</main>"
        f"<script>{script}</script></body></html>"
    )


def table_html(table: Table) -> str:
    """A sortable table; numbers are set to the right and sorted as numbers."""
    if not table.rows:
        return '<p class="none">Nothing to show.</p>'
    kinds = (' class="number"' if _is_number(cell) else "" for cell in table.rows[0])
    named = zip(table.columns, kinds, strict=True)
    head = "".join(f'<th tabindex="0" role="button"{kind}>{escape(name)}</th>' for name, kind in named)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}'


def charts_html(charts: Iterable[str]) -> str:
    """Charts side by side; empty ones are left out."""
    return f'<div class="charts">{"".join(f"<figure>{chart}</figure>" for chart in charts if chart)}</div>'


def gallery_html(gallery: Gallery) -> str:
    """Thumbnails, with a menu to sort them; what could not be read is counted, and the first reason given."""
    unread = gallery.unread
    note = f'<p class="note">{len(unread):,} more could not be read: {escape(unread[0])}</p>' if unread else ""
    if not gallery.pictures:
        return f'<p class="none">Nothing to show.</p>{note}'
    names = list(dict.fromkeys(name for picture in gallery.pictures for name in picture.figures))
    options = "".join(f"<option>{escape(name)}</option>" for name in ("key", *names))
    return (
        f'<p><label>Sort by <select id="by">{options}</select></label> '
        f'<label><input type="checkbox" id="down"> greatest first</label></p>'
        f"{cards_html(gallery.pictures, name='gallery')}{note}"
    )


def cards_html(pictures: Sequence[Picture], *, name: str = "") -> str:
    """Thumbnails in the order given. `name` is for the one gallery of a page that can be sorted."""
    anchor = f' id="{name}"' if name else ""
    return f'<div class="gallery"{anchor}>{"".join(map(_card, pictures))}</div>'


def _cell(value: Any) -> str:
    if not _is_number(value):
        return f"<td>{escape('' if value is None else str(value))}</td>"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f'<td class="number" data-value="{value}">{shown}</td>'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _card(picture: Picture) -> str:
    known = {name: value for name, value in picture.figures.items() if value is not None}
    data = "".join(f' data-{escape(name)}="{value}"' for name, value in known.items())
    figures = " · ".join(f"{escape(name.replace('_', ' '))} {short_number(value)}" for name, value in known.items())
    return (
        f'<article data-key="{escape(picture.key)}"{data}>'
        f'<img loading="lazy" alt="{escape(picture.key)}" src="data:image/jpeg;base64,{picture.jpeg_base64}">'
        f'<h3>{escape(picture.key)}</h3><p class="figures">{figures}</p><p>{escape(picture.caption)}</p></article>'
    )


def _beside(name: str) -> str:
    """The text of a file in the folder of this one."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
