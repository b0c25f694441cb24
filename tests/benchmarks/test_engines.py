"""Ratios of the engines' benchmark are taken within a round, and a caption that one engine lacks is not equal."""

import pytest

from benchmarks.engines import Timed, _figures

CAPTIONS = {"a": "An owl.", "b": "A key."}


def timed(run: float, loop: float, *, looped: dict[str, str] = CAPTIONS) -> Timed:
    return Timed(figures={"images_per_s": run, "loop_images_per_s": loop}, captions=(CAPTIONS, looped))


def test_figures_are_those_of_the_runs_against_their_own_loops() -> None:
    found = _figures({"transformers": [timed(9, 10)], "vllm": [timed(19, 20)], "endpoint": [timed(18, 20)]})
    assert found["endpoint_share_of_vllm"] == pytest.approx(18 / 19)
    assert found["units_overhead"] == found["transformers_overhead"] == pytest.approx(0.1)
    assert (found["vllm_images_per_s"], found["captions_equal"]) == (19, 1.0)


def test_ratios_are_medians_of_those_of_each_round() -> None:
    rounds = [timed(9, 10), timed(90, 100), timed(1, 2)]  # the machine's speed changes, the ratio less
    assert _figures({"transformers": rounds})["units_overhead"] == pytest.approx(0.1)


@pytest.mark.parametrize("looped", [{"a": "An owl.", "b": "A lock."}, {"a": "An owl."}])
def test_a_caption_that_differs_or_is_missing_counts(looped: dict[str, str]) -> None:
    found = _figures({"transformers": [timed(9, 10)], "serve": [timed(9, 10, looped=looped)]})
    assert found["captions_equal"] == 0.5
    assert "endpoint_share_of_vllm" not in found, "there was no vLLM"
