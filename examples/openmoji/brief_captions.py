"""Captions as a person would type them, of what llava-mini said: `python -m examples.openmoji.brief_captions RUN OUT.tar`.

A network that reads dense captions alone does not learn to place two objects by "a large owl left of a small key", since such
captions always name the places too. So the dense captions are read and said again in few words, with some things left open: a
text for each key in a tar, of which `python -m dataset_builder.convert --source sam-llava` makes a run. With `--open true` only
captions of several objects are said again, and never with places, so that the network decides where each object is.
"""

import itertools
import tarfile
from dataclasses import dataclass
from pathlib import Path

from examples.openmoji.checks import stands
from examples.openmoji.composition import Scene, SceneObject
from examples.openmoji.labelled_texts import LabelledText, labelled_text
from examples.openmoji.truth import TrueObject, read_caption
from foundry.command_line import run_command

_RELATED = 2
"""Of this many captions of two related objects, one states their relation instead of their places."""


@dataclass(frozen=True)
class BriefConfig:
    """Settings of the shortening."""

    run: str
    """A captioning run of scenes, or a data set of them."""
    out: str
    """The tar to write."""
    open: bool = False
    """Leave the places open: state the relation of two objects, if the caption does, or only the objects."""


def main(config: BriefConfig) -> int:
    """Writes the tar; returns 0."""
    from dataset_builder.dataset.webdataset import add_member
    from dataset_builder.sql.dataset_files import open_stored
    from foundry.storage.folder import new_file

    with open_stored(config.run) as database:
        rows = database.fetch("SELECT key, caption FROM captions WHERE prompt = 'dense' ORDER BY key").to_pylist()
    num_written = 0
    with new_file(Path(config.out)) as partial, tarfile.open(partial, "w") as tar:
        for number, row in enumerate(rows):
            if (text := brief(row["caption"], number=number, open_places=config.open)) is not None:
                add_member(tar, f"{row['key']}.txt", text.encode())
                num_written += 1
    print(f"{config.out}: {num_written} of {len(rows)} captions in few words")
    return 0


def brief(caption: str, *, number: int, open_places: bool = False) -> str | None:
    """A caption in few words, in a phrasing that follows from `number`; None if it does not say all that a scene has.

    With `open_places` also None for one object.
    """
    scene = scene_told(caption, index=number)
    if scene is None or (open_places and len(scene.objects) == 1):
        return None
    related = scene.relation is not None and (open_places or number % _RELATED == 0)
    texts = (labelled_text(scene, "prompt", seed=phrasing) for phrasing in itertools.count())
    return next(one.text for one in texts if _says(one, "relation") == related and not (open_places and _says(one, "place")))


def scene_told(caption: str, *, index: int) -> Scene | None:
    """The scene that a caption tells of; a relation only where it agrees with the places, and two objects are there."""
    read = read_caption(caption)
    if not read.objects or any(not (thing.place and thing.size) for thing in read.objects):
        return None
    if sum(read.counts.values()) != len(read.objects) or len(read.colors) != 1 or len(read.patterns) != 1:
        return None
    relation = read.relations[0] if len(read.objects) == 2 and read.relations else None
    if relation is not None and not stands(read.objects, relation):
        relation = None
    return Scene(
        index=index,
        split="said",
        objects=tuple(map(_object, read.objects)),
        color=next(iter(read.colors)),
        pattern=next(iter(read.patterns)),
        relation=relation,
    )


def _says(text: LabelledText, label: str) -> bool:
    return any(label in labels for _, _, labels in text.spans)


def _object(thing: TrueObject) -> SceneObject:
    """An object without its pixels, which no text states."""
    return SceneObject(kind=thing.kind, size=thing.size, place=thing.place, x_px=0, y_px=0, width_px=0, height_px=0, size_px=0)


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            BriefConfig,
            main,
            prog="python -m examples.openmoji.brief_captions",
            example="python -m examples.openmoji.brief_captions world/captions world/brief.tar",
            positional=["run", "out"],
        )
    )
