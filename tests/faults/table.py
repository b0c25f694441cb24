"""Table of docs/reliability.md, from the counts that a run of the fault tests wrote.

python -m tests.faults.table build/faults.json
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple


class Fault(NamedTuple):
    """A row: the fault, what is promised, what was tried, and the file of its tests."""

    fault: str
    promised: str
    tried: str
    file: str


_IMAGES, _FILES = "test_hostile_images", "test_hostile_files"
_TEXTS, _SQL, _SERVERS, _SECRETS = "test_hostile_texts", "test_hostile_sql", "test_hostile_requests", "test_secrets"
FAULTS = {
    "images": Fault(
        "damaged images",
        "decoded or rejected with a reason; no crash; memory and time bounded",
        "images by a mutation fuzzer over ten formats",
        _IMAGES,
    ),
    "crafted images": Fault(
        "bombs, polyglots, lies",
        "rejected before they are decoded, or decoded within the limits",
        "images made for the purpose",
        _IMAGES,
    ),
    "captioned": Fault(
        "a captioning run over such images",
        "planned = captioned + rejected; every image in exactly one of the two",
        "images in the run",
        _IMAGES,
    ),
    "files": Fault(
        "damaged containers, lists, settings, weights",
        "opened or refused in one line; each image read or rejected; never executed",
        "tar, Parquet, jsonl, csv, tsv, YAML, safetensors, npz and pth by the same fuzzer",
        _FILES,
    ),
    "crafted files": Fault(
        "links, bombs, lies and pickles in such files",
        "opened or refused in one line; memory and time bounded; never executed",
        "files made for the purpose",
        _FILES,
    ),
    "parsed": Fault(
        "random texts for sidecars, lists, captions and prompts",
        "parsed or refused, and nothing else",
        "texts that hypothesis makes up",
        _FILES,
    ),
    "SQL": Fault(
        "SQL that reads or writes elsewhere",
        "refused in one line; no file read or written, no connection made",
        "statements through six doors: query, where, splits, training, the studio's SQL and recipe",
        _SQL,
    ),
    "functions": Fault(
        "each function of DuckDB, on the path of a secret", "no secret is told", "calls, of all functions and overloads", _SQL
    ),
    "conditions": Fault(
        "conditions that close a parenthesis or hold two statements", "refused before they are used", "conditions", _SQL
    ),
    "explosions": Fault(
        "queries that explode",
        "end in one line within the limits of memory, disk and (studio) time",
        "queries",
        _SQL,
    ),
    "names": Fault("SQL in names of columns and prompts", "names stay names, in query, build and export", "names", _SQL),
    "texts": Fault(
        "HTML, scripts, formulas, control and bidirectional characters",
        "shown as text: in reports, cards, the studio, csv, logs and errors",
        "texts in paths, alt texts, classes, captions, names of prompts and columns, and metadata",
        _TEXTS,
    ),
    "requests": Fault(
        "malformed, oversized, foreign and unauthorised requests",
        "refused with a status and a message; the server answers the next request",
        "requests to the servers of captions and images",
        _SERVERS,
    ),
    "connections": Fault(
        "slow and idle clients", "others are answered meanwhile", "connections that send half a request", _SERVERS
    ),
    "secrets": Fault(
        "keys and tokens", "in no file, log, error, record or argument of a process", "places that were searched", _SECRETS
    ),
}
"""Faults by the name under which tests count them."""
_HEAD = "| fault | what is promised | what was tried | how often | command |\n|---|---|---|---:|---|"


def main(file: str) -> None:
    """Prints the run and the table. Raises KeyError for a count whose fault is in no row."""
    found = json.loads(Path(file).read_text(encoding="utf-8"))
    counts = {name: (FAULTS[name], count) for name, count in found["counts"].items()}
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found["outcomes"].items()))
    print(f"{found['date']}, commit {found['commit']}, {found['processor']}, seed {found['seed']}: {outcomes}\n")
    print(_HEAD)
    for name in [name for name in FAULTS if name in counts]:
        (fault, promised, tried, module), count = counts[name]
        command = f"`pytest tests/faults/{module}.py --all_faults`"
        print(f"| {fault} | {promised} | {tried} | {count:,} | {command} |")
    for skipped in found["skipped"]:
        print(f"\nskipped: {skipped}")


if __name__ == "__main__":
    main(*sys.argv[1:])
