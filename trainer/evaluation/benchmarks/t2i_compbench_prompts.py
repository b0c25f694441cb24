"""The prompts of T2I-CompBench from the user's own copy, or a few that we wrote for a first try.

Source: the authors' repository keeps the prompts that figures are published for in examples/dataset: 300 lines in each of six
<category>_val.txt. Two more files say which prompts of `complex` speak of places or of actions alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from foundry.errors import UserError
from trainer.evaluation.benchmark import Prompt

ATTRIBUTES = ("color", "shape", "texture")
SPATIAL, NON_SPATIAL, COMPLEX = "spatial", "non_spatial", "complex"
CATEGORIES = (*ATTRIBUTES, SPATIAL, NON_SPATIAL, COMPLEX)
NUM_PROMPTS = 300
"""Prompts of each category that the published figures are for."""
BLIP, DETECTOR, CLIP = "blip-vqa", "detector", "clip"
PARTS = "parts"
"""Key, in the data of a prompt of `complex`, of the judges whose mean is its score."""

_DATASET = Path("examples") / "dataset"
_OURS: Mapping[str, Sequence[str]] = {
    "color": (
        "a yellow mug and a purple tray",
        "a green door and a white bicycle",
        "a red umbrella and a grey bench",
        "an orange scarf and a blue drum",
    ),
    "shape": (
        "a round mirror and a square clock",
        "an oval tray and a conical lamp",
        "a cubic box and a cylindrical vase",
        "a triangular sign and a rectangular window",
    ),
    "texture": (
        "a wooden spoon and a glass jar",
        "a leather bag and a metallic kettle",
        "a woollen hat and a plastic chair",
        "a rubber boot and a fluffy towel",
    ),
    SPATIAL: (
        "an owl on the left of a drum",
        "a kettle on the right of a violin",
        "a hat on the top of a barrel",
        "a goat next to a piano",
    ),
    NON_SPATIAL: (
        "A girl is feeding ducks at a pond.",
        "A baker is pulling bread out of an oven.",
        "Two men are carrying a sofa up the stairs.",
        "A dog is asleep under a kitchen table.",
    ),
    COMPLEX: (
        "The small red teapot is on the left of the round wooden tray.",
        "The grey cat is chasing the striped ball.",
        "The tall green bottle and the short brown jar stood in front of the broken window.",
    ),
}
_OUR_PARTS = ((BLIP, DETECTOR), (BLIP, CLIP), (BLIP, DETECTOR, CLIP))


def our_prompts() -> tuple[Prompt, ...]:
    """A few prompts of each category, for a first try."""
    complex_ones = [_complex(text, parts) for text, parts in zip(_OURS[COMPLEX], _OUR_PARTS, strict=True)]
    return (*(_plain(category, text) for category in CATEGORIES[:-1] for text in _OURS[category]), *complex_ones)


def read_prompts(folder: Path) -> tuple[Prompt, ...]:
    """All prompts of a copy of the repository, or of its examples/dataset. Raises UserError that names a missing file."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: clone T2I-CompBench's repository and name its folder", setting="t2i_compbench.folder"
        )
    inside = folder / _DATASET if (folder / _DATASET).is_dir() else folder
    lines = {category: _lines(inside / f"{category}_val.txt") for category in CATEGORIES}
    places = {_key(line) for line in _lines(inside / "complex_val_spatial.txt")}
    actions = {_key(line) for line in _lines(inside / "complex_val_action.txt")}
    plain = [_plain(category, text) for category in CATEGORIES[:-1] for text in lines[category]]
    return (*plain, *(_complex(text, _parts(_key(text), places, actions)) for text in lines[COMPLEX]))


def _parts(key: str, places: set[str], actions: set[str]) -> tuple[str, ...]:
    """Attributes and places, attributes and actions, or all three."""
    if key in places:
        return BLIP, DETECTOR
    return (BLIP, CLIP) if key in actions else (BLIP, DETECTOR, CLIP)


def _plain(category: str, text: str) -> Prompt:
    return Prompt(text=text, category=category)


def _complex(text: str, parts: Sequence[str]) -> Prompt:
    return Prompt(text=text, category=COMPLEX, data={PARTS: list(parts)})


def _lines(path: Path) -> list[str]:
    """A prompt per line; text after a tab is no part of it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(
            f"{path}: {reason}; give a folder with the file from T2I-CompBench's repository",
            setting="t2i_compbench.folder",
        ) from None
    if not (lines := [line.split("\t")[0].strip() for line in text.splitlines() if line.strip()]):
        raise UserError(
            f"{path} is empty: give a folder with the file from T2I-CompBench's repository", setting="t2i_compbench.folder"
        )
    return lines


def _key(line: str) -> str:
    """Key by which a prompt is found in another list: up to the first full stop, in lower case."""
    return line.split(".", maxsplit=1)[0].lower()
