"""Passes over a data set: when a stage sees its images too often."""

from trainer.data.passes import MOST_PASSES, passes_warning


def test_50_passes_are_the_most_without_a_warning() -> None:
    assert passes_warning("alignment", float(MOST_PASSES), num_images=10) is None
    more = passes_warning("alignment", MOST_PASSES + 1.0, num_images=10_000)
    assert more is not None and more.fact == "alignment sees each of its 10,000 images 51 times" and "`ladder`" in more.advice
