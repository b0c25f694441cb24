"""Density table, the paper's Table 1 as text or JSON: each body of text as written and as T5 reads it, with and without
meta-nouns."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dataset_builder.concepts.density import PAPER_TABLE, VALID_ABOVE, VIEWS, ConceptDensity
from dataset_builder.concepts.tagger import META_NOUNS, META_NOUNS_VERSION

if TYPE_CHECKING:
    from dataset_builder.concepts.corpus import CountedText

_NAME_WIDTH = 27


@dataclass(frozen=True, kw_only=True)
class DensityRow:
    """A body of text with its figures by the ways in VIEWS: of all of it, and expected of a sample."""

    text: "CountedText"
    whole: dict[str, ConceptDensity]
    sample: dict[str, ConceptDensity]

    @property
    def captions_cut(self) -> float:
        """The share of captions that the text encoder does not read to the end."""
        return self.text.num_cut / self.text.num_captions if self.text.num_captions else 0.0

    @property
    def nouns_cut(self) -> float:
        """The share of nouns that the text encoder does not read."""
        written = self.whole["written"].total_nouns
        return 1 - self.whole["t5"].total_nouns / written if written else 0.0


def density_table(rows: Sequence[DensityRow], *, sample_size: int) -> str:
    """The whole answer, at most 110 columns wide."""
    names = row_names(rows)
    sections = [
        "\n".join([title, _header(sample_size), *(_line(name, row, view) for name, row in zip(names, rows, strict=True))])
        for view, title in VIEWS.items()
    ]
    return "\n\n".join([*sections, _cut_section(names, rows), _paper_section(), _notes(rows, sample_size=sample_size)])


def density_json(rows: Sequence[DensityRow], *, sample_size: int) -> str:
    """All figures, and all that they depend on, as a line of JSON."""
    answer = {
        "sample_size": sample_size,
        "valid_above": VALID_ABOVE,
        "meta_nouns_version": META_NOUNS_VERSION,
        "rows": [
            {
                name: getattr(row.text, name)
                for name in ("source", "column", "prompt", "num_captions", "num_empty", "tagger", "t5")
            }
            | {"captions_cut": row.captions_cut, "nouns_cut": row.nouns_cut}
            | {"whole": {view: _figures(density) for view, density in row.whole.items()}}
            | {"sample": {view: _figures(density) for view, density in row.sample.items()}}
            for row in rows
        ],
    }
    return json.dumps(answer)


def row_names(rows: Sequence[DensityRow]) -> list[str]:
    """Short names that tell the rows apart: the last part of the path where that is enough."""
    paths = {row.text.source for row in rows}
    short = {path: path.rstrip("/").rsplit("/", 1)[-1] for path in paths}
    clear = len(set(short.values())) == len(paths)
    names = []
    for row in rows:
        source = (short[row.text.source] if clear else row.text.source) if len(paths) > 1 else ""
        what = f"{row.text.column}: {row.text.prompt}" if row.text.prompt else row.text.column
        names.append(f"{source} {what}".strip())
    return names


def _figures(density: ConceptDensity) -> dict[str, float]:
    return asdict(density) | {"ratio": density.ratio, "nouns_per_caption": density.nouns_per_caption}


def _header(sample_size: int) -> str:
    sample = f"VN / DN of {sample_size:,}" if sample_size < 10_000_000 else "VN / DN of the sample"
    return (
        f"{'':{_NAME_WIDTH}} {'captions':>10} {'VN / DN':>15} {'ratio':>7} {'nouns':>11} {'each':>6} {sample:>20} {'ratio':>7}"
    )


def _line(name: str, row: DensityRow, view: str) -> str:
    whole, sample = row.whole[view], row.sample[view]
    written = f"{row.text.num_captions:>10,} {_pair(whole):>15} {whole.ratio:>7.1%} {_count(whole.total_nouns):>11} "
    return f"{_fitted(name)} {written}{whole.nouns_per_caption:>6.1f} {_pair(sample):>20} {sample.ratio:>7.1%}"


def _cut_section(names: Sequence[str], rows: Sequence[DensityRow]) -> str:
    lines = ["What T5 does not read", f"{'':{_NAME_WIDTH}} {'captions cut':>15} {'nouns cut off':>15} {'reads':>12}"]
    for name, row in zip(names, rows, strict=True):
        reads = f"{row.text.t5['max_tokens']} tokens"
        lines.append(f"{_fitted(name)} {row.captions_cut:>15.1%} {row.nouns_cut:>15.1%} {reads:>12}")
    return "\n".join(lines)


def _paper_section() -> str:
    lines = ["For reference, Table 1 of the PixArt-alpha paper: all nouns as written, each row over about 11.2M images"]
    for row in PAPER_TABLE:
        figures = f"{'11.2M':>10} {row.vn_dn:>15} {row.ratio:>7.1%} {row.total_nouns:>11} {row.nouns_per_image:>6.1f}"
        lines.append(f"{_fitted(row.name)} {figures}")
    return "\n".join(lines)


def _notes(rows: Sequence[DensityRow], *, sample_size: int) -> str:
    notes = [
        *(f"Source: {source}" for source in dict.fromkeys(row.text.source for row in rows)),
        f"DN: distinct nouns. VN: those that appear more than {VALID_ABOVE} times. each: nouns per caption (one per image).",
        "Both grow with the number of captions. Compare rows by the right-hand columns: the VN and DN to be expected of",
        f"{sample_size:,} captions (their share of the nouns, drawn at random without replacement).",
        f"Meta-nouns: {len(META_NOUNS)} nouns such as image, scene, background, atmosphere, which name nothing that is shown.",
    ]
    taggers = dict.fromkeys(_tagger_note(row) for row in rows)
    notes += [f"Tagger: {note}" for note in taggers]
    notes += [f"Text encoder: {note}" for note in dict.fromkeys(_t5_note(row) for row in rows)]
    if len(taggers) > 1:
        notes.append("WARNING: the rows were tagged in different ways, so they cannot be compared.")
    empty = sum(row.text.num_empty for row in rows)
    if empty:
        notes.append(f"Left out: {empty:,} rows without text (no alt text, or a caption that the model refused).")
    return "\n".join(notes)


def _tagger_note(row: DensityRow) -> str:
    tagger = row.text.tagger
    lemmas = f"{tagger.get('lemmatiser', 'unknown')} {tagger.get('lemmatiser_version', '')}".strip()
    tags = " ".join(tagger.get("noun_tags", ()))
    return f"spaCy {tagger['model']} {tagger['version']}, tags {tags}; lower-case lemmas by {lemmas}"


def _t5_note(row: DensityRow) -> str:
    return f"tokenizer {row.text.t5['tokenizer']}, the first {row.text.t5['max_tokens']} tokens with </s>"


def _pair(density: ConceptDensity) -> str:
    return f"{_count(density.valid_nouns)} / {_count(density.distinct_nouns)}"


def _count(number: float) -> str:
    """A number as the paper writes large ones; small expected values keep a decimal."""
    if number >= 10_000_000:
        return f"{number / 1e6:.1f}M"
    if number >= 100_000:
        return f"{number / 1e3:.0f}K"
    return f"{number:,.1f}".removesuffix(".0") if number < 1000 else f"{number:,.0f}"


def _fitted(name: str) -> str:
    if len(name) > _NAME_WIDTH:
        name = f"{name[: _NAME_WIDTH // 2 - 1]}…{name[-_NAME_WIDTH // 2 :]}"
    return f"{name:{_NAME_WIDTH}}"
