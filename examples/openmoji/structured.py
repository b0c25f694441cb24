"""True structured captions of scenes, in the schema of the prompt set `structured`: what a perfect captioner would answer."""

from typing import Any

from examples.openmoji.backgrounds import IMAGE_SIZE_PX
from examples.openmoji.composition import Scene, SceneObject
from examples.openmoji.descriptions import describe, with_article
from examples.openmoji.kinds import KIND_BY_NAME

HEX_COLORS = {
    "black": "#000000",
    "blue": "#61B2E4",
    "gray": "#9B9B9A",
    "green": "#5C9E31",
    "orange": "#F1B31C",
    "pink": "#FFA7C0",
    "purple": "#AA66CC",
    "red": "#EA5A47",
    "white": "#FFFFFF",
    "yellow": "#FCEA2B",
}
"""Colour words of the kinds → their hex codes."""


def structured_caption(scene: Scene, *, seed: int) -> dict[str, Any]:
    """The description of a scene; the wording of the whole is that of its medium caption for this seed."""
    return {
        "high_level_description": describe(scene, seed=seed).medium,
        "style_description": {
            "aesthetics": "cheerful, simple",
            "lighting": "flat, without shadows",
            "medium": "digital illustration",
            "photo": None,
            "art_style": "flat cartoon with bold black outlines",
            "color_palette": list(dict.fromkeys(_hex_color(thing) for thing in scene.objects)),
        },
        "compositional_deconstruction": {
            "background": f"a {scene.pattern} {scene.color} background",
            "elements": [_element(thing) for thing in scene.objects],
        },
    }


def _element(thing: SceneObject) -> dict[str, Any]:
    kind = KIND_BY_NAME[thing.kind]
    return {
        "type": "object",
        "bbox": _box(thing),
        "desc": f"{with_article(f'{thing.size} {kind.color} {kind.name}')}, {with_article(kind.category)}",
        "text": None,
        "color_palette": [_hex_color(thing)],
    }


def _box(thing: SceneObject) -> list[int]:
    """[y0, x0, y1, x1] in 0..1000."""
    edges = (thing.y_px, thing.x_px, thing.y_px + thing.height_px, thing.x_px + thing.width_px)
    return [round(1000 * edge / IMAGE_SIZE_PX) for edge in edges]


def _hex_color(thing: SceneObject) -> str:
    return HEX_COLORS[KIND_BY_NAME[thing.kind].color]
