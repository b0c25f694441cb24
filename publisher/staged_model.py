"""A network or a LoRA as it is pushed: a folder that diffusers or peft opens, with its card, samples and training facts.

t2i.json    the record: what the weights are, and the facts of their training
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from foundry.errors import UserError
from foundry.storage.hub import Repository
from model.formats.checkpoint import (
    checkpoint_fingerprint,
    find_checkpoint,
    is_adapted,
    is_control,
    read_pipeline_config,
    read_transformer_config,
)
from model.formats.conversion import Origin, export_adapter, read, write
from model.formats.json_files import write_json
from publisher.licences import licence_to_keep
from publisher.model_card import Evaluated, Published, model_card
from publisher.pulled import RECORD
from trainer.evaluation.images import IDENTITY
from trainer.evaluation.summary import SUMMARY_MD
from trainer.monitoring.run_folder import CHECKPOINTS, CONFIG, read_metrics
from trainer.monitoring.tracking.rows import SAMPLES

FORMAT_VERSION = 1
_SETTINGS = ("stage", "recipe", "seed", "precision", "ladder", "optim", "ema")
_LOSSES = ("train", "validation")
_STARTS = ("started_at", "images_seen", "device", "num_workers", "versions")


def stage_model(
    path: str,
    staging: Path,
    *,
    repository: Repository,
    licence: str,
    copy_parts: bool,
    evaluations: tuple[str, ...],
    public: bool,
) -> str:
    """Writes what is pushed of a checkpoint into a new folder; returns the name of its record.

    The licence of the repository's card holds where none is given or recorded.
    Raises UserError where there is no checkpoint, an evaluation is of another one, or everybody would see weights without a
    licence.
    """
    root = find_checkpoint(path)
    if is_control(root):
        raise UserError(
            f"{path} is a control, and push knows networks and LoRA: write a folder with python -m model.convert "
            f"--source native --target controlnet {path} OUT, and upload that with hf upload {repository.name} OUT"
        )
    found = checkpoint_fingerprint(root)
    evaluated = [_evaluation(Path(folder), found, path) for folder in evaluations]
    recorded = read_pipeline_config(root).licence
    terms = licence or licence_to_keep(repository, [recorded], path=path) or recorded
    if public and not terms:
        raise UserError(f"{path} has no licence: name one before everybody sees it", setting="licence")
    facts = _facts(root, found, terms)
    scheduler, adapter = None, None
    if is_adapted(root):
        adapter, scheduler = export_adapter(str(root), staging)
        base = {
            "name": _public_name(adapter.base),
            "fingerprint": adapter.base_fingerprint,
            "trigger_word": adapter.trigger_word,
        }
        facts |= {"kind": "lora", "base": base | {"rank": adapter.rank}}
    else:
        conversion = read(Origin(checkpoint=str(root), source="native", licence=terms))
        write(conversion, staging, target="diffusers", copy_parts=copy_parts)
    grid = _copy_grid(root, staging)
    published = Published(
        name=repository.name, facts=facts, grid=grid, evaluated=evaluated, scheduler=scheduler, has_parts=copy_parts
    )
    (staging / "README.md").write_text(model_card(published), encoding="utf-8")
    write_json(staging / RECORD, facts)
    return RECORD


def _facts(root: Path, fingerprint: str, licence: str) -> dict[str, Any]:
    """What the weights are; no paths of this machine."""
    pipeline, network = read_pipeline_config(root), read_transformer_config(root)
    parts = {"text_encoder": pipeline.text_encoder, "vae": pipeline.vae}
    return {
        "format_version": FORMAT_VERSION,
        "kind": "model",
        "fingerprint": fingerprint,
        "licence": licence,
        "conditioning": network.conditioning,
        "objective": pipeline.objective,
        "resolution": pipeline.resolution,
        "network": {"width": network.width, "depth": network.depth, "num_heads": network.num_heads},
        "parts": {name: asdict(part) | {"name": _public_name(part.name)} for name, part in parts.items() if part.name},
        "few_steps": None if pipeline.few_steps is None else asdict(pipeline.few_steps),
        "training": _training_facts(root),
    }


def _training_facts(root: Path) -> dict[str, Any] | None:
    """The facts of the training that wrote the checkpoint; None for one that no training's folder holds."""
    run = root.parent.parent
    if root.parent.name != CHECKPOINTS or not (run / CONFIG).is_file():
        return None
    images_seen = int(root.name)
    settings = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    rows = [row for row in read_metrics(run) if row["images_seen"] <= images_seen]
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "images_seen": images_seen,
        "settings": {name: settings[name] for name in _SETTINGS if name in settings},
        "starts": [{name: start.get(name) for name in _STARTS} for start in starts if start["images_seen"] <= images_seen],
        "last": {
            row["kind"]: {"images_seen": row["images_seen"], "loss": row["loss"]} for row in rows if row["kind"] in _LOSSES
        },
    }


def _public_name(name: str) -> str:
    """A hub id as it is; of a folder, its last name."""
    return name.rstrip("/").rsplit("/", 1)[-1] if Path(name).is_absolute() or Path(name).exists() else name


def _copy_grid(root: Path, staging: Path) -> str | None:
    """Copies the newest grid of samples up to the checkpoint; its name in the folder."""
    if root.parent.name != CHECKPOINTS:
        return None
    grids = sorted(path for path in (root.parent.parent / SAMPLES).glob("*.png") if path.stem.isdigit())
    before = [path for path in grids if int(path.stem) <= int(root.name)]
    if not before:
        return None
    (staging / SAMPLES).mkdir()
    shutil.copyfile(before[-1], staging / SAMPLES / before[-1].name)
    return f"{SAMPLES}/{before[-1].name}"


def _evaluation(folder: Path, fingerprint: str, path: str) -> Evaluated:
    """The figures of an evaluation. Raises UserError for one that is not finished, or of other weights."""
    if not (folder / SUMMARY_MD).is_file() or not (folder / IDENTITY).is_file():
        raise UserError(
            f"{folder}: expected a finished evaluation with {SUMMARY_MD}, found none: give the out of trainer.evaluate",
            setting="evaluation",
        )
    identity = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    if identity.get("checkpoint") != fingerprint:
        raise UserError(f"{folder} evaluates other weights than {path}: evaluate this checkpoint", setting="evaluation")
    return Evaluated(benchmark=identity["benchmark"], summary=(folder / SUMMARY_MD).read_text(encoding="utf-8").strip())
