"""The store of features as training reads it: opened, checked, and asked for samples by unit and row; a batch is one copy.

FEATURES/<stage>/<resolution>/ holds features.json (info.py), the plan (plan.py), `latents/`, `captions/` and `rejected/` by
unit (tables.py), and `commits/`. Only files that a commit names are read.

Shapes: B samples, C latent channels, h x w the sides of the latents, F channels of T5, L tokens of the null caption.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.units.commits import Commit, read_commits
from model.dit import Captions
from model.encoders.vae import LatentScale
from trainer.features.buckets import Size
from trainer.features.info import NULL_CAPTION_FILE, NULL_CAPTION_NAME, FeaturesInfo, LatentScaling, read_info
from trainer.features.plan import read_feature_plan
from trainer.features.tables import Int8Captions, OpenUnits, StoredCaption, UnitViews, damaged_unit, packed_captions, read_keys
from trainer.features.teacher.store import TeacherStore, open_teacher

WEIGHTS = pa.schema([pa.field("key", pa.string()), pa.field("weight", pa.float64())])
"""Weights of samples: see trainer/data/order.py."""

CaptionChooser = Callable[[Sequence[str]], int | None]
"""Chooses among a sample's caption variants by their names: an index, or none for the null caption."""


class UnitRows(NamedTuple):
    """A unit that can be read, and how many samples it has."""

    unit: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """A sample to read."""

    unit: int
    row: int
    caption: int | CaptionChooser | None = None
    """The index of the caption variant, or what chooses it when the sample is read; none: the null caption."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureBatch:
    """Samples of one bucket on the CPU, in the order asked for."""

    keys: list[str]
    mean: Tensor
    """(B, C, h, w) in the number format of the store, as the VAE gives it, not scaled."""
    log_variance: Tensor | None
    """(B, C, h, w) likewise; none if the VAE is deterministic."""
    captions: Captions | Int8Captions | None
    """Packed tokens as they are stored, bf16 or int8; none if none are: class labels, or training encodes the texts."""
    texts: list[str] | None
    """The chosen captions' texts, "" for the null caption; none if there are class labels."""
    class_labels: Tensor | None
    """(B,) int64; none if there are captions."""
    sizes: Tensor
    """(B, 2) float32: height and width of the original images in pixels."""
    bucket: Size
    """h, w."""
    teacher: Tensor | None = None
    """(B, N, F) float16, what a teacher sees in each of N cells; none unless it is asked for."""
    control: Tensor | None = None
    """(B, C, h, w) latents of the control images, as `mean`; none unless the store was opened with them."""
    read_bytes: int = 0
    """Bytes that were copied from local files, or fetched from object storage, where units are fetched whole."""


@dataclass(frozen=True, eq=False)
class _Sample:
    """A sample that is being read."""

    unit: UnitViews
    row: int
    caption: int | None
    """The index of the caption variant; none: the null caption."""
    text: str
    """The text of that caption, "" for the null caption."""

    @classmethod
    def of(cls, unit: UnitViews, row: int, choice: int | CaptionChooser | None, *, has_captions: bool) -> "_Sample":
        """Chooses one of the captions by their names."""
        if choice is None or not has_captions:
            return cls(unit, row, caption=None, text="")
        caption = choice(unit.latents.caption_names[row]) if callable(choice) else choice
        return cls(unit, row, caption, "" if caption is None else unit.latents.text(row, caption))

    def value(self, column: str) -> Any:
        """The sample's value in a column of the file `latents`."""
        return self.unit.latents.table[column][self.row].as_py()


class FeatureStore:
    """The committed samples of one store. May be read by several threads at once; opened again from its URL elsewhere.

    Samples that are left out are nowhere in it: rows are counted without them.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        info: FeaturesInfo,
        commits: Sequence[Commit],
        null_caption: Tensor | None,
        kept_rows: Mapping[int, npt.NDArray[np.int64]] | None = None,
        weights: Mapping[int, npt.NDArray[np.float64]] | None = None,
        teacher: TeacherStore | None = None,
        with_control: bool = False,
    ) -> None:
        """`kept_rows`: the rows that stay in each unit from which samples are left out; `weights`: of the rows that stay.

        `teacher`: its features of all units; `with_control`: samples are read with their control images.
        """
        plan = read_feature_plan(folder)
        self.folder = folder
        self.info = info
        self.null_caption = null_caption
        """T5("") (L, F) bf16; none if there are class labels or no features of captions."""
        self.missing_units = len(plan.units) - len(commits)
        """Units that are planned and not made yet."""
        self.num_rejected = sum(commit.num_rejected for commit in commits)
        """Samples that could not be used."""
        self._planned = {unit.number: unit for unit in plan.units}
        self._commits = {commit.unit: commit for commit in commits if "latents" in commit.files}
        as_int8 = info.caption_storage == "int8"
        self._null = None if null_caption is None else StoredCaption.of(null_caption, as_int8=as_int8)
        self._kept_rows = dict(kept_rows or {})
        self.weights = weights
        """Weight of each sample (rows,) by unit, see trainer/data/order.py; none: all have weight 1."""
        self.teacher = teacher
        """What a teacher sees; none unless the store was opened with it."""
        self._with_control = with_control
        self._units = OpenUnits(folder, self._commits, command=info.command)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        skip: Collection[str] = (),
        weights: pa.Table | None = None,
        with_teacher: bool = False,
        control: str = "",
        read: Callable[[Folder], list[Commit]] = read_commits,
    ) -> "FeatureStore":
        """Opens FEATURES/<stage>/<resolution>. Of a store that is still being made, what is committed can be read.

        `skip`: keys of samples to leave out; `weights`: a table of WEIGHTS, samples that it does not name have weight 1. For
        either the keys of all units are read. `with_teacher`: what a teacher sees too; `control`:
        latents of these control images too. `read` reads the commits of a folder.
        Raises UserError for one that is missing, foreign, damaged or empty, and where the teacher has not seen all units.
        """
        folder = Folder(url)
        info = read_info(folder)
        try:
            commits = read(folder)
        except ValueError as error:
            raise UserError(f"{url}: {error}: make the features again with {info.command}") from None
        if not any(commit.completed for commit in commits):
            raise UserError(f"{url} has no sample yet: let {info.command} finish")
        if control and info.control != control:
            raise UserError(
                f"{url} has control images {info.control or 'none'}, expected {control}: make features in another folder with "
                f"{replace(info, control=control).command}",
                setting="control.kind",
            )
        keys = dict(_unit_keys(folder, info, commits)) if skip or weights is not None else {}
        kept_rows = _kept_rows(keys, skip)
        return cls(
            folder,
            info=info,
            commits=commits,
            null_caption=_read_null_caption(folder, info),
            kept_rows=kept_rows,
            weights=None if weights is None else _unit_weights(keys, kept_rows, weights),
            teacher=open_teacher(url, info, commits, read=read) if with_teacher else None,
            with_control=bool(control),
        )

    @property
    def scale(self) -> LatentScale:
        """Scale from the VAE's samples to the network's latents, as the features say."""
        return self.info.scale

    def scaled(self, scale: LatentScale | None) -> "FeatureStore":
        """This store, whose latents are from now on scaled as another training measured it; None: as the VAE's config says."""
        by_channel = (scale.scaling_factor, scale.shift_factor) if scale else ((), ())
        assert isinstance(by_channel[0], tuple) and isinstance(by_channel[1], tuple), "what is measured is measured by channel"
        kind: LatentScaling = "measured" if scale else "vae"
        self.info = replace(self.info, latent_scale=kind, latent_scaling=by_channel[0], latent_shift=by_channel[1])
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have a sample, in alphabetical order."""
        return tuple(sorted({self._planned[unit].split for unit in self._commits if self._num_rows(unit)}))

    @property
    def num_skipped(self) -> int:
        """Samples that are left out."""
        return sum(self._commits[unit].files["latents"].rows - len(rows) for unit, rows in self._kept_rows.items())

    @property
    def content(self) -> str:
        """16 hexadecimal digits over units, samples left out and weights: an order of samples holds for one content."""
        parts = [f"{unit} {commit.attempt}" for unit, commit in sorted(self._commits.items())]
        parts += [f"{unit} keeps {rows.tolist()}" for unit, rows in sorted(self._kept_rows.items())]
        weights = sorted((self.weights or {}).items())
        parts += [f"{unit} weighs {hashlib.sha256(values.tobytes()).hexdigest()}" for unit, values in weights]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def samples(self, split: str) -> dict[Size, tuple[UnitRows, ...]]:
        """The units of a split and how many samples each has, by bucket (h, w in latent pixels), in the order of the plan.

        Raises UserError for a split without samples.
        """
        found: dict[Size, list[UnitRows]] = defaultdict(list)
        for number in sorted(self._commits):
            if self._planned[number].split == split and (rows := self._num_rows(number)):
                found[self._bucket(number)].append(UnitRows(number, rows))
        if not found:
            raise UserError(f"{self.folder.url} has no samples of the split {split}; there is {', '.join(self.splits)}")
        return {bucket: tuple(units) for bucket, units in sorted(found.items())}

    def bucket_sizes(self, split: str) -> dict[Size, int]:
        """Samples of a split by bucket."""
        return {bucket: sum(unit.rows for unit in units) for bucket, units in self.samples(split).items()}

    def num_samples(self, split: str) -> int:
        """Samples of a split. Raises UserError for a split without samples."""
        return sum(self.bucket_sizes(split).values())

    def images_per_pass(self, split: str) -> float:
        """Images in which each sample of a split is seen as often as its weight says: their sum."""
        if self.weights is None:
            return float(self.num_samples(split))
        return float(sum(self.weights[unit.unit].sum() for units in self.samples(split).values() for unit in units))

    def caption_names(self, unit: int, row: int) -> tuple[str, ...]:
        """The names of a sample's caption variants; SampleRequest.caption counts in them."""
        return self._units[unit].latents.caption_names[self._stored_row(unit, row)]

    def read(self, requests: Sequence[SampleRequest], *, pin: bool = False, with_teacher: bool = False) -> FeatureBatch:
        """The samples, which must be of one bucket; `pin`: in page-locked memory, from which a GPU copies by itself.

        `with_teacher`: with what the teacher sees, for a store that was opened with it.

        Raises UserError if a file is missing or damaged.
        """
        opened = {unit: self._units.open(unit) for unit in dict.fromkeys(request.unit for request in requests)}
        units = {unit: views for unit, (views, _) in opened.items()}
        bucket = self._bucket(requests[0].unit)
        assert all(self._bucket(unit) == bucket for unit in units), "a batch is of one bucket"
        has_labels = bool(self.info.class_names)
        samples = [
            _Sample.of(
                units[request.unit],
                self._stored_row(request.unit, request.row),
                request.caption,
                has_captions=not has_labels,
            )
            for request in requests
        ]
        mean, *log_variance = self._latents(samples, bucket, pin=pin)
        keys, teacher = [sample.value("key") for sample in samples], None
        if with_teacher:
            assert self.teacher is not None, "the store was opened with its teacher"
            rows = [(request.unit, sample.row) for request, sample in zip(requests, samples, strict=True)]
            teacher = self.teacher.read(rows, keys, pin=pin)
        batch = FeatureBatch(
            keys=keys,
            mean=mean,
            log_variance=log_variance[0] if log_variance else None,
            captions=self._captions(samples, pin=pin) if self.info.caption_storage != "none" else None,
            texts=None if has_labels else [sample.text for sample in samples],
            class_labels=_labels(samples) if has_labels else None,
            sizes=torch.from_numpy(np.stack([sample.unit.latents.sizes[sample.row] for sample in samples])),
            bucket=bucket,
            teacher=teacher,
            control=self._control(samples, bucket, pin=pin) if self._with_control else None,
        )
        read_bytes = _copied_bytes(batch) if self.folder.is_local else sum(fetched for _, fetched in opened.values())
        return replace(batch, read_bytes=read_bytes)

    def _latents(self, samples: Sequence[_Sample], bucket: Size, *, pin: bool) -> list[Tensor]:
        """Mean and, where there is one, log-variance (B, C, h, w)."""
        rows = [sample.unit.latents.latents[sample.row] for sample in samples]
        return self._copied(rows, bucket, num=2 if self.info.latent_variance else 1, pin=pin)

    def _control(self, samples: Sequence[_Sample], bucket: Size, *, pin: bool) -> Tensor:
        """Latents of the control images (B, C, h, w)."""
        stored = [(sample.unit.latents.control, sample.row) for sample in samples]
        return self._copied([bits[row] for bits, row in stored if bits is not None], bucket, num=1, pin=pin)[0]

    def _copied(self, rows: Sequence[npt.NDArray[np.int16]], bucket: Size, *, num: int, pin: bool) -> list[Tensor]:
        """The bits of samples as `num` tensors (B, C, h, w), each copied once from where it lies."""
        shape, dtype = (len(rows), self.info.latent_channels, *bucket), getattr(torch, self.info.latent_dtype)
        found = [torch.empty(shape, dtype=dtype, pin_memory=pin) for _ in range(num)]
        parts = [tensor.view(torch.int16).numpy().reshape(len(rows), -1) for tensor in found]
        for index, row in enumerate(rows):
            for part, values in zip(parts, row.reshape(num, -1), strict=True):
                part[index] = values
        return found

    def _captions(self, samples: Sequence[_Sample], *, pin: bool) -> Captions | Int8Captions:
        """The chosen captions as they are stored."""
        width, null = self.info.caption_width, self._null
        assert null is not None
        chosen = ((sample.unit.captions, sample.row, sample.caption) for sample in samples)
        stored = [
            null if views is None or caption is None else views.caption(row, caption, width=width)
            for views, row, caption in chosen
        ]
        return packed_captions(stored, width=width, pin=pin)

    def _num_rows(self, unit: int) -> int:
        kept = self._kept_rows.get(unit)
        return self._commits[unit].files["latents"].rows if kept is None else len(kept)

    def _stored_row(self, unit: int, row: int) -> int:
        """The row in the unit's file of a row that counts without the samples that are left out."""
        return int(self._kept_rows[unit][row]) if unit in self._kept_rows else row

    def _bucket(self, unit: int) -> Size:
        """h, w of a unit's latents."""
        height, width = self._planned[unit].buckets[self.info.resolution]
        return height // self.info.downsampling, width // self.info.downsampling


def _unit_keys(folder: Folder, info: FeaturesInfo, commits: Sequence[Commit]) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """The keys of each unit's samples. Raises UserError if a file is missing or damaged."""
    for commit in [one for one in commits if "latents" in one.files]:
        path = commit.files["latents"].path
        try:
            with pa.memory_map(folder.path(path)) if folder.is_local else folder.open(path) as file:
                yield commit.unit, read_keys(file, where=path)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise damaged_unit(folder, commit.unit, error, command=info.command) from error


def _kept_rows(keys: Mapping[int, pa.ChunkedArray], skip: Collection[str]) -> dict[int, npt.NDArray[np.int64]]:
    """The rows that stay in each unit that has a sample to skip."""
    if not skip:
        return {}
    skipped = pa.array(sorted(skip), pa.string())
    found = {unit: np.asarray(pc.is_in(own, value_set=skipped)) for unit, own in keys.items()}
    return {unit: np.flatnonzero(~rows) for unit, rows in found.items() if rows.any()}


def _unit_weights(
    keys: Mapping[int, pa.ChunkedArray], kept_rows: Mapping[int, npt.NDArray[np.int64]], weights: pa.Table
) -> dict[int, npt.NDArray[np.float64]]:
    """The weights of the rows that stay in each unit."""
    known, values = weights["key"].combine_chunks(), np.append(weights["weight"].to_numpy(), 1.0)
    found = {}
    for unit, own in keys.items():
        indices = np.asarray(pc.fill_null(pc.index_in(own, value_set=known), len(known)))
        found[unit] = values[indices][kept_rows[unit]] if unit in kept_rows else values[indices]
    return found


def _copied_bytes(batch: FeatureBatch) -> int:
    captions = batch.captions
    tokens = [] if captions is None else [captions.tokens]
    tokens += [captions.scales] if isinstance(captions, Int8Captions) else []
    return sum(one.nbytes for one in (batch.mean, batch.log_variance, batch.teacher, batch.control, *tokens) if one is not None)


def _labels(samples: Sequence[_Sample]) -> Tensor:
    return torch.tensor([sample.value("class_label") for sample in samples], dtype=torch.long)


def _read_null_caption(folder: Folder, info: FeaturesInfo) -> Tensor | None:
    from safetensors.torch import load

    if info.caption_storage == "none":
        return None
    try:
        return load(folder.read(NULL_CAPTION_FILE))[NULL_CAPTION_NAME]
    except FileNotFoundError:
        raise UserError(f"{folder.url} has no {NULL_CAPTION_FILE}: run {info.command} again") from None
