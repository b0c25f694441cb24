"""Features of true structured captions in three forms, of the scenes of a world that is there: whole, as prose, and compact.

The whole JSON of a scene has four times as many tokens as its prose. The compact one keeps what differs from scene to scene,
background, boxes and descriptions, and has about as many tokens as the prose.
"""

import contextlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.commands import run_module
from benchmarks.recipes.experiments import COMPACT
from benchmarks.staged_config import RESOLUTION_PX
from benchmarks.staged_world import SPLITS
from foundry.errors import UserError
from foundry.storage.folder import new_file

MAX_TOKENS = 320
"""Limit of all kinds of caption: the whole JSON of a scene has some 300."""


def make_structured_features(world: Path) -> Path:
    """Captions by the server that knows the truth, a data set, features; returns their folder. Raises UserError."""
    scenes, folder = world / "scenes", world / "structured"
    run, dataset, features = (folder / name for name in ("run", "dataset", "features"))
    with _true_captioner(scenes) as url:
        asked = ("--engine", "endpoint", "--model", "truth", "--endpoint.url", url, "--prompts", "structured")
        limits = ("--generation.max_new_tokens", "1500", "--t5.tokenizer", "mini")
        run_module("captioner.run", "--images", str(scenes), "--out", str(run), *asked, *limits)
    texts, compact = folder / "compact.tar", folder / "compact"
    write_compact(scenes, texts)
    imported = ("--images", str(scenes), "--prompt", COMPACT, "--t5.tokenizer", "mini")
    run_module("dataset_builder.convert", "--source", "sam-llava", "--target", "run", str(texts), str(compact), *imported)
    run_module("dataset_builder.build", "--captions", str(run), str(compact), "--out", str(dataset), *SPLITS)
    encoders = ("--vae.name", "mini", "--text_encoder.name", "mini", "--text_encoder.max_caption_tokens", str(MAX_TOKENS))
    wanted = ("--stage", "alignment", "--resolution", str(RESOLUTION_PX))
    run_module("trainer.precompute", "--dataset", str(dataset), "--out", str(features), *wanted, *encoders)
    return features


def write_compact(scenes: Path, out: Path) -> None:
    """Writes a tar with the compact caption of each scene."""
    import pyarrow.parquet as pq

    from dataset_builder.dataset.webdataset import add_member
    from examples.openmoji.scene_files import TRUTH_FILE, SceneSet, sample
    from examples.openmoji.structured import structured_caption

    wanted = SceneSet(**json.loads((pq.read_schema(scenes / TRUTH_FILE).metadata or {})[b"settings"]))
    with new_file(out) as partial, tarfile.open(partial, "w") as tar:
        for one in (sample(wanted, index) for index in range(wanted.count)):
            text = json.dumps(compact_caption(structured_caption(one.scene, seed=wanted.seed)))
            add_member(tar, f"{one.key}.txt", text.encode())


def compact_caption(whole: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a caption that differ from scene to scene."""
    parts = whole["compositional_deconstruction"]
    return {
        "background": parts["background"],
        "elements": [{name: element[name] for name in ("bbox", "desc")} for element in parts["elements"]],
    }


@contextlib.contextmanager
def _true_captioner(scenes: Path) -> Iterator[str]:
    """The address of a server for as long as it is needed; it takes a free port. Raises UserError if it does not start."""
    command = [sys.executable, "-m", "examples.openmoji.true_captioner", "--scenes", str(scenes), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline().strip()
            if not line:
                raise UserError(f"the server of true captions did not start: run {' '.join(command)}")
            yield line.rpartition(" ")[2]
        finally:
            server.terminate()
