"""YAML within bounds: what its aliases stand for is counted, since nine lines of them can stand for a billion values."""

from typing import Any

import yaml

MAX_VALUES = 100_000
"""Values of a text at most, those counted again that an alias repeats."""


def load_yaml(text: str) -> Any:
    """The value of a YAML text: mappings, lists and scalars only. Raises yaml.YAMLError, also for what exceeds bounds."""
    try:
        value = yaml.safe_load(text)
        num_values = _num_values(value, {})
    except RecursionError:
        raise yaml.YAMLError("its lists or mappings are nested too deeply") from None
    except (ValueError, TypeError) as error:  # dates such as 2020-99-99, keys that are lists
        raise yaml.YAMLError(str(error)) from None
    if num_values > MAX_VALUES:
        raise yaml.YAMLError(f"its aliases stand for more than {MAX_VALUES:,} values")
    return value


def _num_values(value: Any, known: dict[int, int]) -> int:
    """The values that a value consists of; those of one that holds itself are too many."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = MAX_VALUES
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_num_values(part, known) for part in parts)
    return known[id(value)]
