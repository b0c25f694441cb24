"""Measures with linear probes what the frozen features of t5-mini encode about unseen captions; the last line is JSON.

    python -m examples.openmoji.probe_t5 --count 1000

A probe is one linear map (softmax or logistic regression) of standardised features, fitted on captions of `train` scenes and
scored on captions of `unseen` scenes; the encoder stays as it is, and is read as the pipeline reads it.

objects: from the mean of a caption's tokens, for each kind whether the caption names it; right where all 36 answers are.
background: from that mean, the colour and the pattern; right where both are.
place: from the feature of each token that names an object, the place of that object among nine; scored over these tokens.
size: the same for its size.
grid: from the mean, for each of the nine places which kind is there or none; right where all nine answers are. It asks the
mean of all tokens which place belongs to which object, so it is the hardest.

Each figure is next to that of the word embeddings alone, which know the words but not which belong together.
"""

from dataclasses import dataclass
from typing import Literal

from foundry.command_line import run_command


@dataclass(frozen=True)
class ProbeConfig:
    """Settings of the probe."""

    model: str = "model/pretrained/t5-mini"
    """Folder of the text encoder."""
    form: Literal["dense", "prompt"] = "dense"
    """Dense captions, or prompts as a person would write them; grid, size and place use those that tell."""
    count: int = 1000
    """Number of unseen captions to score on."""
    train_count: int = 8000
    """Number of captions of training scenes to fit on."""
    seed: int = 5
    """Seed of scenes and phrasings, of which the encoder's training had another."""


def main(config: ProbeConfig) -> int:
    """Prints a table and the line of JSON."""
    import json

    from examples.openmoji.probes import probe

    figures = probe(config)
    for name in ("objects", "background", "color", "pattern", "place", "size", "grid"):
        print(f"{name:12s} {figures[name]:.4f}   word embeddings {figures[f'{name}_of_embeddings']:.4f}")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()} | {"num_captions": config.count}))
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            ProbeConfig,
            main,
            prog="python -m examples.openmoji.probe_t5",
            example="python -m examples.openmoji.probe_t5 --form prompt",
        )
    )
