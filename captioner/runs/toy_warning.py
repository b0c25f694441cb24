"""Warning, once in a command, that llava-mini, which has seen nothing but emoji scenes, is captioning photographs."""

from captioner.config import REAL_MODEL
from foundry.images.index import LARGEST_SCENE_PX
from foundry.reporting.lines import say
from foundry.storage.folder import Folder
from foundry.units.commits import Commit


class ToyWarning:
    """Looks at the sizes of the images in each unit that is committed, until there is something to say.

    Sizes are known once images are decoded, so this is as early as it can be said without reading them twice.
    """

    def __init__(self, run: Folder) -> None:
        self._run = run
        self._seen = 0
        self._said = False

    def look(self, commit: Commit) -> None:
        """Counts the images of a unit; with the first large ones comes the line, above the progress bar."""
        if self._said or "images" not in commit.files:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            data = pa.BufferReader(self._run.read(commit.files["images"].path))
        except OSError:  # a store that does not answer just now: the next unit will do, and the run has its own retries
            return
        sizes = pq.read_table(data, columns=["width", "height"]).to_pylist()
        self._seen += len(sizes)
        if num_large := sum(min(size["width"], size["height"]) > LARGEST_SCENE_PX for size in sizes):
            self._said = True
            say(
                f"warning: mini only understands 64-pixel emoji scenes, and {num_large} of the {self._seen} images so far are "
                f"larger than {LARGEST_SCENE_PX} px on both sides: its captions of photographs will be wrong; "
                f"give another model, such as {REAL_MODEL}",
                err=True,
            )
