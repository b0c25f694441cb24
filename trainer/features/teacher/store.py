"""Store of a teacher's features: FEATURES/<stage>/<resolution>/teacher/, unit by unit the samples of the latents next to it.

teacher.json says which tower it was; `vectors/` has a unit vector in float16 for each cell of each sample's grid, in Arrow
files that are mapped into memory; commits/ names them. A sample whose vectors are not finite is in `rejected/`, and its vectors
are NaN.
Shapes: n samples of a unit, N = h w cells, F channels of the tower.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.storage.schema import check_version
from foundry.units.commits import Commit, read_commits
from foundry.wording import counted
from trainer.features.info import FeaturesInfo
from trainer.features.tables import MAX_OPEN_UNITS

FOLDER = "teacher"
TEACHER_FILE = "teacher.json"
VECTORS = "vectors"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TeacherInfo:
    """The content of teacher.json."""

    name: str
    """Name of the tower, as it was given."""
    revision: str | None
    """Commit or tag of a tower on the hub."""
    fingerprint: str
    """Fingerprint of its weights."""
    width: int
    """Channels F."""
    patch_px: int
    """Pixels of an image along a cell of the grid."""
    features: str
    """Fingerprint of the features whose latents it saw."""

    def to_json(self) -> bytes:
        """The content of the file."""
        return json.dumps({"schema_version": _VERSION, **asdict(self)}, indent=1).encode()


def teacher_folder(url: str) -> Folder:
    """The folder of the teacher's features in a feature store."""
    return Folder(f"{url.rstrip('/')}/{FOLDER}")


def read_teacher_info(url: str) -> TeacherInfo | None:
    """teacher.json of a feature store; None if it has none. Raises UserError for a file that cannot be read."""
    folder = teacher_folder(url)
    try:
        record = json.loads(folder.read(TEACHER_FILE))
        if record["schema_version"] != _VERSION:
            raise ValueError(f"version {record['schema_version']}, this program reads {_VERSION}")
        return TeacherInfo(**{one.name: record[one.name] for one in fields(TeacherInfo)})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder.location(TEACHER_FILE)} cannot be read ({error!r}): remove {folder.url}, and make it again"
        ) from None


class TeacherStore:
    """The vectors of one feature store. May be read by several threads at once."""

    def __init__(self, url: str, info: TeacherInfo, *, read: Callable[[Folder], list[Commit]] = read_commits) -> None:
        """`read` reads the commits of a folder."""
        self.info = info
        self._folder = teacher_folder(url)
        self._paths = {commit.unit: commit.files[VECTORS].path for commit in read(self._folder) if commit.files}
        self._open = lru_cache(MAX_OPEN_UNITS)(self._open_unit)

    @property
    def units(self) -> frozenset[int]:
        """Units that are finished."""
        return frozenset(self._paths)

    def read(self, rows: Sequence[tuple[int, int]], keys: Sequence[str], *, pin: bool = False) -> Tensor:
        """The vectors (B, N, F) float16 of samples of one bucket, by unit and stored row.

        Raises UserError if a unit is missing, damaged, or of other samples than these keys.
        """
        found: Tensor | None = None
        for index, ((unit, row), key) in enumerate(zip(rows, keys, strict=True)):
            names, values = self._open(unit)
            if row >= len(names) or names[row].as_py() != key:
                raise self._unfit(unit, f"it has other samples than the latents, {key} is not in its place")
            if found is None:
                found = torch.empty(
                    len(rows), values.shape[1] // self.info.width, self.info.width, dtype=torch.float16, pin_memory=pin
                )
            found[index].view(torch.int16).numpy().reshape(-1)[:] = values[row]
        assert found is not None, "a batch has a sample"
        return found

    def _open_unit(self, unit: int) -> tuple[pa.ChunkedArray, npt.NDArray[np.int16]]:
        """Keys and vectors (n, N F), as bits, of a unit, as views into its file."""
        path = self._paths.get(unit)
        if path is None:
            raise self._unfit(unit, "it is not made yet")
        try:
            source = (
                pa.memory_map(self._folder.path(path)) if self._folder.is_local else pa.BufferReader(self._folder.read(path))
            )
            with pa.ipc.open_file(source) as file:
                check_version(file.schema, where=path)
                table = file.read_all()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._unfit(unit, str(error)) from error
        column = table["vectors"].chunk(0)
        return table["key"], np.frombuffer(column.buffers()[1], dtype=np.int16).reshape(len(column), -1)

    def _unfit(self, unit: int, reason: str) -> UserError:
        return UserError(
            f"{self._folder.url}, unit {unit}: {reason}; delete its commits/{unit:08d}.json if there is one, and run the "
            f"command that made the features again: python -m trainer.precompute … --teacher.name {self.info.name}"
        )


def open_teacher(
    url: str, info: FeaturesInfo, commits: Sequence[Commit], *, read: Callable[[Folder], list[Commit]] = read_commits
) -> TeacherStore:
    """The teacher's features of all units; `read` reads the commits of a folder.

    Raises UserError if some are missing, or saw the latents of other features.
    """
    found = read_teacher_info(url)
    command = f"{info.command} --teacher.name NAME"
    if found is None:
        raise UserError(
            f"{url} holds no features of a teacher, which repa.teacher `stored` reads: make them with {command}, name a "
            f"teacher "
            "that sees the images in training, or give null to train without REPA",
            setting="repa.teacher",
        )
    if found.features not in info.fingerprints:
        raise UserError(f"{url}/{FOLDER} is of other features ({found.features}): remove it, and make it with {command}")
    store = TeacherStore(url, found, read=read)
    if missing := {commit.unit for commit in commits if "latents" in commit.files} - store.units:
        raise UserError(
            f"the teacher {found.name} has not seen {counted(len(missing), 'unit')} of {url}: let {command} finish",
            setting="repa.teacher",
        )
    return store


def vectors_table(keys: Sequence[str], vectors: Tensor) -> pa.Table:
    """The file `vectors`: keys of n samples and their unit vectors (n, N, F)."""
    bits = vectors.half().contiguous().view(torch.int16).numpy()
    data = pa.Array.from_buffers(pa.binary(2 * bits[0].size), len(keys), [None, pa.py_buffer(bits)])
    return pa.table({"key": pa.array(keys, pa.string()), "vectors": data})
