"""Data dictionary: each view and column that SQL can ask for, with its type, unit, values and meaning.

The texts are those of sql/columns.py and of the views; the types are those that DuckDB gives the schemas. docs/reference shows
it for a run and a data set that carry no columns of their own; an exported database holds it for its own.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from dataset_builder.sql.columns import column_meaning
from dataset_builder.sql.database import open_files
from dataset_builder.sql.dataset_files import DatasetFiles
from dataset_builder.sql.losses import WithLosses
from dataset_builder.sql.macros import MACROS
from dataset_builder.sql.run_files import RunFiles
from foundry.storage.folder import Folder
from foundry.storage.run_record import RunRecord

if TYPE_CHECKING:
    from dataset_builder.sql.views import Stored

PAGE = "docs/reference/data_dictionary.md"
"""Path of the page in the repository."""
_INTRODUCTION = """# Data dictionary

This page explains every view and column of a captioning run or a data set. You find the same explanations in the prompt of
`t2i query` (`\\d VIEW`), and in a database written by `t2i export` (in its table `dictionary`, and as comments on its views and
columns). Types are DuckDB's. Columns of your sources keep their names and types, in `images` and in the JSON of `metadata`.

`make reference` writes this page from the schemas and the texts next to them.
"""
_HEAD = "| column | type | meaning |\n|---|---|---|"


def dictionary_table(stored: "Stored") -> pa.Table:
    """The columns of all views of a run or a data set: view, column, type and meaning, in the order of the views."""
    with open_files(stored) as database:
        rows = [
            {
                "view": view,
                "column": row["column_name"],
                "type": row["column_type"],
                "meaning": column_meaning(view, row["column_name"]),
            }
            for view in stored.views
            for row in database.fetch(f"DESCRIBE {view}").to_pylist()
        ]
    return pa.Table.from_pylist(rows)


def dictionary_page() -> str:
    """The page of documentation, in Markdown."""
    nowhere = Folder("memory://nothing")
    run = RunFiles(nowhere, RunRecord(), ())
    dataset = DatasetFiles(nowhere, {"settings": {}, "splits": {}, "files": [], "captions": [], "carried": {}})
    parts = [
        _INTRODUCTION,
        *_sections("A captioning run", WithLosses(run, Path("nowhere"))),
        *_sections("A data set", WithLosses(dataset, Path("nowhere"))),
        "## Macros\n",
        "| macro | answer |\n|---|---|\n" + "".join(f"| `{name}` | {_cell(what)} |\n" for name, what in MACROS.items()),
    ]
    return "\n".join(parts)


def _sections(title: str, stored: "Stored") -> list[str]:
    rows = dictionary_table(stored).to_pylist()
    sections = [f"## {title}\n"]
    for view, what in stored.views.items():
        lines = [
            f"| `{row['column']}` | {_type(row['type'])} | {_cell(row['meaning'])} |" for row in rows if row["view"] == view
        ]
        sections.append("\n".join([f"### `{view}`\n", f"{what[0].upper()}{what[1:]}.\n", _HEAD, *lines, ""]))
    return sections


def _type(name: str) -> str:
    """A type of DuckDB; of a list of structures not the members, which are columns of another view."""
    return "`STRUCT[]`" if name.startswith("STRUCT(") and name.endswith("[]") else f"`{_cell(name)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
