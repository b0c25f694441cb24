"""Figures of a plan as text: counts, gigabytes, hours, dollars, and tables of them."""

from collections.abc import Collection, Iterator, Sequence


def aligned(header: Sequence[str], rows: Sequence[Sequence[object]], *, words: Collection[str]) -> Iterator[str]:
    """Columns two spaces apart; those named in `words` to the left, numbers to the right."""
    cells = [[str(value) for value in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        columns = zip(header, row, widths, strict=True)
        yield "  ".join(text.ljust(n) if name in words else text.rjust(n) for name, text, n in columns).rstrip()


def count(number: int) -> str:
    """1,234, or millions as 1.2M."""
    if number < 1_000_000:
        return f"{number:,}"
    return f"{number / 1e6:,.0f}M" if number >= 10_000_000 else f"{number / 1e6:.1f}M"


def gigabytes(num_bytes: float) -> str:
    """Units of 10^9 bytes."""
    return f"{num_bytes / 1e9:,.0f}" if num_bytes >= 100e9 else f"{num_bytes / 1e9:.1f}"


def hours(number: float) -> str:
    """Hours, short ones with two digits."""
    return f"{number:,.1f}" if number >= 1 else f"{number:.2g}"


def money(dollars: float | None) -> str:
    """Whole dollars; ? if they are unknown."""
    return "?" if dollars is None else f"{dollars:,.0f}"
