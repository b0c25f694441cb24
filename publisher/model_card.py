"""Card of a published network or LoRA, README.md: how to use it, its training, samples, evaluation and licence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dataset_builder.reports.card import in_markdown, licence_fields

_NETWORK = """
```python
from diffusers import {pipeline}
{imports}
pipe = {pipeline}.from_pretrained("{name}"{parts})
image = pipe({prompt}{few_steps}).images[0]
```
"""
_ADAPTER = """
```python
from diffusers import PixArtAlphaPipeline
from peft import PeftModel

pipe = PixArtAlphaPipeline.from_pretrained(BASE)  # {base}
pipe.transformer = PeftModel.from_pretrained(pipe.transformer, "{name}")
{scheduler}image = pipe({prompt}).images[0]
```
"""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation of the weights."""

    benchmark: str
    summary: str
    """Its figures as Markdown."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a card is about."""

    name: str
    """Repository."""
    facts: dict[str, Any]
    """The record, see model.py."""
    grid: str | None
    """File of samples."""
    evaluated: Sequence[Evaluated]
    scheduler: str | None
    """Scheduler that a LoRA of few steps needs."""
    has_parts: bool
    """Whether text encoder and VAE are in the folder."""


def model_card(published: Published) -> str:
    """The whole page, Markdown with the front matter that the hub reads."""
    facts = published.facts
    sections = {
        "How to use it": _usage(published),
        "Training": _training(facts),
        "Samples": "" if published.grid is None else f"![samples]({published.grid})\n\nThe newest samples of the training.",
        "Evaluation": "\n\n".join(f"### {in_markdown(one.benchmark)}\n\n{one.summary}" for one in published.evaluated),
        "Licence": in_markdown(facts["licence"]) or "Not stated.",
    }
    body = "\n\n".join(f"## {title}\n\n{text.strip()}" for title, text in sections.items() if text)
    what = (
        "A LoRA" if facts["kind"] == "lora" else "A text-to-image network" if facts["conditioning"] == "text" else "A network"
    )
    about = f"{what} of {facts['resolution']} px, trained with T2I Foundry. `t2i.json` has the facts for programs."
    return f"{_front_matter(facts)}\n# {published.name.partition('/')[2]}\n\n{about}\n\n{body}\n"


def _front_matter(facts: dict[str, Any]) -> str:
    is_lora = facts["kind"] == "lora"
    head = {
        **licence_fields([facts["licence"]]),
        "library_name": "peft" if is_lora else "diffusers",
        "pipeline_tag": "text-to-image" if facts["conditioning"] == "text" else "unconditional-image-generation",
        "tags": ["t2i-foundry", "pixart", *(["lora"] if is_lora else [])],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n"


def _usage(published: Published) -> str:
    facts, name = published.facts, published.name
    text = facts["conditioning"] == "text"
    if facts["kind"] == "lora":
        base = facts["base"]
        word = f"a prompt with {base['trigger_word']}" if base["trigger_word"] else "a prompt"
        scheduler = f"pipe.scheduler = {published.scheduler}\n" if published.scheduler else ""
        return _ADAPTER.format(
            name=name, base=f"{base['name']}, {base['fingerprint']}", prompt=f'"{word}"', scheduler=scheduler
        )
    steps = facts["few_steps"]
    values = {
        "name": name,
        "pipeline": "PixArtAlphaPipeline" if text else "DiTPipeline",
        "imports": "" if published.has_parts else "\n# text_encoder, tokenizer and vae: those named under Training\n",
        "parts": "" if published.has_parts else ", text_encoder=text_encoder, tokenizer=tokenizer, vae=vae",
        "prompt": '"a prompt"' if text else "class_labels=[0]",
        "few_steps": f", num_inference_steps={steps['num_inference_steps']}, guidance_scale=1" if steps else "",
    }
    return _NETWORK.format(**values)


def _training(facts: dict[str, Any]) -> str:
    network, training = facts["network"], facts["training"]
    rows = {
        "network": f"DiT of width {network['width']}, depth {network['depth']}, {network['num_heads']} heads",
        "objective": facts["objective"],
        **{name.replace("_", " "): _part(part) for name, part in facts["parts"].items()},
        "weights": f"fingerprint {facts['fingerprint']}",
    }
    if facts["kind"] == "lora":
        rows["LoRA"] = f"rank {facts['base']['rank']}, of {facts['base']['name']} ({facts['base']['fingerprint']})"
    if training is not None:
        rows |= _run_rows(training)
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {in_markdown(name)} | {in_markdown(value)} |" for name, value in rows.items())]
    )


def _part(part: dict[str, Any]) -> str:
    details = [f"revision {part['revision']}" if part["revision"] else "", f"fingerprint {part['fingerprint']}"]
    return f"{part['name']} ({', '.join(filter(None, details))})"


def _run_rows(training: dict[str, Any]) -> dict[str, str]:
    settings = training["settings"]
    ladder = "; ".join(
        f"{rung['images']:,} of {rung['resolution']} px in batches of {rung['batch_size']}" for rung in settings["ladder"]
    )
    optim = settings.get("optim", {})
    rows = {
        "stage": f"{settings['stage']}, seed {settings['seed']}, {settings['precision']}",
        "images seen": f"{training['images_seen']:,} ({ladder})",
        "optimiser": f"{optim.get('name', 'adamw')}, learning rate {optim.get('lr')}",
    }
    rows |= {
        f"{'training' if kind == 'train' else kind} loss": f"{last['loss']:.4f} after {last['images_seen']:,} images"
        for kind, last in training["last"].items()
    }
    starts = training["starts"]
    if starts:
        last = starts[-1]
        versions = ", ".join(f"{name} {version}" for name, version in (last["versions"] or {}).items())
        rows["machine"] = f"{last['device']}, workers: {last['num_workers']}; {versions}"
        rows["date"] = f"{starts[0]['started_at'][:10]} to {last['started_at'][:10]}, starts: {len(starts)}"
    return rows
