"""A pulled folder: what it is, whether it is complete, and what to do with it."""

import shlex
from pathlib import Path

from dataset_builder.sql.dataset_files import DATASET_RECORD, find_dataset
from foundry.errors import UserError

RECORD = "t2i.json"
"""Record of a model, which is pushed last: see model.py."""


def describe(out: str, repository: str) -> str:
    """A line on what is there. Raises UserError for a data set or a model of ours whose push is not finished."""
    folder, typed = Path(out), shlex.quote(out)
    if dataset := find_dataset(out):
        if missing := [file["path"] for file in dataset.record["files"] if not (folder / file["path"]).is_file()]:
            raise UserError(f"{repository} lacks {missing[0]} and {len(missing) - 1} others: push the data set again")
        splits = ", ".join(f"{name} {number:,}" for name, number in dataset.splits.items())
        return f'{out}: a data set ({splits}); look around with python -m dataset_builder.query {typed} "FROM samples LIMIT 5"'
    if not (folder / RECORD).is_file() and (_is_empty(folder) or (folder / "samples").is_dir()):
        raise UserError(f"{repository} has no {DATASET_RECORD} and no {RECORD}: its push is not finished; push it again")
    if (folder / "model_index.json").is_file():
        convert = f"python -m model.convert --source diffusers --target native {typed} CHECKPOINT"
        return f"{out}: a pipeline, which diffusers opens as it is; for training and generation here: {convert}"
    if (folder / "adapter_config.json").is_file():
        return f"{out}: a LoRA; draw with it: python -m model.generate --checkpoint BASE --lora {typed}"
    return f"{out}: all files of {repository}; it is neither a data set nor a model of T2I Foundry"


def _is_empty(folder: Path) -> bool:
    return all(path.name.startswith(".") for path in folder.iterdir())
