"""Schema version of the Parquet files: each carries it in its metadata, and a reader refuses another one.

The tables are in foundry/images/index.py and dataset_builder/schema.py.
"""

import pyarrow as pa

SCHEMA_VERSION = 1
_VERSION_KEY = b"t2i_foundry.schema_version"


def versioned(schema: pa.Schema) -> pa.Schema:
    """The schema with SCHEMA_VERSION in its metadata, for writing."""
    return schema.with_metadata({_VERSION_KEY: str(SCHEMA_VERSION)})


def check_version(schema: pa.Schema, *, where: str) -> None:
    """Raises ValueError if a file was written under another schema version; files of foreign tools pass."""
    found = (schema.metadata or {}).get(_VERSION_KEY)
    if found is not None and int(found) != SCHEMA_VERSION:
        raise ValueError(f"{where} has schema version {int(found)}, this program reads {SCHEMA_VERSION}: remake it")
