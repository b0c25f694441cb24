"""The README's pictures show what they say they do."""

from pathlib import Path

import pytest
from PIL import Image

from examples.openmoji import edited
from examples.openmoji.picture import GAP_PX, SCALE, PictureConfig, held_out_texts, main
from examples.openmoji.prompts import CATEGORIES, WorldPrompt, draw_prompts
from tests.model.tiny_parts import SIDE_PX, save_tiny_checkpoint


@pytest.fixture(scope="module")
def by_text() -> dict[str, WorldPrompt]:
    return {one.text: one for one in draw_prompts(count=2, seed=PictureConfig().seed)}


def test_drawings_are_of_held_out_prompts_of_every_category_with_places(by_text: dict[str, WorldPrompt]) -> None:
    prompts = [by_text[text] for text in held_out_texts(PictureConfig(checkpoint="mini"))]
    assert len(prompts) == 12 and all(one.held_out for one in prompts)
    shown = [name for name in CATEGORIES if name not in ("relation", "count")]
    assert [one.category for one in prompts] == shown * 2


def test_a_picture_of_drawings_is_written_and_named_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny", objective="rectified_flow")
    out = tmp_path / "drawn.png"
    assert main(PictureConfig(out=str(out), count=3, checkpoint=str(checkpoint))) == 0
    with Image.open(out) as picture:
        assert picture.height == 2 * (SIDE_PX * SCALE + GAP_PX) + GAP_PX  # two rows
    assert "3 prompts of held-out combinations as" in capsys.readouterr().out


def test_a_picture_of_edits_keeps_what_the_mask_keeps(tmp_path: Path) -> None:
    checkpoint, out = save_tiny_checkpoint(tmp_path / "tiny", objective="rectified_flow"), tmp_path / "edited.png"
    assert edited.main(edited.EditedConfig(out=str(out), checkpoint=str(checkpoint), num_inference_steps=4)) == 0
    with Image.open(out) as picture:
        side, cell = edited.SIDE_PX, edited.SIDE_PX + edited.GAP_PX
        tops = [edited.GAP_PX + row * (cell + edited.TEXT_PX) for row in (0, 1)]
        kept = side // 2 - side // SIDE_PX * 4  # without what scaling mixes at the edge of the mask
        first, *others = (
            picture.crop((left, tops[1], left + kept, tops[1] + side))
            for left in (edited.GAP_PX + column * cell for column in (0, 2, 3, 4, 5))
        )
        assert all(other.tobytes() == first.tobytes() for other in others)
        assert picture.crop((edited.GAP_PX, tops[0], cell, tops[0] + side)) != picture.crop(
            (cell, tops[0], 2 * cell, tops[0] + side)
        )
