"""Containers, lists, settings and weights: some that are whole, and some that are crafted to do harm."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from tests.foundry.images.containers import jpeg, tar_bytes

_JPEG = jpeg()


class _Pickled:
    """What runs a program when it is unpickled, as a stranger's file would."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return open_for_writing, ("executed",)


def open_for_writing(path: str) -> object:
    return open(path, "w")


def tar_member(
    name: str, data: bytes = _JPEG, *, kind: bytes = tarfile.REGTYPE, size: int | None = None, **fields: Any
) -> bytes:
    """A header and its data; `size` is what the header says."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data) if size is None else size
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


def pax(records: bytes, then: bytes) -> bytes:
    return tar_member("pax", records, kind=tarfile.XHDTYPE) + then


def parquet_bytes(columns: Mapping[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer, **options)
    return buffer.getvalue()


def _parquet_footer(change: Callable[[bytes], bytes]) -> bytes:
    """A Parquet file whose footer was changed."""
    data = parquet_bytes({"image": [_JPEG] * 3, "key": ["a", "b", "c"]})
    length = struct.unpack("<I", data[-8:-4])[0]
    footer = change(data[-8 - length : -8])
    return data[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def safetensors_bytes(header: bytes | Mapping[str, Any], data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def npz_bytes(**arrays: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in arrays.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def _saved_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.zeros(4), sigma=np.eye(4))
    return buffer.getvalue()


def _pth(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _laughs(start: str, levels: int = 9) -> str:
    """YAML whose aliases stand for ten to the power of `levels` items."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([*lines, start.format(last=f"*a{levels - 1}")])


WHOLE: dict[str, list[bytes]] = {
    "tar": [
        tar_bytes([("a.jpg", _JPEG), ("a.json", b'{"n": 1}'), ("b" * 130 + ".png", _JPEG)], tar_format=tarfile.PAX_FORMAT),
        tar_bytes([("d/a.jpg", _JPEG), ("d/a.txt", b"an owl"), ("b" * 130 + ".png", _JPEG)], tar_format=tarfile.GNU_FORMAT),
    ],
    "parquet": [
        parquet_bytes({"image": [_JPEG, None, b"x"], "key": ["a", "b", "c"], "n": [1, 2, 3]}),
        parquet_bytes({"image": [{"bytes": _JPEG, "path": f"{n}.jpg"} for n in range(50)]}, row_group_size=7),
        parquet_bytes({"path": ["a.jpg", "b.jpg"], "caption": pa.array(["owl", "owl"]).dictionary_encode()}),
    ],
    "jsonl": [b'{"path": "a.jpg", "caption": "an owl", "n": 1.5}\n{"path": "b.jpg", "n": null}\n' * 3],
    "csv": [b'path,caption,n\na.jpg,"an owl, a tree",1\nb.jpg,"say ""hi""",2\n' * 2, "path;a\r\nä.jpg;ö\r\n".encode("utf-16")],
    "tsv": [b'path\tcaption\na.jpg\tan "owl"\nb.jpg\t"a tree"\n'],
    "safetensors": [save({"a": torch.zeros(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)}, {"kind": "x"})],
    "npz": [_saved_npz()],
    "pth": [_pth({"state_dict": {"a": torch.zeros(3)}})],
    "yaml": [
        b"name: mine\nversion: '1'\nprompts:\n- {name: a, text: What is it?}\n",
        b"where: num_nouns > 3\nleast: {num_words: 3}\n",
    ],
}
"""Files to mutate, by their suffix: each kind that somebody else may have written."""
CRAFTED: dict[str, Callable[[], bytes]] = {
    "absolute.tar": lambda: tar_member("/etc/passwd.jpg") + bytes(1024),
    "above.tar": lambda: tar_member("../../../../etc/x.jpg") + tar_member("a/../../b.jpg") + bytes(1024),
    "symlink.tar": lambda: tar_member("a.jpg", b"", kind=tarfile.SYMTYPE, linkname="/etc/passwd") + bytes(1024),
    "link_text.tar": lambda: (
        tar_member("a.jpg") + tar_member("a.txt", b"", kind=tarfile.SYMTYPE, linkname="/etc/passwd") + bytes(1024)
    ),
    "hardlink.tar": lambda: tar_member("a.jpg", b"", kind=tarfile.LNKTYPE, linkname="../../x.jpg") + bytes(1024),
    "device.tar": lambda: (
        tar_member("a.jpg", b"", kind=tarfile.CHRTYPE, devmajor=1, devminor=5) + tar_member("b.jpg") + bytes(1024)
    ),
    "fifo.tar": lambda: tar_member("a.jpg", b"", kind=tarfile.FIFOTYPE) + tar_member("b.jpg") + bytes(1024),
    "twice.tar": lambda: tar_member("a.jpg") * 3 + bytes(1024),
    "sparse.tar": lambda: tar_member("a.jpg", kind=tarfile.GNUTYPE_SPARSE, size=1 << 40) + bytes(1024),
    "pax_sparse.tar": lambda: pax(b"22 GNU.sparse.major=1\n", tar_member("a.jpg")) + bytes(1024),
    "pax_size.tar": lambda: pax(b"20 size=99999999999\n", tar_member("a.jpg")) + bytes(1024),
    "pax_negative.tar": lambda: pax(b"12 size=-512\n", tar_member("a.jpg")) + bytes(1024),
    "pax_no_number.tar": lambda: pax(b"12 size=many\n", tar_member("a.jpg")) + bytes(1024),
    "pax_digits.tar": lambda: pax(b"10000 size=" + b"9" * 9_988 + b"\n", tar_member("a.jpg")) + bytes(1024),
    "pax_length.tar": lambda: pax(b"9" * 5_000 + b" path=x\n", tar_member("a.jpg")) + bytes(1024),
    "pax_zero.tar": lambda: pax(b"0 " * 100_000, tar_member("a.jpg")) + bytes(1024),
    "pax_bomb.tar": lambda: b"".join(pax(b"9 a=bcd\n" * 10_000, b"") for _ in range(100)) + tar_member("a.jpg") + bytes(1024),
    "pax_8_gb.tar": lambda: tar_member("pax", b"x", kind=tarfile.XHDTYPE, size=8 << 30) + tar_member("a.jpg") + bytes(1024),
    "name_8_gb.tar": lambda: (
        tar_member("x", b"x", kind=tarfile.GNUTYPE_LONGNAME, size=8 << 30) + tar_member("a.jpg") + bytes(1024)
    ),
    "data_8_gb.tar": lambda: tar_member("a.jpg", b"x", size=8 << 30) + bytes(1024),
    "long_names.tar": lambda: (
        tar_member("x", b"d/" * 200_000 + b"a.jpg\0", kind=tarfile.GNUTYPE_LONGNAME) + tar_member("a.jpg") + bytes(1024)
    ),
    "no_unicode.tar": lambda: tar_member("\udcff\udcfe.jpg") + bytes(1024),
    "control.tar": lambda: tar_member("a\n\x1b[31m\u202e.jpg") + bytes(1024),
    "nameless.tar": lambda: tar_member("") + tar_member("/") + tar_member(".jpg") + bytes(1024),
    "gzip.tar": lambda: gzip.compress(bytes(100 << 20)),
    "text.tar": lambda: b"<html>404</html>",
    "50,000_members.tar": lambda: b"".join(tar_member(f"{n}.jpg", b"") for n in range(50_000)) + bytes(1024),
    "wrong_statistics.parquet": lambda: _parquet_footer(lambda footer: footer.replace(b"\x01a", b"\x01z")),
    "rows.parquet": lambda: _parquet_footer(lambda footer: footer.replace(b"\x16\x06", b"\x16\x7e")),
    "many_rows.parquet": lambda: _parquet_footer(lambda footer: footer.replace(b"\x16\x06", b"\x16\xfe\xff\xff\xff\x0f")),
    "cut.parquet": lambda: parquet_bytes({"image": [_JPEG] * 9})[:-100],
    "footer_length.parquet": lambda: b"PAR1" + bytes(100) + struct.pack("<I", 2**31) + b"PAR1",
    "empty.parquet": lambda: b"PAR1PAR1",
    "huge_group.parquet": lambda: parquet_bytes({"image": [bytes(1 << 20)] * 60}, compression="zstd", use_dictionary=False),
    "dictionary_bomb.parquet": lambda: parquet_bytes({"image": _repeated(bytes(1 << 20), 20_000)}),
    "key_bomb.parquet": lambda: parquet_bytes({"image": _repeated(_JPEG, 3_000), "key": _repeated("x" * (1 << 20), 3_000)}),
    "wide.parquet": lambda: parquet_bytes({"image": [_JPEG], **{f"c{n}": [n] for n in range(5_000)}}),
    "nested.parquet": lambda: parquet_bytes({"image": [_JPEG], "deep": pa.array([None], type=_deep(60))}),
    "schema.parquet": lambda: parquet_bytes({"image": ["text"], "bytes": [1.5], "path": [{"x": 1}]}),
    "pickled.parquet": lambda: parquet_bytes({"image": [pickle.dumps(_Pickled())]}),
    "long_line.jsonl": lambda: b'{"path": "a.jpg", "caption": "' + b"x" * (10 << 20) + b'"}\n',
    "nuls.jsonl": lambda: b'{"path": "a\\u0000b.jpg", "caption": "\\u0000"}\n' + bytes(100) + b"\n",
    "deep.jsonl": lambda: b'{"path": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "number.jsonl": lambda: b'{"path": "a.jpg", "n": ' + b"9" * 10_000 + b"}\n",
    "infinite.jsonl": lambda: b'{"path": "a.jpg", "n": 1e999, "m": NaN, "k": -Infinity}\n',
    "surrogates.jsonl": lambda: b'{"path": "\\ud800.jpg", "\\udfff": "\\ud800"}\n',
    "mixed.jsonl": lambda: '{"path": "ä.jpg"}\n'.encode() + '{"path": "ä.jpg"}\n'.encode("latin-1"),
    "repeated.jsonl": lambda: b'{"path": "a.jpg", "path": "/etc/passwd", "caption": 1, "Caption": 2}\n',
    "web.jsonl": lambda: b'{"path": "file:///etc/passwd"}\n{"path": "/etc/passwd"}\n{"path": "../../../etc/passwd"}\n',
    "data.jsonl": lambda: b'{"path": "data:image/png;base64,////"}\n{"path": "data:,"}\n{"path": "data:;base64"}\n',
    "utf16.csv": lambda: "path,caption\na.jpg,owl\n".encode("utf-16"),
    "nuls.csv": lambda: b"path,caption\na\0.jpg,\0\n",
    "open_quote.csv": lambda: b'path,caption\na.jpg,"' + b"x,y\n" * 100_000,
    "long_line.csv": lambda: b"path,caption\na.jpg," + b"x" * (10 << 20) + b"\n",
    "columns.csv": lambda: b",".join([b"path"] * 2_000) + b"\n" + b",".join([b"a.jpg"] * 2_000) + b"\n",
    "returns.tsv": lambda: b"path\tcaption\ra.jpg\tx\rb.jpg\ty\r",
    "formulas.csv": lambda: b"path,caption\na.jpg,=cmd|' /C calc'!A0\n",
    "laughs.yaml": lambda: _laughs("name: mine\nversion: '1'\nprompts: {last}").encode(),
    "laughs_schema.yaml": lambda: _laughs("name: m\nversion: '1'\nprompts: [{{name: a, text: b, schema: {last}}}]").encode(),
    "laughs_recipe.yaml": lambda: _laughs("captions: {last}\nleast: {last}").encode(),
    "loop.yaml": lambda: b"name: m\nversion: '1'\nprompts: &p [{name: a, text: b, schema: *p}]\n",
    "code.yaml": lambda: b"!!python/object/apply:os.system ['touch executed']\n",
    "deep.yaml": lambda: b"name: " + b"[" * 20_000 + b"]" * 20_000,
    "nuls.yaml": lambda: b"name: \0\n",
    "date.yaml": lambda: b"name: m\nversion: 1\nprompts: [{name: a, text: b, schema: {d: 2020-01-01}}]\n",
    "header_bomb.safetensors": lambda: struct.pack("<Q", 2**63) + b"{}",
    "header_100_mb.safetensors": lambda: struct.pack("<Q", 99 << 20) + b"{",
    "offsets.safetensors": lambda: safetensors_bytes(
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**40]}}, bytes(8)
    ),
    "shape.safetensors": lambda: safetensors_bytes(
        {"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 8]}}, bytes(8)
    ),
    "overlap.safetensors": lambda: safetensors_bytes(
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}, bytes(8)
    ),
    "deep.safetensors": lambda: safetensors_bytes(b"[" * 100_000),
    "names.safetensors": lambda: save({"../../x": torch.zeros(1), "\u202e": torch.zeros(1), "": torch.zeros(1)}),
    "no_text.safetensors": lambda: safetensors_bytes(b"\xff\xfe{}"),
    "pickled.safetensors": lambda: pickle.dumps(_Pickled()),
    "pickled.npz": lambda: npz_bytes(
        mu=npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}", pickle.dumps(_Pickled())), sigma=b""
    ),
    "shape.npz": lambda: npz_bytes(mu=npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}"), sigma=b""),
    "header.npz": lambda: npz_bytes(mu=npy("__import__('os').system('touch executed')"), sigma=b""),
    "bomb.npz": lambda: npz_bytes(
        mu=npy("{'descr': '<f8', 'fortran_order': False, 'shape': (25000000,)}", bytes(200 << 20)), sigma=b""
    ),
    "no_zip.npz": lambda: pickle.dumps(_Pickled()),
    "pickled.pth": lambda: pickle.dumps(_Pickled()),
    "zipped_pickle.pth": lambda: _pth({"state_dict": _Pickled()}),
    "text.pth": lambda: b"not a checkpoint",
}
"""What does harm where a reader trusts it, by the name of the file; every one is made when it is asked for."""


def _repeated(value: bytes | str, count: int) -> pa.DictionaryArray:
    """A column that holds one value, and says it this many times."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))


def _deep(levels: int) -> pa.DataType:
    kind = pa.int64()
    for _ in range(levels):
        kind = pa.struct([("a", kind)])
    return kind
