"""Results of the demo's captioning run, for its page: images with their captions, and concept density."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from dataset_builder.concepts.density import PAPER_TABLE
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from dataset_builder.reports.density_rows import choose_sample_size, counted_texts, density_row
from dataset_builder.reports.density_table import row_names
from dataset_builder.reports.page import Picture, Table, table_html
from foundry.images.decoding import DecodeLimits, decode_image
from foundry.images.reader import ImageReader, reference_of

if TYPE_CHECKING:
    from dataset_builder.sql.database import Database

_SIDE_PX = 180
_VIEW = "written_without_meta"


def captioned(run: "Database", *, where: str, number: int) -> list[Picture]:
    """Some images of a run: above, the alt text that came with it, else its name; below, the caption."""
    rows = run.fetch(
        "SELECT key, uri, member, byte_offset, byte_length, row, coalesce(alt_text, key) AS title, caption "
        f"FROM images JOIN captions USING (key) WHERE {where} ORDER BY hash(key), key LIMIT {number}"
    ).to_pylist()
    with ImageReader() as reader:
        pictures = [_jpeg(reader.read(reference_of(row))) for row in rows]
    return [
        Picture(key=row["title"], jpeg_base64=picture, caption=row["caption"], figures={})
        for row, picture in zip(rows, pictures, strict=True)
    ]


def density_html(run: Path) -> str:
    """Concept density of alt text and captions, and the paper's."""
    texts = list(counted_texts([str(run)], columns=("alt_text", "caption"), tagger=TaggerConfig(), t5=T5Config()))
    size = choose_sample_size(texts, wanted=None)
    found = [density_row(text, sample_size=size) for text in texts]
    rows: list[list[str | int | float]] = []
    for name, row in zip(row_names(found), found, strict=True):
        whole = row.whole[_VIEW]
        pair = f"{whole.valid_nouns:,.0f} / {whole.distinct_nouns:,.0f}"
        rows.append([name, row.text.num_captions, pair, f"{whole.ratio:.1%}", round(whole.nouns_per_caption, 1)])
    papers = [[f"the paper: {one.name}", 11_200_000, one.vn_dn, f"{one.ratio:.1%}", one.nouns_per_image] for one in PAPER_TABLE]
    columns = ("text", "captions", "VN / DN", "ratio", "nouns a caption")
    note = "VN: nouns that appear more than ten times. DN: different nouns. Nouns such as image and scene are left out."
    return table_html(Table(columns=columns, rows=[*rows, *papers], note=note))


def _jpeg(data: bytes) -> str:
    """In base64, reduced to a thumbnail where it is larger."""
    buffer = io.BytesIO()
    pixels = decode_image(data, limits=DecodeLimits(), target_side_px=_SIDE_PX).pixels
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode()
