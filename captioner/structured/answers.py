"""Answers that follow a JSON schema: the schema is checked before a run begins, and each answer when it comes.

A schema travels as JSON text, since the order of its keys counts: models write them in that order, and a caption keeps it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from foundry.errors import one_line

STRUCTURED_VERSION = 2
"""Changes whenever a question about a schema, the reading of its answers or their rendering does: part of what a run is."""
INVALID_JSON = "invalid_json"
"""The status of an answer that is not JSON that follows the schema."""

_FENCED = re.compile(r"```(?:json)?\s*(\{.*\})\s*```", re.DOTALL | re.IGNORECASE)
_LONGEST_FAULT = 200


@dataclass(frozen=True, kw_only=True)
class StructuredAnswer:
    """An answer that was read: its value and that value as compact JSON, or what is wrong with it."""

    value: Any = None
    """The object, with the keys that the schema knows in the schema's order."""
    caption: str = ""
    """The value as JSON without white space; empty if there is a fault."""
    fault: str = ""
    """Fault, as part of a sentence; empty if the answer follows the schema."""


def schema_problem(schema: str) -> str:
    """Fault of a schema for captions, in one line; "" if it works."""
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    try:
        found = json.loads(schema)
    except ValueError as error:
        return f"the schema is not valid JSON ({error})"
    if not isinstance(found, dict) or found.get("type") != "object":
        return 'the schema must be a JSON schema of an object: it needs "type": "object"'
    kind = validator_for(found)
    try:
        kind.check_schema(found, format_checker=kind.FORMAT_CHECKER)
    except SchemaError as error:
        hint = "; patterns are regular expressions of Python" if error.validator == "format" else ""
        return f"the schema is not a JSON schema: {error.json_path}: {one_line(error.message, limit=_LONGEST_FAULT)}{hint}"
    lost = [reference for reference in _references(found) if _at(found, reference) is None]
    if lost:
        return f"the schema refers to {lost[0]}, which is not in it: only references inside of the schema (#/…) work"
    return ""


def question(text: str, schema: str) -> str:
    """A prompt with the schema that its answer is to follow."""
    return f"{text}\nAnswer with one JSON object that follows this JSON schema, and with nothing else: {schema}"


def question_again(asked: str, fault: str) -> str:
    """The question after an answer with this fault: other words, so that a greedy answer can be another one."""
    return f"{asked}\nAn earlier answer could not be used: {fault}. Answer again, with the JSON object alone."


def read_answer(text: str, schema: str) -> StructuredAnswer:
    """The answer in a model's text, which may be in a code fence. Never raises."""
    fenced = _FENCED.search(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse, object_pairs_hook=_object)
        if fault := _fault(value, schema):
            return StructuredAnswer(fault=fault)
        root = json.loads(schema)
        value = _ordered(value, root, root)
        caption = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        caption.encode()  # a lone surrogate, written as \ud800, is no text
    except RecursionError:
        return StructuredAnswer(fault="it is nested too deeply")
    except UnicodeEncodeError:
        return StructuredAnswer(fault="it has a lone surrogate, which is not valid Unicode")
    except ValueError as error:
        return StructuredAnswer(fault=f"it is not JSON ({one_line(error, limit=_LONGEST_FAULT)})")
    return StructuredAnswer(value=value, caption=caption)


def _fault(value: Any, schema: str) -> str:
    from jsonschema.exceptions import best_match

    error = best_match(_validator(schema).iter_errors(value))
    return "" if error is None else f"{error.json_path}: {one_line(error.message, limit=_LONGEST_FAULT)}"


@lru_cache(maxsize=16)
def _validator(schema: str) -> Any:
    """The validator of a schema, made once per process. It fetches nothing."""
    from jsonschema.validators import validator_for
    from referencing import Registry

    found = json.loads(schema)
    return validator_for(found)(found, registry=Registry())


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not valid in JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)} is there twice")
    return found


def _references(schema: Any) -> Iterator[str]:
    """The values of all `$ref` in a schema."""
    if isinstance(schema, dict):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference
        for member in schema.values():
            yield from _references(member)
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)


def _at(root: Mapping[str, Any], reference: str) -> Any:
    """The part of a schema that a reference such as #/$defs/element means; None if there is none."""
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        return None
    found: Any = root
    for name in reference.removeprefix("#/").split("/"):
        found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _ordered(value: Any, schema: Any, root: Mapping[str, Any]) -> Any:
    """A value with its keys in the order of the schema's `properties`; other keys follow in their order."""
    if isinstance(schema, dict) and "$ref" in schema:
        schema = _at(root, schema["$ref"])
    of = schema if isinstance(schema, dict) else {}
    if isinstance(value, dict):
        known = of.get("properties", {})
        names = [*(name for name in known if name in value), *(name for name in value if name not in known)]
        return {name: _ordered(value[name], known.get(name), root) for name in names}
    if isinstance(value, list):
        return [_ordered(item, of.get("items"), root) for item in value]
    return value
