"""Any list of prompts (`prompts`), with the CLIP score of each image and the FID of all: MJHQ, captions of COCO, one's own.

The figures can be compared with others of the same prompts, CLIP, reference, resolution and number of images, and with no
others: PixArt-α's FID is shown next to ours to say so (docs/evaluation.md).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from foundry.errors import UserError
from model.generation.prompt_files import read_prompts, read_table_rows
from trainer.evaluation.benchmark import ALL, Benchmark, Prompt, Published
from trainer.evaluation.config import EvaluateConfig, PromptsConfig
from trainer.evaluation.judges.clip import CLIP_SCORE, clip_score_judge
from trainer.evaluation.judges.fid import FID, fid_metrics

if TYPE_CHECKING:
    import pyarrow as pa

OWN = {
    "animals": ("a heron standing in shallow water at dawn", "two kittens asleep in a wicker basket"),
    "food": ("a bowl of noodle soup on a wooden table, seen from above", "a slice of lemon cake beside a cup of tea"),
    "people": ("an old man mending a fishing net in a harbour", "a girl in a yellow raincoat jumping over a puddle"),
    "places": ("a narrow street with washing hung between the houses", "a lighthouse on a cliff under heavy clouds"),
}
"""Our own prompts, for a first try."""
_PIXART = Published(
    category=ALL,
    metric=FID,
    value=7.32,
    source="PixArt-α (arXiv 2310.00426)",
    differences=(
        "it belongs to a special checkpoint, others measure 25 to 28 with the plain one",
        "its own captions, reference, resolution and number of images",
    ),
)


def open_benchmark(config: EvaluateConfig) -> Benchmark:
    """The benchmark. Raises UserError for prompts, a CLIP or a reference that is unavailable."""
    settings = config.prompts
    prompts = _own_prompts() if settings.file is None else _read(Path(settings.file).expanduser(), settings)
    first = {prompt.text: prompt for prompt in reversed(prompts)}
    chosen = tuple(first[text] for text in dict.fromkeys(prompt.text for prompt in prompts))[: settings.limit]
    return Benchmark(
        name="prompts",
        prompts=chosen,
        own_seeds=True,  # images of one noise are alike, and no sample that a Fréchet distance may be taken of
        judges={} if settings.clip is None else {"clip": clip_score_judge(settings.clip, config)},
        metric_of={prompt.category: CLIP_SCORE for prompt in chosen},
        set_metrics=fid_metrics(settings.fid, config),
        published=(_PIXART,),
    )


def _own_prompts() -> list[Prompt]:
    return [Prompt(text=text, category=category) for category, texts in OWN.items() for text in texts]


def _read(file: Path, settings: PromptsConfig) -> list[Prompt]:
    """The prompts of a file, in order. Raises UserError that names file and row."""
    if file.suffix == ".parquet" or (settings.category_column and file.suffix in (".csv", ".tsv", ".jsonl")):
        return _read_table(file, settings)
    if settings.category_column:
        raise UserError(
            f"{file} has no columns: leave out the one of categories, or give .csv, .tsv, .jsonl or .parquet",
            setting="prompts.category_column",
        )
    texts = read_prompts(file, column=settings.column, setting="prompts.column")
    return [Prompt(text=text, category=file.stem) for text in texts]


def _read_table(file: Path, settings: PromptsConfig) -> list[Prompt]:
    import pyarrow as pa

    columns = [settings.column, *([settings.category_column] if settings.category_column else [])]
    try:
        table = _table(file)
        if missing := [column for column in columns if column not in table.column_names]:
            raise UserError(f"{file} has no column {missing[0]!r}, it has {', '.join(table.column_names)}")
        texts, *categories = [table[column].cast(pa.string()).to_pylist() for column in columns]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"the prompts {file} cannot be read ({' '.join(str(error).split())[:200]})") from error
    rows = zip(texts, categories[0] if categories else [file.stem] * len(texts), strict=True)
    prompts = []
    for number, (text, category) in enumerate(rows, 1):
        if not (text or "").strip() or not category:
            raise UserError(f"{file}, row {number}: expected text in {' and '.join(columns)}, found none")
        prompts.append(Prompt(text=text.strip(), category=category))
    if not prompts:
        raise UserError(f"the prompts {file} are empty: expected at least one prompt")
    return prompts


def _table(file: Path) -> "pa.Table":
    import pyarrow as pa
    from pyarrow import json, parquet

    if file.suffix == ".parquet":
        return parquet.read_table(file)
    if file.suffix == ".jsonl":
        return json.read_json(file)
    return pa.Table.from_pylist(read_table_rows(file))
