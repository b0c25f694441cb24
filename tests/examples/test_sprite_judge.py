"""The judge by drawings: it finds what is there in true and in blurred scenes, nothing that is not, and tells what is wrong."""

from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from examples.openmoji.backgrounds import background_pixels
from examples.openmoji.checks import check
from examples.openmoji.composition import Scene, SceneObject, draw_scene, render
from examples.openmoji.sprite_judge import FoundScene, SpriteBank, find_scenes, sprite_bank
from examples.openmoji.sprites import sprite
from examples.openmoji.truth import truth_of

NUM_SCENES = 64


@pytest.fixture(scope="module")
def bank() -> SpriteBank:
    return sprite_bank()


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed=88, index=index, split="unseen") for index in range(NUM_SCENES)]


def _reconstructed(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Through the shipped autoencoder, as generated images go."""
    import torch

    from model.encoders.vae import VAEConfig, load_vae

    vae = load_vae(VAEConfig(name="mini", sliced=False))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    decoded = vae.decode(vae.encode(pixels).sample(vae.scale, generator=None))
    rounded: npt.NDArray[np.uint8] = ((decoded + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return rounded


def _f1(found: list[FoundScene], scenes: list[Scene]) -> float:
    pairs = [
        (Counter(thing.kind for thing in one.objects), Counter(thing.kind for thing in scene.objects))
        for one, scene in zip(found, scenes, strict=True)
    ]
    right = sum((a & b).total() for a, b in pairs)
    return 2 * right / sum(a.total() + b.total() for a, b in pairs)


@pytest.mark.parametrize("blurred", [False, True])
def test_it_finds_what_unseen_scenes_show(blurred: bool, scenes: list[Scene], bank: SpriteBank) -> None:
    images = np.stack([render(scene) for scene in scenes])
    found = find_scenes(_reconstructed(images) if blurred else images, bank)
    assert _f1(found, scenes) >= 0.97
    verdicts = [check(one.reading().read, truth_of(scene)) for one, scene in zip(found, scenes, strict=True)]
    for name in ("size", "place", "color", "pattern"):
        assert np.mean([verdict[name] for verdict in verdicts]) >= 0.97


def test_boxes_are_where_the_drawings_are(scenes: list[Scene], bank: SpriteBank) -> None:
    for one, scene in zip(find_scenes(np.stack([render(scene) for scene in scenes]), bank), scenes, strict=True):
        boxes = {(thing.kind, thing.x_px, thing.y_px): thing for thing in scene.objects}
        for thing in one.objects:
            near = [
                true
                for (kind, x, y), true in boxes.items()
                if (kind, abs(x - thing.x_px) < 3, abs(y - thing.y_px) < 3) == (thing.kind, True, True)
            ]
            assert near
            assert abs(near[0].width_px - thing.width_px) < 3
            assert abs(near[0].height_px - thing.height_px) < 3


def _scene(*objects: tuple[str, int, str, int, int], color: str = "blue", pattern: str = "striped") -> Scene:
    things = []
    for kind, size_px, place, x_px, y_px in objects:
        height_px, width_px = sprite(kind, size_px).shape[:2]
        size = "large" if size_px > 25 else "small"
        thing = SceneObject(
            kind=kind, size=size, place=place, x_px=x_px, y_px=y_px, width_px=width_px, height_px=height_px, size_px=size_px
        )
        things.append(thing)
    return Scene(index=0, split="train", objects=tuple(things), color=color, pattern=pattern, relation=None)


OWL = ("owl", 30, "left", 1, 17)
KEY = ("key", 22, "right", 38, 22)


@pytest.mark.parametrize(
    ("scene", "wrong"),
    [
        (_scene(OWL, KEY), {}),
        (_scene(("pig", *OWL[1:]), KEY), {"object": 0.5, "size": 0.5, "place": 0.5, "count": 0.0}),
        (_scene(OWL), {"object": 0.5, "size": 0.5, "place": 0.5, "count": 0.0}),
        (_scene(OWL, KEY, ("star", 20, "top right", 40, 0)), {"count": 0.0}),
        (_scene(("owl", 30, "top left", 1, 1), KEY), {"place": 0.5}),
        (_scene(("owl", 21, "left", 5, 22), KEY), {"size": 0.5}),
        (_scene(OWL, KEY, color="teal"), {"color": 0.0, "background": 0.0}),
        (_scene(OWL, KEY, pattern="checkered"), {"pattern": 0.0, "background": 0.0}),
    ],
)
@pytest.mark.parametrize("blurred", [False, True])
def test_it_tells_what_is_wrong(scene: Scene, wrong: dict[str, float], blurred: bool, bank: SpriteBank) -> None:
    images = render(scene)[None]
    (found,) = find_scenes(_reconstructed(images) if blurred else images, bank)
    right = dict.fromkeys(("object", "size", "place", "color", "pattern", "background", "count", "all"), 1.0)
    expected = right | wrong | ({"all": 0.0} if wrong else {})
    assert check(found.reading().read, truth_of(_scene(OWL, KEY))) == expected


def test_it_finds_no_object_where_there_is_none(bank: SpriteBank) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    gray = np.full((64, 64, 3), 100, dtype=np.uint8)
    images = np.stack([background_pixels("pink", "dotted"), background_pixels("white", "plain"), noise, gray])
    found = find_scenes(images, bank)
    assert [one.objects for one in found] == [()] * 4
    assert [(one.color, one.pattern) for one in found] == [("pink", "dotted"), ("white", "plain"), ("", ""), ("", "")]


def test_it_finds_no_drawing_that_is_a_blend_of_all(bank: SpriteBank) -> None:
    """What a network draws that has learned where, but not what."""
    scenes = [_scene((kind, 30, "center", 17, 17)) for kind in ("owl", "key", "tree", "pig", "rocket", "fish", "tent", "bell")]
    blend = np.mean([render(scene) for scene in scenes], axis=0).astype(np.uint8)
    (found,) = find_scenes(blend[None], bank)
    assert found.objects == ()
    assert (found.color, found.pattern) == ("blue", "striped")


def test_an_image_is_judged_alone(scenes: list[Scene], bank: SpriteBank) -> None:
    images = np.stack([render(scene) for scene in scenes[:9]])
    together = find_scenes(images, bank)
    alone = [find_scenes(image[None], bank)[0] for image in images]
    assert [replace(one, objects=()) for one in together] == [replace(one, objects=()) for one in alone]
    kinds = [[(thing.kind, thing.x_px, thing.y_px) for thing in one.objects] for one in together]
    assert kinds == [[(thing.kind, thing.x_px, thing.y_px) for thing in one.objects] for one in alone]


def test_a_bank_of_few_kinds_finds_those_only() -> None:
    (found,) = find_scenes(render(_scene(OWL, KEY))[None], sprite_bank(("key", "fish")))
    assert [thing.kind for thing in found.objects] == ["key"]


def test_other_shapes_are_refused(bank: SpriteBank) -> None:
    with pytest.raises(ValueError, match="expected images"):
        find_scenes(np.zeros((1, 32, 32, 3), dtype=np.uint8), bank)
