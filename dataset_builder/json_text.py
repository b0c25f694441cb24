"""Words of a structured caption: its JSON text with all but the words blanked out, character by character.

The text keeps its length, so that positions of nouns are positions in the JSON that the text encoder reads. Keys, numbers and
punctuation of JSON are no words; neither are boxes, colours as hex codes and labels. Each text ends as a sentence.
"""

import re

BOXES = {"bbox": (0, 1, 2, 3), "bbox_2d": (1, 0, 3, 2)}
"""Keys of an object's box, four numbers in 0..1000, and where in it are top, left, bottom and right: `bbox_2d`, as Qwen3-VL
writes it, begins with the left edge."""
DESCRIPTIONS = ("desc", "description", "label", "name")
"""Keys of an object's description; the first that is there counts."""
LABELS = frozenset(["type"])
"""Keys whose values are labels of a list, and no words of the model's."""
HEX_COLOR = re.compile(r"#(?:[0-9A-Fa-f]{3,4}|[0-9A-Fa-f]{6}|[0-9A-Fa-f]{8})")

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?')
_ESCAPE = re.compile(r"\\(?:u[0-9A-Fa-f]{4}|.)")


def words_of_json(text: str) -> str:
    """The words of a JSON text, at their positions; as long as `text`."""
    spoken = [" "] * len(text)
    key = ""
    for string in _STRING.finditer(text):
        content = string[1]
        if string[2]:
            key = content
        elif key not in LABELS and not HEX_COLOR.fullmatch(content):
            spoken[string.start(1) : string.end(1)] = _ESCAPE.sub(lambda escape: " " * len(escape[0]), content)
            spoken[string.end(1)] = "."
    return "".join(spoken)
