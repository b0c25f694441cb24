"""The budget of rejected images means the same in every command."""

from collections.abc import Callable

import pytest

from captioner.config import CaptionConfig
from dataset_builder.convert import ConvertConfig
from dataset_builder.scores.config import ScoreConfig
from foundry.units.rejection import allowed_rejections, max_rejected_problems
from trainer.features.config import PrecomputeConfig


@pytest.mark.parametrize(
    "config",
    [
        lambda: CaptionConfig(images=["images"], out="run", model="mini", max_rejected=1.5),
        lambda: ScoreConfig(source="run", max_rejected=1.5),
        lambda: ConvertConfig(input="in", out="out", source="laion", target="run", max_rejected=1.5),
        lambda: PrecomputeConfig(dataset="run", out="features", stage="alignment", resolution=[64], max_rejected=1.5),
    ],
)
def test_every_command_says_the_same_of_a_share_above_1(config: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="max_rejected must be between 0 and 1, found 1.5"):
        config()


def test_a_share_is_from_0_to_1() -> None:
    assert [max_rejected_problems(share) for share in (None, 0.0, 0.5, 1.0)] == [[]] * 4
    assert max_rejected_problems(-0.1) == ["max_rejected must be between 0 and 1, found -0.1"]
    assert (allowed_rejections(0.0, 10**6), allowed_rejections(None, 10**6), allowed_rejections(None, 10)) == (0, 10000, 100)
