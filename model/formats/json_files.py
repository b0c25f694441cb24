"""JSON objects in files of checkpoints, read and written."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundry.errors import UserError


def read_part(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises UserError if it is none."""
    return read_json(path, missing=f"{path} is missing: the checkpoint is not complete")


def read_json(path: Path, *, missing: str) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError if it is none, with the text `missing` where there is no file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(missing) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected an object, found {type(values).__name__}")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object, indented."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def strict(dataclass_type: type[Any], values: Any, *, types: Mapping[str, type[Any]]) -> Any:
    """A dataclass from JSON values; ValueError for a key that is missing, unknown or of another type.

    `types`: those of fields that are no text; a value that is a dataclass was checked before.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"expected an object for {dataclass_type.__name__}, found {values!r}")
    known = {entry.name: entry for entry in dataclasses.fields(dataclass_type)}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1)
            raise ValueError(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        expected = types.get(key, str)
        if (
            not isinstance(value, expected)
            and not dataclasses.is_dataclass(value)
            and not (key == "revision" and value is None)
        ):
            raise ValueError(f"{key}: expected {expected.__name__}, found {value!r}")
    required = [key for key, entry in known.items() if entry.default is entry.default_factory is dataclasses.MISSING]
    if missing := [key for key in required if key not in values]:
        raise ValueError(f"missing: {', '.join(missing)}")
    return dataclass_type(**values)
