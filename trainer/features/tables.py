"""The two files of a unit of features as Arrow tables, views of them without a copy, and the cache of open units.

`latents` has one row per sample; its latents are the mean and then, where the VAE has one, the log-variance as the VAE gives
them, little-endian and float16; bf16 in stores that an earlier version began. Where control images were asked for, a column
`control` has the mean of their latents likewise.
`captions` has the T5 tokens of the same samples in the same order, without padding: bf16, or int8 with a float32 scale each.
Both are uncompressed Arrow files of one record batch, so that a local file is memory-mapped and read by plain copies.

Shapes: n samples of a unit, C latent channels, h x w the sides of the latents, T tokens of all captions, F channels of T5.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.storage.schema import check_version
from foundry.units.commits import Commit
from trainer.features.info import LatentDtype

if TYPE_CHECKING:
    import torch

    from model.dit import Captions
    from model.encoders.vae import LatentDistribution

_TEXTS = pa.list_(pa.struct([pa.field("name", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False)]))
_INT8_MAX = 127
_CACHED_TOKENS = 64
MAX_OPEN_UNITS = 256
"""Mapped into memory at once; of a store on object storage, where a unit is read whole, far fewer."""
MAX_FETCHED_UNITS = 16


@dataclass(frozen=True, kw_only=True)
class SampleFacts:
    """All that is known of a sample besides its latents."""

    key: str
    height: int
    """Height of the original image, in pixels."""
    width: int
    class_label: int | None
    """Index in FeaturesInfo.class_names."""
    captions: tuple[tuple[str, str], ...]
    """Name and text of each variant."""


@dataclass(frozen=True, eq=False)
class CaptionViews:
    """The captions of a unit as views into its file; caption k of sample i is number starts[i] + k."""

    starts: npt.NDArray[np.int32]  # (n + 1,)
    offsets: npt.NDArray[np.int64]  # (captions + 1,) bytes
    tokens: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32] | None  # (T,)
    itemsize: int
    """Bytes of a value of the tokens."""

    def caption(self, row: int, caption: int, *, width: int) -> "StoredCaption":
        """A caption of a sample, of tokens with `width` channels."""
        number = self.starts[row] + caption
        assert number < self.starts[row + 1], f"row {row} has no caption {caption}"
        start, stop = self.offsets[number], self.offsets[number + 1]
        token_bytes = width * self.itemsize
        scales = None if self.scales is None else self.scales[start // token_bytes : stop // token_bytes]
        return StoredCaption(self.tokens[start:stop], scales)


class StoredCaption(NamedTuple):
    """The bytes of a caption's tokens (L, F), and their scales (L,) where they are int8."""

    tokens: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32] | None

    @classmethod
    def of(cls, tokens: "torch.Tensor", *, as_int8: bool) -> "StoredCaption":
        """Tokens (L, F) bf16 as they are stored."""
        if not as_int8:
            return cls(_bits(tokens.contiguous()), None)
        values, scales = to_int8(tokens)
        return cls(_bits(values), scales.view(-1).numpy())


@dataclass(frozen=True, eq=False)
class Int8Captions:
    """The tokens of a batch of captions as they are stored, which take half the way to a device; see model.dit.Captions."""

    tokens: "torch.Tensor"
    """(T, F) int8."""
    scales: "torch.Tensor"
    """(T,) float32: a token is int8 * scale."""
    lengths: "torch.Tensor"
    """(B,) int64, on the CPU."""

    def expanded(self, device: "torch.device | str" = "cpu") -> "Captions":
        """The captions in bf16, computed on the device: the same numbers on all devices."""
        from model.dit import Captions

        tokens = self.tokens.to(device, non_blocking=True)
        return Captions(tokens=from_int8(tokens, self.scales.to(device, non_blocking=True)), lengths=self.lengths)


@dataclass(frozen=True, eq=False)
class LatentViews:
    """The latents of a unit as views into its file."""

    latents: npt.NDArray[np.int16]  # (n, 2 C h w) or (n, C h w), the bits of FeaturesInfo.latent_dtype
    table: pa.Table
    control: npt.NDArray[np.int16] | None = None  # (n, C h w) likewise

    @cached_property
    def caption_names(self) -> list[tuple[str, ...]]:
        """The names of each sample's caption variants."""
        starts, names = self._starts, self._variants.field("name").to_pylist()
        return [tuple(names[start:stop]) for start, stop in pairwise(starts)]

    @cached_property
    def sizes(self) -> npt.NDArray[np.float32]:
        """Height and width of the original images, (n, 2)."""
        return np.stack([self.table[name].to_numpy() for name in ("height", "width")], axis=1).astype(np.float32)

    def text(self, row: int, caption: int) -> str:
        """The text of a caption variant."""
        found: str = self._variants.field("text")[self._starts[row] + caption].as_py()
        return found

    @cached_property
    def _starts(self) -> list[int]:
        starts: list[int] = self.table["captions"].chunk(0).offsets.to_pylist()
        return starts

    @cached_property
    def _variants(self) -> pa.StructArray:
        return self.table["captions"].chunk(0).values


@dataclass(frozen=True, eq=False)
class UnitViews:
    """Both files of a unit; captions are missing where none are stored."""

    latents: LatentViews
    captions: CaptionViews | None
    num_bytes: int = 0
    """Size of both files."""


class OpenUnits:
    """The committed units of a store, opened when they are asked for; the most recently read ones stay open.

    May be asked by several threads at once.
    """

    def __init__(self, folder: Folder, commits: Mapping[int, Commit], *, command: str) -> None:
        """`command` makes the features again, for the error about a damaged file."""
        self._folder = folder
        self._commits = commits
        self._command = command
        self._most = MAX_OPEN_UNITS if folder.is_local else MAX_FETCHED_UNITS
        self._open: OrderedDict[int, UnitViews] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> UnitViews:
        """The unit of a number. Raises UserError if a file is missing or damaged."""
        return self.open(number)[0]

    def open(self, number: int) -> tuple[UnitViews, int]:
        """The unit of a number, and the bytes that were fetched for it: 0 for one that was open, and on a local disk."""
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number], 0
        opened = self._open_unit(number)
        with self._lock:
            self._open[number] = opened
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return opened, 0 if self._folder.is_local else opened.num_bytes

    def _open_unit(self, number: int) -> UnitViews:
        files = self._commits[number].files
        try:
            latents = open_latents(self._source(files["latents"].path), where=files["latents"].path)
            captions = None
            if "captions" in files:
                captions = open_captions(self._source(files["captions"].path), where=files["captions"].path)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise damaged_unit(self._folder, number, error, command=self._command) from error
        return UnitViews(latents, captions, sum(files[name].num_bytes for name in ("latents", "captions") if name in files))

    def _source(self, path: str) -> pa.NativeFile:
        return pa.memory_map(self._folder.path(path)) if self._folder.is_local else pa.BufferReader(self._folder.read(path))


def damaged_unit(folder: Folder, number: int, error: Exception, *, command: str) -> UserError:
    """The error about a file of a unit that is missing or damaged; `command` makes the features again."""
    return UserError(f"{folder.url}, unit {number}: {error}; delete commits/{number:08d}.json and run {command}")


def latents_table(
    facts: Sequence[SampleFacts],
    latents: "LatentDistribution",
    dtype: LatentDtype = "float16",
    *,
    control: "torch.Tensor | None" = None,
) -> pa.Table:
    """The file `latents`: facts of n samples and their distributions (n, C, h, w), in the number format of their store.

    `control`: latents of their control images (n, C, h, w).
    """
    import torch

    parts = [latents.mean] if latents.log_variance is None else [latents.mean, latents.log_variance]
    stacked = torch.stack(parts, dim=1).to(getattr(torch, dtype))  # (n, 2, C, h, w), or (n, 1, C, h, w) without a variance
    captions = [[{"name": name, "text": text} for name, text in one.captions] for one in facts]
    columns: dict[str, pa.Array] = {
        "key": pa.array([one.key for one in facts], pa.string()),
        "latents": _rows(stacked),
        "height": pa.array([one.height for one in facts], pa.int32()),
        "width": pa.array([one.width for one in facts], pa.int32()),
        "class_label": pa.array([one.class_label for one in facts], pa.int32()),
        "captions": pa.array(captions, _TEXTS),
    }
    if control is not None:
        columns["control"] = _rows(control.to(stacked.dtype))
    return pa.table(columns)


def captions_table(names: Sequence[Sequence[str]], captions: "Captions", *, as_int8: bool) -> pa.Table:
    """The file `captions`: for n samples the names of their variants, and the features of all variants in that order."""
    lengths = captions.lengths.numpy()
    flat = [name for variants in names for name in variants]
    assert len(flat) == len(lengths), (len(flat), len(lengths))
    columns: dict[str, pa.Array] = {"name": pa.array(flat, pa.string()), "num_tokens": pa.array(lengths, pa.int32())}
    if as_int8:
        tokens, scales = to_int8(captions.tokens)
        columns["tokens"] = _binaries(_bits(tokens), lengths * tokens.shape[1])
        columns["scales"] = _binaries(_bits(scales), lengths * 4)
    else:
        tokens = captions.tokens.bfloat16()
        columns["tokens"] = _binaries(_bits(tokens.contiguous()), lengths * tokens.shape[1] * 2)
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    struct = pa.StructArray.from_arrays(list(columns.values()), fields=fields)
    starts = np.concatenate([[0], np.cumsum([len(variants) for variants in names])]).astype(np.int32)
    return pa.table({"captions": pa.ListArray.from_arrays(pa.array(starts), struct)})


def to_int8(tokens: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Tokens (T, F) as int8, and a float32 scale for each (T, 1): a token is int8 * scale."""
    import torch

    values = tokens.float()
    scales = values.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _INT8_MAX  # (T, 1)
    return (values / scales).round().to(torch.int8), scales


def from_int8(tokens: "torch.Tensor", scales: "torch.Tensor") -> "torch.Tensor":
    """The inverse of `to_int8`, in bf16, on the device of the tokens. On a CPU in pieces that stay in the cache, four times as
    fast as at once."""
    import torch

    scales = scales.view(-1, 1)
    if tokens.device.type != "cpu":
        return (tokens.float() * scales).bfloat16()
    found = torch.empty(tokens.shape, dtype=torch.bfloat16)
    scratch = torch.empty(_CACHED_TOKENS, tokens.shape[1])
    for start in range(0, len(tokens), _CACHED_TOKENS):
        stop = min(start + _CACHED_TOKENS, len(tokens))
        found[start:stop] = scratch[: stop - start].copy_(tokens[start:stop]).mul_(scales[start:stop])
    return found


def packed_captions(captions: Sequence[StoredCaption], *, width: int, pin: bool) -> "Captions | Int8Captions":
    """Captions of a batch, each copied once; all with scales, or none. `pin`: in page-locked memory."""
    import torch

    from model.dit import Captions

    scales = [caption.scales for caption in captions if caption.scales is not None]
    dtype = torch.int8 if scales else torch.bfloat16
    lengths = torch.tensor([len(caption.tokens) for caption in captions]) // (width * dtype.itemsize)
    tokens = torch.empty((int(lengths.sum()), width), dtype=dtype, pin_memory=pin)
    np.concatenate([caption.tokens for caption in captions], out=_bits(tokens))
    if not scales:
        return Captions(tokens=tokens, lengths=lengths)
    packed = torch.empty(len(tokens), pin_memory=pin)
    np.concatenate(scales, out=packed.numpy())
    return Int8Captions(tokens, packed, lengths)


def open_latents(source: Any, *, where: str) -> LatentViews:
    """Views into a file `latents`, given as an Arrow input."""
    table = _open(source, where=where)
    control = _bits_of(table, "control") if "control" in table.column_names else None
    return LatentViews(_bits_of(table, "latents"), table, control)


def read_keys(source: Any, *, where: str) -> pa.ChunkedArray:
    """The keys in a file `latents`, by row; nothing else of it is read. Raises as `open_latents`."""
    with pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[0])) as file:
        check_version(file.schema, where=where)
        return file.read_all()["key"]  # the first field, see latents_table


def open_captions(source: Any, *, where: str) -> CaptionViews:
    """Views into a file `captions`, given as an Arrow input."""
    column = _open(source, where=where)["captions"].chunk(0)
    struct = column.values
    has_scales = any(part.name == "scales" for part in struct.type)
    _, offsets, tokens = struct.field("tokens").buffers()
    scales = np.frombuffer(struct.field("scales").buffers()[2], dtype=np.float32) if has_scales else None
    return CaptionViews(
        starts=np.frombuffer(column.buffers()[1], dtype=np.int32),
        offsets=np.frombuffer(offsets, dtype=np.int64),
        tokens=np.frombuffer(tokens, dtype=np.uint8),
        scales=scales,
        itemsize=1 if has_scales else 2,
    )


def _open(source: Any, *, where: str) -> pa.Table:
    """A file's one record batch; raises ValueError for another schema version, pa.ArrowException for a damaged file."""
    with pa.ipc.open_file(source) as file:
        check_version(file.schema, where=where)
        table: pa.Table = file.read_all()
    return table


def _rows(values: "torch.Tensor") -> pa.Array:
    """Values (n, …) of two bytes each, as one binary value for each row."""
    data = pa.py_buffer(_bits(values.contiguous()))
    return pa.Array.from_buffers(pa.binary(values[0].numel() * 2), len(values), [None, data])


def _bits_of(table: pa.Table, name: str) -> npt.NDArray[np.int16]:
    """The bits (n, …) of such a column, as a view into the file."""
    column = table[name].chunk(0)
    data = np.frombuffer(column.buffers()[1], dtype=np.int16)
    return data.reshape(len(column), -1)


def _bits(tensor: "torch.Tensor") -> npt.NDArray[np.uint8]:
    """A contiguous CPU tensor's bytes, without a copy."""
    import torch

    bits: npt.NDArray[np.uint8] = tensor.cpu().view(-1).view(torch.uint8).numpy()
    return bits


def _binaries(data: npt.NDArray[np.uint8], sizes: npt.NDArray[np.int64]) -> pa.Array:
    """Consecutive values of these sizes, without a copy."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(sizes), buffers)
