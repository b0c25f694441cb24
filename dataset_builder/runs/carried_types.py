"""Types of the columns that a run's sources carry, widened to the values that were read.

A plan knows JSON files next to images by their first few alone. Where others hold values of another type, or other fields, SQL
would show NULL; so this looks at all of them once the images are read, at the end of each command that reads them.
"""

from dataset_builder.runs.plan import Plan
from dataset_builder.sql.run_files import RunFiles
from dataset_builder.sql.views import literal, pointer, quoted
from foundry.storage.run_record import record_carried

_SAMPLED_KINDS = ("files", "tar")
"""Kinds of source whose columns are known by a sample; lists and Parquet are read whole, or have a schema."""


def record_types(files: RunFiles, plan: Plan) -> dict[str, str]:
    """Widens the types in run.json, and returns the columns that changed or are new with their types.

    `files` may lack all but the run's record and its commits. Raises UserError if a file of the run cannot be read.
    """
    if not is_sampled(plan):
        return {}
    wider = _wider_types(files)
    record_carried(files.folder, files.record, wider)
    return wider


def is_sampled(plan: Plan) -> bool:
    """Whether the columns of some source are known by a sample alone."""
    return any(source["kind"] in _SAMPLED_KINDS for source in plan.sources)


def _wider_types(files: RunFiles) -> dict[str, str]:
    from dataset_builder.sql.database import open_files

    typed = {name: source for name, source in files.carried.items() if source[1] != "VARCHAR"}
    tests = [
        f"coalesce(bool_or({_is_lost(name, *source)}), false) AS lost_{n}" for n, (name, source) in enumerate(typed.items())
    ]
    with open_files(files) as database:
        found = database.fetch("SELECT DISTINCT unnest(json_keys(metadata)) AS name FROM images WHERE metadata IS NOT NULL")
        lost = database.fetch(f"SELECT {', '.join(tests)} FROM images").to_pylist()[0] if tests else {}
    names = set(found["name"].to_pylist()) - files.record.carried.keys()
    return dict.fromkeys(sorted(names), "VARCHAR") | {
        source: "VARCHAR" for number, (source, _) in enumerate(typed.values()) if lost[f"lost_{number}"]
    }


def _is_lost(name: str, source_name: str, kind: str) -> str:
    """SQL that is true for an image whose value the type of its column does not hold. A BIGINT would round a fraction."""
    text = f"json_extract_string(metadata, {literal(pointer(source_name))})"
    is_fraction = f" OR NOT regexp_full_match({text}, '-?[0-9]+')" if kind == "BIGINT" else ""
    return f"{text} IS NOT NULL AND ({quoted(name)} IS NULL{is_fraction})"
