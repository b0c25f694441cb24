"""JSON schema of the prompt set `structured`: a description of the whole, the style, the background, and elements with boxes.

Source: the keys, and their order from the whole to its parts, are those of structured captions as Ideogram 4, FIBO, FLUX.2 and
Cosmos read them.
Deviation: `photo` and `art_style` are both required and may be null, as strict structured outputs want it.
"""

import json
from typing import Any

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_PALETTE = {"type": "array", "items": {"type": "string", "pattern": "^#[0-9A-F]{6}$"}, "maxItems": 5}
_BOX = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1000}, "minItems": 4, "maxItems": 4}
_MAX_ELEMENTS = 24


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """An object that has these keys and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_ELEMENT = _object(
    {
        "type": {"type": "string", "enum": ["object", "text"]},
        "bbox": _BOX,
        "desc": _TEXT,
        "text": _TEXT_OR_NULL,
        "color_palette": _PALETTE,
    }
)
SCENE_SCHEMA = json.dumps(
    _object(
        {
            "high_level_description": _TEXT,
            "style_description": _object(
                {
                    "aesthetics": _TEXT,
                    "lighting": _TEXT,
                    "medium": _TEXT,
                    "photo": _TEXT_OR_NULL,
                    "art_style": _TEXT_OR_NULL,
                    "color_palette": _PALETTE,
                }
            ),
            "compositional_deconstruction": _object(
                {"background": _TEXT, "elements": {"type": "array", "items": _ELEMENT, "maxItems": _MAX_ELEMENTS}}
            ),
        }
    )
)
"""The schema, as JSON text."""
