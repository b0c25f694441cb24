"""Pages of options, one per command: from its dataclasses and the strings under their fields, as `--help` is."""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from foundry.command_line import OPTION, Options, field_texts, options_of
from foundry.commands import COMMANDS, JOBS, STARTED_BY_T2I, Command, as_typed
from foundry.extras import DISTRIBUTION

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FOLDER = "docs/reference/commands"
_HEAD = "| option | type | default | what it does |\n|---|---|---|---|"
_WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", dict: "mapping", Any: "any value"}
_INDEX = """# Commands

`t2i NAME` and `python -m MODULE` run the same command.
[Which command for which job](../../start/commands.md) helps you to choose one.

Options have names and may come in any order: `--limit 100` or `--limit=100`. `--flag` alone means `--flag true`. A list takes
several values: `--images a b`. Options of a section have its name and a dot in front: `--ray.num_replicas 2`. You can also
write options into a YAML file, where sections are nested:

```yaml
limit: 100
ray: {num_replicas: 2}
```

`--config FILE` reads such a file, and you may repeat it. Typed options override files, later files override earlier ones, and
files override defaults. `--print_config` prints the resulting settings without starting anything; `--help` explains the
options.
Every command also accepts `--log_format auto|plain|json`, which selects
[how it reports progress](../../deploying.md#progress-and-logs).
For an unknown name, the error suggests the nearest one. [Exit codes](../exit_codes.md) are the same for all commands.
"""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """An option: its dotted name, type, default and text. A default of a preset is by the value that chooses it."""

    name: str
    hint: Any
    default: Any
    presets: Mapping[str, Any]
    text: str


def option_pages() -> dict[str, str]:
    """The pages by their path in the repository: one of each command, and one that lists them."""
    token = STARTED_BY_T2I.set(True)  # commands are named as t2i names them
    try:
        pages = {f"{FOLDER}/{name}.md": _page(name, command, options_of(command.module)) for name, command in COMMANDS.items()}
    finally:
        STARTED_BY_T2I.reset(token)
    return {f"{FOLDER}/index.md": _index(), **pages}


def _index() -> str:
    parts = [_INDEX]
    for job, commands in JOBS.items():
        rows = [
            f"| [`t2i {name}`]({name}.md) | `{one.module}` | {one.purpose} | {_extra(one)} |" for name, one in commands.items()
        ]
        parts.append("\n".join([f"## {job}\n", "| command | module | what it does | extra |\n|---|---|---|---|", *rows, ""]))
    return "\n".join([*parts, _made()])


def _page(name: str, command: Command, options: Options) -> str:
    needs = f'It needs `pip install "{DISTRIBUTION}[{command.extra}]"`.' if command.extra else "The core package is enough."
    head = [
        f"# t2i {name}\n",
        f"{command.purpose[0].upper()}{command.purpose[1:]}. `t2i {name}` is `python -m {command.module}`. {needs}\n",
        f"```\n{as_typed(options.example)}\n```\n",
    ]
    if options.positional:
        named = ", ".join(f"`--{one}`" for one in options.positional)
        head.append(f"You may also give these by position, in this order: {named}.\n")
    chosen = [(field, value, make) for field, makers in options.presets.items() for value, make in makers.items()]
    presets = {f"{field} {value}": asdict(make()) for field, value, make in chosen}
    if presets:
        head.append("Some defaults depend on the option in brackets; `--print_config` prints the values of your command.\n")
    sections = list(_sections(options.config_class, "", presets, options.texts))
    return "\n".join([*head, *sections, _made()])


def _made() -> str:
    return "`make reference` writes this page from the code.\n"


def _extra(command: Command) -> str:
    return f"`{command.extra}`" if command.extra else ""


def _sections(
    config_class: type["DataclassInstance"], prefix: str, presets: Mapping[str, Any], texts: Mapping[str, str]
) -> Iterator[str]:
    """The table of a configuration's own options, then those of its sections, each under a heading."""
    hints = get_type_hints(config_class)
    inner = [field for field in fields(config_class) if _is_config(hints[field.name])]
    rows = [
        _Row(
            name=prefix + field.metadata.get(OPTION, field.name),
            hint=hints[field.name],
            default=_default(field),
            presets={chosen: values[field.name] for chosen, values in presets.items()},
            text=texts[field.name],
        )
        for field in fields(config_class)
        if field not in inner
    ]
    title = f"## Section `{prefix.removesuffix('.')}`" if prefix else "## Options"
    about = f"\n{_prose(inspect.getdoc(config_class) or '')}\n" if prefix else ""
    if rows:
        yield "\n".join([title, about, _HEAD, *map(_line, rows), ""])
    for item in dict.fromkeys(part for row in rows for part in _items(row.hint)):
        yield _item_table(item)
    for field in inner:
        yield from _sections(
            hints[field.name],
            f"{prefix}{field.name}.",
            {chosen: values[field.name] for chosen, values in presets.items()},
            field_texts(hints[field.name]),
        )


def _item_table(item: type["DataclassInstance"]) -> str:
    """What a list of these values holds."""
    hints, texts = get_type_hints(item), field_texts(item)
    rows = [
        _Row(name=field.name, hint=hints[field.name], default=_default(field), presets={}, text=texts[field.name])
        for field in fields(item)
    ]
    about = f"\nA {item.__name__} is a mapping with these keys. {_prose(inspect.getdoc(item) or '')}\n"
    lines = [_line(row).replace("`--", "`", 1) for row in rows]
    return "\n".join([f"### {item.__name__}", about, _HEAD.replace("option", "key"), *lines, ""])


def _line(row: _Row) -> str:
    default = "**required**" if row.default is MISSING else _value(row.default)
    others = [f"{_value(value)} ({chosen})" for chosen, value in row.presets.items() if not _same(value, row.default)]
    shown = ", ".join([default, *others]) if default else ", ".join(others)
    return f"| `--{row.name}` | {_type(row.hint)} | {shown} | {_cell(row.text)} |"


def _same(value: Any, default: Any) -> bool:
    """Whether a preset leaves the default; asdict made a preset's dataclasses mappings."""
    return default is MISSING or _value(value) == _value(default)


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _is_config(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _items(hint: Any) -> list[type["DataclassInstance"]]:
    """The dataclasses that the values of a list or mapping are of."""
    return [hint] if _is_config(hint) else [part for inner in get_args(hint) for part in _items(inner)]


def _type(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_type(part) for part in inner if part is not NoneType)
    if origin is Literal:
        return _any_of([f"`{value}`" for value in inner])
    if origin in (list, tuple) and (origin is list or inner[1:] == (...,)):
        return f"list of {_type(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} values: {', '.join(map(_type, inner))}"
    if origin is not None:
        return f"mapping of {_type(inner[0])} to {_type(inner[1])}" if inner[1] is not Any else "mapping"
    return _WORDS.get(hint) or f"[{hint.__name__}](#{hint.__name__.lower()})"


def _any_of(values: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(values[:-1]), values[-1]]))


def _value(value: Any) -> str:
    """A default as a YAML file has it; nothing where the option is left out, or an empty list, mapping or text."""
    if value is None or (not value and isinstance(value, str | list | tuple | dict)):
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)}`"


def _plain(value: Any) -> Any:
    """A default without dataclasses, and without the keys that are left out."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _prose(text: str) -> str:
    """A docstring as a paragraph; what would be a tag is shown."""
    return as_typed(" ".join(text.split())).replace("<", "&lt;")


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|")
