"""Figures in the tables of the tutorials are those of the plans that the same page shows, or follow from what it says."""

import re

import pytest

from tests.guides.pages import ROOT, shown
from trainer.monitoring.gpus import GPUS

TUTORIALS = ROOT / "docs" / "tutorials"
FIGURE = re.compile(r"\$\d+|[\d.,]+ (?:GB|hours|days)")


def _rows(name: str, *beginnings: str) -> list[str]:
    """Lines of the page's tables that begin so."""
    lines = (TUTORIALS / name).read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if any(line.startswith(f"| {beginning}") for beginning in beginnings)]
    assert len(found) == len(beginnings)
    return found


@pytest.mark.parametrize(
    ("name", "beginnings"),
    [
        (
            "first-real-model.md",
            ("features, captions in int8", "training at 256 px", "features of the 200,000", "training of these"),
        ),
        ("fine-tune-pixart.md", ("memory of the GPU", "time")),
    ],
)
def test_the_table_has_the_figures_of_the_plans(name: str, beginnings: tuple[str, ...]) -> None:
    """What `t2i plan` prints is compared in test_outputs.py."""
    plans = "\n".join(line for example in shown(TUTORIALS / name) for line in example.output)
    for row in _rows(name, *beginnings):
        figures = FIGURE.findall(row.replace("12 GB a checkpoint", ""))
        assert figures
        for figure in figures:
            number = figure.removesuffix(" GB").removesuffix(" hours").removesuffix(" days")
            assert re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d.,]*\d)", plans), figure


def test_the_cost_of_captions_follows_from_their_speed() -> None:
    (row,) = _rows("first-real-model.md", "captions of 2 million images")
    price = GPUS["h100"].price
    hours = 2_000_000 / (8 * 20) / 3600
    assert price is not None and "20 images/s" in row
    assert f"{hours:.1f} hours" in row and f"${round(hours * 8 * price)} " in row
