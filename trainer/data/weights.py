"""Weights of samples: Parquet with columns `key` and `weight`; how often a sample is seen in a pass. See order.py."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foundry.errors import UserError
from foundry.storage.locations import normalise, open_binary, read_errors
from trainer.data.skip_list import check_keys
from trainer.features.store import WEIGHTS

MOST = 1000
_EXPECTED = "expected Parquet with a column `key` of text, each once, and a column `weight` of numbers"


def read_weights(location: str | None) -> pa.Table | None:
    """A table of WEIGHTS from a path or a URL; none if there is no file. Raises UserError for anything else."""
    if location is None:
        return None
    with read_errors(location, _EXPECTED), open_binary(normalise(location), sequential=True) as file:
        return check_weights(pq.read_table(pa.BufferReader(file.read())), where=location)


def check_weights(table: pa.Table, *, where: str, expected: str = _EXPECTED) -> pa.Table:
    """The columns of WEIGHTS. Raises UserError if one is missing, a key is there twice, or a weight is out of bounds."""
    keys = check_keys(table, where=where, expected=expected)
    if len(pc.unique(keys)) < len(keys):
        counted = keys.value_counts()
        twice = counted.field("values")[int(pc.index(pc.greater(counted.field("counts"), 1), value=True).as_py())]
        raise UserError(f"{where} has the key {twice} more than once: {expected}")
    if "weight" not in table.schema.names:
        raise UserError(f"{where} has no column weight, found {', '.join(table.schema.names)}: {expected}")
    column = table["weight"]
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)) or column.null_count:
        raise UserError(f"{where}: the column weight is {kind} with {column.null_count} empty rows: {expected}")
    weights = pc.cast(column, pa.float64())
    is_wrong = pc.invert(pc.and_(pc.greater_equal(weights, 0.0), pc.less_equal(weights, float(MOST))))
    if wrong := keys.filter(is_wrong).slice(0, 1).to_pylist():
        found = weights.filter(is_wrong)[0]
        raise UserError(f"{where}: expected weights from 0 to {MOST}, found {found} for {wrong[0]}")
    return pa.table([keys, weights], schema=WEIGHTS)
