"""SQL that runs and data sets share: their protocol, names and literals, carried columns, views of nouns, counts and scores.

The views read the schema `stored`, which has one relation for each kind of file as it is on disk.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from dataset_builder.concepts.tagger import META_NOUNS
from dataset_builder.json_text import BOXES, DESCRIPTIONS
from dataset_builder.schema import CAPTION_SCORES, CAPTIONS, EMBEDDINGS, SAMPLE_CAPTION, SAMPLES, SCORES
from dataset_builder.sql.columns import column_meaning
from dataset_builder.sql.macros import MACROS, SCALAR_MACROS
from foundry.errors import UserError
from foundry.images.index import IMAGES
from foundry.storage.folder import Folder

# As duckdb reads them: it has no half precision.
_EMBEDDINGS = pa.schema([EMBEDDINGS.field("key"), pa.field("embedding", pa.list_(pa.float32()), nullable=False)])
SCORED = {"scores": SCORES, "caption_scores": CAPTION_SCORES, "embeddings": _EMBEDDINGS}

LOCKS = (
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allowed_paths = getvariable('readable')::VARCHAR[]",
    "SET allowed_directories = getvariable('readable_folders')::VARCHAR[]",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
"""The statements after which a database reads only the files in its variables `readable` and `readable_folders`, no variables
of this process and no extensions from the network; then nothing can be changed."""

OWN_COLUMNS = (
    *("run", "unit", "value", "flag", "is_edited", *IMAGES.names, *CAPTIONS.names, *SCORES.names, *SAMPLES.names),
    *(field.name for field in SAMPLE_CAPTION),
)
"""Names that no column of a source has in SQL, so that it is called the same in a run, a data set and --where, and is never
ambiguous in a join."""
_UNNAMED = "unnamed"
"""SQL name of a column without a name, such as the index that pandas writes first into a csv."""
_CARRIED_TYPES = ("BIGINT", "DOUBLE", "BOOLEAN", "VARCHAR")


class Stored(Protocol):
    """Files that a database can be opened on: those of a run or a data set."""

    @property
    def folder(self) -> Folder:
        """The folder of the files."""

    @property
    def views(self) -> dict[str, str]:
        """The views, and what each is."""

    @property
    def schemas(self) -> dict[str, pa.Schema]:
        """The kinds of file, and the schema of each."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the captions were written and counted with."""

    @property
    def empty_views(self) -> dict[str, str]:
        """The views that have no rows before another command has run, and what to type."""

    def paths(self, kind: str) -> list[str]:
        """The files of a kind."""

    def tables(self) -> dict[str, pa.Table]:
        """The relations that do not come from files."""

    def statements(self) -> list[str]:
        """The statements that create the views."""


def literal(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """An identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def columns_sql(schema: pa.Schema) -> str:
    """The columns of a schema, as a SELECT lists them."""
    return ", ".join(map(quoted, schema.names))


def stored_urls(folder: Folder, paths: Iterable[str]) -> list[str]:
    """Files of a run or a data set as duckdb opens them; an absolute path, of a file elsewhere, stays as it is."""
    root = folder.location().rstrip("/")  # not worked out again for each of thousands
    return [path if path.startswith("/") else f"{root}/{path}" for path in paths]


def distinct_names(names: Iterable[str]) -> dict[str, str]:
    """Names that sources gave to columns → what SQL calls them: never empty, different from each other and from OWN_COLUMNS,
    also where case does not matter, as in SQL."""
    used = {name.lower() for name in OWN_COLUMNS}
    called = {}
    for given in names:
        name = given or _UNNAMED
        if name.lower() in used:
            name = f"source_{name}"
        while name.lower() in used:
            name += "_"
        used.add(name.lower())
        called[given] = name
    return called


def carried_columns(carried: dict[str, str], *, where: str) -> dict[str, tuple[str, str]]:
    """Names for columns of sources (name → SQL type): name in SQL → (name in the metadata, SQL type)."""
    for source_name, kind in carried.items():
        if kind not in _CARRIED_TYPES:
            raise UserError(f"{where} carries {source_name} as {kind}, not as {', '.join(_CARRIED_TYPES)}")
    called = distinct_names(carried)
    return {called[source_name]: (source_name, kind) for source_name, kind in carried.items()}


def carried_sql(carried: dict[str, tuple[str, str]]) -> list[str]:
    """The carried columns, taken out of the JSON in the column `metadata`."""
    return [
        f"TRY_CAST(json_extract_string(metadata, {literal(pointer(source_name))}) AS {kind}) AS {quoted(name)}"
        for name, (source_name, kind) in carried.items()
    ]


def scores_sql() -> list[str]:
    """The views on the newest scoring."""
    return [f"CREATE VIEW {name} AS SELECT {columns_sql(schema)} FROM stored.{name}" for name, schema in SCORED.items()]


def comment_sql(views: Mapping[str, str], columns: Mapping[str, Sequence[str]], *, tables: Collection[str]) -> Iterator[str]:
    """The statements that comment on views (name → what it is), which are tables where listed, their columns and MACROS."""
    for view, what in views.items():
        yield f"COMMENT ON {'TABLE' if view in tables else 'VIEW'} {view} IS {literal(what)}"
        for column in columns[view]:
            yield f"COMMENT ON COLUMN {view}.{quoted(column)} IS {literal(column_meaning(view, column))}"
    for macro, what in MACROS.items():
        kind = "MACRO" if macro in SCALAR_MACROS else "MACRO TABLE"
        yield f"COMMENT ON {kind} {macro.partition('(')[0]} IS {literal(f'{macro}: {what}')}"


def value_sql(structured: Collection[str], *, prompt: str = "prompt", caption: str = "caption") -> str:
    """The column `value`: the caption as JSON where its prompt is one of these, and null elsewhere."""
    if not structured:
        return "NULL::JSON AS value"
    named = ", ".join(map(literal, structured))
    return f"CASE WHEN {prompt} IN ({named}) THEN TRY_CAST({caption} AS JSON) END AS value"


def objects_sql() -> str:
    """The view `caption_objects` on the column `value` of the view `captions`: objects with a box, wherever they are in it."""
    y0, x0, y1, x1 = (_edge_sql(edge) for edge in range(4))
    has_box = " OR ".join(f"json_array_length(o.value, '$.{key}') = 4" for key in BOXES)
    description = ", ".join(f"o.value->>{literal(key)}" for key in DESCRIPTIONS)
    return (
        "CREATE VIEW caption_objects AS SELECT c.key, c.prompt, "
        "row_number() OVER (PARTITION BY c.key, c.prompt ORDER BY o.id) AS object, o.fullkey AS path, "
        f"o.value->>'type' AS type, coalesce({description}) AS description, o.value->>'text' AS text, "
        f"{y0} AS y0, {x0} AS x0, {y1} AS y1, {x1} AS x1, ({y0} + {y1}) / 2 AS center_y, ({x0} + {x1}) / 2 AS center_x, "
        "TRY_CAST(o.value->'color_palette' AS VARCHAR[]) AS colors, o.value "
        "FROM captions c, json_tree(c.value) o "
        f"WHERE o.type = 'OBJECT' AND ({has_box})"
    )


def _edge_sql(edge: int) -> str:
    """The top (0), left, bottom or right edge of an object's box, by whichever key it has one."""
    found = (f"TRY_CAST(o.value->>'$.{key}[{places[edge]}]' AS DOUBLE)" for key, places in BOXES.items())
    return f"coalesce({', '.join(found)})"


def nouns_sql() -> str:
    """The view `nouns` on the view `captions`."""
    return (
        f"CREATE VIEW nouns AS SELECT key, prompt, position, noun, noun IN ({_meta_nouns()}) AS is_meta, "
        "position <= num_t5_nouns AS read_by_t5 FROM (SELECT key, prompt, num_t5_nouns, unnest(nouns) AS noun, "
        "generate_subscripts(nouns, 1) AS position FROM captions)"
    )


def noun_counts_sql(only_prompt: str | None = None) -> str:
    """The view `noun_counts`, the sum of the counts in `stored`. Where they are of one prompt, known to the caller, a hundred
    million of them are added up in a sixth less time."""
    sums = ", ".join(f"sum({name})::BIGINT AS {name}" for name in ("count", "count_t5", "num_captions"))
    prompt, by = (f"{literal(only_prompt)} AS prompt", "noun") if only_prompt else ("prompt", "prompt, noun")
    summed = f"SELECT {prompt}, noun, {sums} FROM stored.noun_counts GROUP BY {by}"
    return f"CREATE VIEW noun_counts AS SELECT *, noun IN ({_meta_nouns()}) AS is_meta FROM ({summed})"


def pointer(name: str) -> str:
    """The JSON pointer to a member of the metadata."""
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _meta_nouns() -> str:
    return ", ".join(literal(noun) for noun in sorted(META_NOUNS))


def unknown_name(message: str, *, tables: list[str], columns: Callable[[], Mapping[str, Sequence[str]]]) -> str | None:
    """The line for a table or a column that an error of duckdb calls unknown, with the right name; None for other errors.

    `columns` are those of each table, which cannot be read where a file is lost.
    """
    table = re.search(r'(?:Table with name|Referenced table) "?(.+?)"? (?:does not exist|not found)', message)
    if table:
        return f"there is no table {table[1]}: {_nearest(table[1], tables)}"
    column = re.search(r'(?:Referenced column|column named) "(.+?)"(?: not found|\n|$)', message)
    if not column:
        return None
    views = columns()
    if holders := [view for view, names in views.items() if column[1].lower() in names]:
        return f"this reads no column {column[1]}: it is a column of {' and '.join(holders)}"
    used = [name for name in views if re.search(rf"\b{name}\b", message)] or list(views)
    return f"there is no column {column[1]}: {_nearest(column[1], sorted({name for view in used for name in views[view]}))}"


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
