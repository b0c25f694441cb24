"""Captions in few words say what the long ones say, or nothing that they do not."""

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from examples.openmoji import brief_captions
from examples.openmoji.brief_captions import BriefConfig, brief, scene_told
from examples.openmoji.composition import draw_scene
from examples.openmoji.descriptions import describe
from examples.openmoji.truth import truth_of
from tests.foundry.units.plain_loop import run_plainly
from tests.test_notebooks import described_scenes

PAIR = (
    "Two objects. At the top right there is a large tent, a yellow shelter. At the bottom right there is a small owl, a gray "
    "bird. The tent is {} the owl. The scene is set on a striped orange background."
)


@pytest.mark.parametrize("index", range(40))
def test_what_is_said_again_is_what_was_said(index: int) -> None:
    scene = draw_scene(seed=3, index=index)
    told = scene_told(describe(scene, seed=3).dense, index=index)
    assert told is not None
    expected = truth_of(scene)
    assert truth_of(told) == replace(expected, relation=expected.relation if len(expected.objects) == 2 else None)


def test_half_of_the_pairs_are_told_by_how_they_stand() -> None:
    told = [brief(PAIR.format("above"), number=number) for number in range(20)]
    related = [text for text in told if text and any(word in text for word in ("above", "over"))]
    assert related == told[::2]
    assert not any("top right" in text for text in related)


@pytest.mark.parametrize(
    "caption", [PAIR.format("above").replace("small owl", "owl"), "A large owl.", "Nothing.", PAIR.replace("striped ", "")]
)
def test_a_caption_that_leaves_something_open_is_passed_over(caption: str) -> None:
    assert brief(caption.format("above"), number=0) is None


def test_a_relation_that_contradicts_the_places_is_not_repeated() -> None:
    text = brief(PAIR.format("below"), number=0)
    assert text is not None and not any(word in text for word in ("below the", "under", "below a"))


def test_the_tar_has_a_text_for_each_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "brief.tar"
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)
    assert brief_captions.main(BriefConfig(run=described_scenes(tmp_path, count=12), out=str(out))) == 0
    with tarfile.open(out) as tar:
        assert len([name for name in tar.getnames() if name.endswith(".txt")]) == 12
