"""HTML of the studio: everything that comes from a run is text in it, whatever signs it holds."""

import html
from collections.abc import Sequence
from typing import Any

from foundry.errors import UserError
from foundry.extras import missing_library

_LINE = 34
_LINES = 5
# Gradio's template engine reads ${…} and {{…}} in what it shows; as entities they are text.
_TEMPLATE_SIGNS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})


def text(value: Any) -> str:
    """A value as text of HTML, between tags or in a quoted attribute."""
    return html.escape("" if value is None else str(value)).translate(_TEMPLATE_SIGNS)


def table(rows: Sequence[dict[str, Any]], *, caption: str, empty: str = "No rows.") -> str:
    """A table with a header per column; `caption` says what it is to those who do not see it."""
    if not rows:
        return f'<p class="quiet">{text(empty)}</p>'
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in rows[0])
    body = "".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{text(caption)}"><table>'
        f'<caption class="unseen">{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def failure(message: str) -> str:
    """A message that is read out at once."""
    return f'<p role="alert" class="problem">{text(message)}</p>'


def reason(error: UserError | ModuleNotFoundError) -> str:
    """An error as a sentence; of a library that an extra installs, what to type."""
    found = missing_library(error) if isinstance(error, ModuleNotFoundError) else None
    return str(found or error)


def quiet(message: str) -> str:
    """A remark."""
    return f'<p class="quiet">{text(message)}</p>'


def notice_svg(message: str) -> bytes:
    """A picture of a message, in place of an image that cannot be read."""
    words, lines = message.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > _LINE and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word[:_LINE]}".strip()
    spans = "".join(f'<tspan x="10" dy="18">{html.escape(line)}</tspan>' for line in lines[:_LINES])
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 260 140" width="260" height="140">'
        '<rect width="260" height="140" fill="#8884"/><text y="14" font-family="sans-serif" font-size="12" fill="#888">'
        f"{spans}</text></svg>"
    ).encode()


def _cell(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    shown = f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if is_number else value
    kind = ' class="number"' if is_number else ""
    return f"<td{kind}>{text(shown)}</td>"
