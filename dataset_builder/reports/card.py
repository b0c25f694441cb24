"""Card of a data set, README.md: its contents, its exclusions and their reasons, its concept density and its licences."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from dataset_builder.sql.dataset_files import DATASET_RECORD
from foundry.wording import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from dataset_builder.sql.dataset_files import DatasetFiles

_BAR_WIDTH = 40
_HUB_LICENCE = re.compile(
    r"apache-2\.0|mit|unlicense|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-4\.0|cc-by(-sa)?-3\.0|odc-by|odbl|pddl|cdla-(permissive|sharing)-1\.0"
)
"""Identifiers of licences for data on the Hugging Face hub; any other one is named in full."""

_RULE = "---\n"
_READING_TITLE = "## How to read it\n\n"
_TERMS_TITLE = "## Sources and terms\n\n"
_SLUG_CHARS = 60
_NOT_STATED = "not stated for all images"

_READING = """
A row of `samples` is an image with its captions. The images are {images}.

```python
datasets.load_dataset({loading})
pandas.read_parquet("{path}/samples/{split}")
duckdb.sql("SELECT key, captions[1].caption FROM '{path}/samples/*/*.parquet'")
```

`{query} {path}` has views and macros for more: `FROM density()`, `FROM funnel`, `FROM dropped`.
"""

_REFERENCES = "referred to (`uri`, and in a container `member`, `byte_offset`, `byte_length` or `row`), not copied"
_EMBEDDED = "in the column `image`"


def dataset_card(dataset: "DatasetFiles", funnel: "pa.Table", histograms: dict[str, dict[int, int]]) -> str:
    """The whole page, Markdown with the front matter that the Hugging Face hub reads. `dataset` need not be published yet."""
    record = dataset.record
    sections = {
        "Splits": _block([f"{name:20} {number:>12,}" for name, number in dataset.splits.items()]),
        "How to read it": _reading(dataset),
        "What was left out": _block(funnel_lines(funnel)),
        "Concept density": _block([_density(dataset)]),
        "Captions": "\n\n".join(_block([name, *_bars(counts)]) for name, counts in histograms.items()),
        "Sources and terms": "\n".join(_run_line(run) for run in record["runs"]),
        "How it was made": f"`{DATASET_RECORD}` has the whole record. The recipe:\n\n{_block([_recipe(record)], 'yaml')}",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    made = f"{sum(dataset.splits.values()):,} images with captions, made on {record['created_at'][:10]} by T2I Foundry."
    if edited := record.get("edited_captions", 0):
        made += f" People rewrote {counted(edited, 'caption')} of them; all others are the models'."
    return f"{_front_matter(dataset)}\n# {in_markdown(record['name'])}\n\n{made}\n\n{body}\n"


def published_card(text: str, dataset: "DatasetFiles", *, repository: str, licence: str) -> str:
    """The card of a data set as it is in a repository of the hub: its title and code have the repository's name.

    `licence`: that of the whole data set, which replaces the recorded ones in the front matter; "" leaves them.
    """
    _, front, body = text.split(_RULE, 2)
    title = f"# {in_markdown(dataset.record['name'])}\n"
    body = body.replace(title, f"# {repository.rpartition('/')[2]}\n", 1)
    before, found, after = body.partition(_READING_TITLE)
    if found:
        _, border, rest = after.partition("\n\n## ")
        body = f"{before}{found}{_reading(dataset, repository=repository)}{border}{rest}"
    head = yaml.safe_load(front)
    if licence:
        head = {name: value for name, value in head.items() if not name.startswith("license")} | licence_fields([licence])
        body = body.replace(_TERMS_TITLE, f"{_TERMS_TITLE}Licence of this data set: {in_markdown(licence)}.\n\n", 1)
    return f"{_RULE}{yaml.safe_dump(head, sort_keys=False)}{_RULE}{body}"


def in_markdown(text: object) -> str:
    """A text of somebody else in one line of Markdown, also in a cell of a table, where it is shown as it is."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", "\\|")


def _reading(dataset: "DatasetFiles", *, repository: str | None = None) -> str:
    """The section of code, for the data set's folder or for a repository of the hub."""
    split = next(iter(sorted(dataset.splits, key=dataset.splits.__getitem__, reverse=True)))
    name = dataset.record["name"]
    return _READING.format(
        path=name if repository is None else f"hf://datasets/{repository}",
        loading=f'"parquet", data_dir="{name}/samples/{split}"' if repository is None else f'"{repository}", split="{split}"',
        query="python -m dataset_builder.query" if repository is None else "t2i query",
        split=split,
        images=_EMBEDDED if dataset.record["recipe"]["embed"] else _REFERENCES,
    ).strip()


def funnel_lines(funnel: "pa.Table") -> list[str]:
    """The funnel as text, without the steps that dropped nothing."""
    lines = [f"{'left':>12} {'dropped':>12}  step: reason"]
    for row in funnel.to_pylist():
        if row["dropped"] or row["step"] == "planned":
            reason = f"{row['step']}: {row['reason']}" if row["reason"] else row["step"]
            lines.append(f"{row['kept']:>12,} {row['dropped']:>12,}  {reason}")
    return lines


def _front_matter(dataset: "DatasetFiles") -> str:
    files = [{"split": name, "path": f"samples/{name}/*.parquet"} for name, number in dataset.splits.items() if number]
    head = {
        "configs": [{"config_name": "default", "data_files": files}],
        "task_categories": ["text-to-image"],
        **licence_fields([run["licence"] for run in dataset.record["runs"]]),
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n"


def licence_fields(licences: Sequence[str]) -> dict[str, Any]:
    """The hub's front matter for these licences, "" for one that is not known: its own identifiers, else `other`.

    `other` has a short name for the hub's page, and in `license_details` the texts, if all of them are stated.
    """
    given = sorted({licence for licence in licences if licence})
    identifiers = sorted({licence.lower().replace(" ", "-") for licence in given})
    if given and all(licences) and all(map(_HUB_LICENCE.fullmatch, identifiers)):
        return {"license": identifiers[0] if len(identifiers) == 1 else identifiers}
    links = [found[0] for licence in given if (found := re.search(r"https?://[^\s,;)]*[^\s,;).]", licence))]
    name = "; ".join([*given, *([] if all(licences) else [_NOT_STATED])])
    details = {"license_details": " ".join(name.split())} if all(licences) else {}
    return {"license": "other", "license_name": _slug(name), **details, **({"license_link": links[0]} if links else {})}


def named_licence(front_matter: Mapping[str, Any]) -> str:
    """The licence that a card's front matter names for all that it is about; "" for none."""
    licence = front_matter.get("license") or ""
    if isinstance(licence, str) and licence != "other":
        return licence
    if isinstance(licence, list):
        return "; ".join(map(str, licence))
    name = str(front_matter.get("license_name") or "")
    return str(front_matter.get("license_details") or ("" if name.endswith((_NOT_STATED, _slug(_NOT_STATED))) else name))


def _slug(text: str) -> str:
    """A short name in the hub's form: lower-case words with hyphens."""
    words = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    if len(words) <= _SLUG_CHARS:
        return words or "other"
    tail = f"-{_slug(_NOT_STATED)}" if text.endswith(_NOT_STATED) else ""
    return words[: _SLUG_CHARS - len(tail)].rpartition("-")[0] + tail


def _density(dataset: "DatasetFiles") -> str:
    from dataset_builder.reports.density_rows import choose_sample_size, counted_captions, density_row
    from dataset_builder.reports.density_table import density_table
    from dataset_builder.sql.database import open_files

    name = dataset.record["name"]
    with open_files(dataset) as database:
        texts = counted_captions(database, source=name)
    sample_size = choose_sample_size(texts, wanted=None)
    return density_table([density_row(text, sample_size=sample_size) for text in texts], sample_size=sample_size)


def _bars(counts: dict[int, int]) -> list[str]:
    most = max(counts.values(), default=1)
    return [f"{least:>6} {'█' * round(_BAR_WIDTH * number / most):{_BAR_WIDTH}} {number:,}" for least, number in counts.items()]


def _run_line(run: dict[str, Any]) -> str:
    model = (run["model"] or {}).get("name", "unknown")
    prompts = "; ".join(f"{prompt['name']}: “{prompt['text']}”" for prompt in (run["prompts"] or {}).get("prompts", []))
    licence = run["licence"] or "not stated; ask whoever gave you the images before you pass this on"
    called = f"**{in_markdown(run['name'])}** (run {in_markdown(run['run_id'])})"
    made = f"- {called}: captions by {in_markdown(model)}; {in_markdown(prompts)}."
    return f"{made} Licence and terms of the images: {in_markdown(licence)}."


def _recipe(record: dict[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(record["recipe"])), sort_keys=False, allow_unicode=True).strip()


def _block(lines: list[str], language: str = "") -> str:
    longest = max(map(len, re.findall(r"`+", "\n".join(lines))), default=0)
    fence = "`" * max(3, longest + 1)  # so that no text of somebody else ends the block
    return "\n".join([f"{fence}{language}", *lines, fence])
