"""Structured runs over scenes of the small world: a server answers with their truth, or as told."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from captioner.config import CaptionConfig
from captioner.run import main
from examples.openmoji.composition import Scene
from examples.openmoji.scene_files import SceneSet, sample, write_scenes
from examples.openmoji.true_captioner import TrueCaption, pixels_of, true_captions
from foundry.command_line import run_command
from tests.chat_server import JudgeServer, Reply, judge_server, says, text_of
from tests.foundry.units.plain_loop import run_plainly

NUM_SCENES = 24
SCENES = SceneSet(count=NUM_SCENES, seed=5, split="train", single_objects=False, num_kinds=None, format="jpeg")
MODEL = "gpt-4o-2024-05-13"


@dataclass
class Captioner:
    """Answers of the truth, as JSON; `spoil` may make something else of them, by the key and the number of the try."""

    truths: dict[bytes, TrueCaption]
    spoil: Callable[[str, int, str], Reply] = lambda key, number, truth: says(truth, model=MODEL)
    tries: Counter[str] = field(default_factory=Counter)

    def __call__(self, body: dict[str, Any]) -> Reply:
        pixels = pixels_of(body)
        if len(set(pixels)) == 1:  # the grey image of a check
            return says("{", model=MODEL)
        known = self.truths[pixels]
        self.tries[known.key] += 1
        return self.spoil(known.key, self.tries[known.key], known.text)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(SCENES, folder)
    return folder


def drawn() -> dict[str, Scene]:
    return {one.key: one.scene for one in (sample(SCENES, index) for index in range(NUM_SCENES))}


def truthful(scenes: Path) -> Captioner:
    truths = true_captions(scenes)
    assert len(truths) == NUM_SCENES
    return Captioner(truths)


@contextmanager
def captioned(scenes: Path, out: Path, captioner: Captioner, *more: str) -> Iterator[JudgeServer]:
    """A finished run of the set `structured`, and the server that was asked."""
    with judge_server(captioner) as server:
        arguments = ["--images", str(scenes), "--out", str(out), "--model", "m", "--engine", "endpoint"]
        arguments += ["--endpoint.url", server.url, "--endpoint.tries", "1", "--t5.tokenizer", "mini", "--unit_size", "10"]
        arguments += ["--prompts", "structured", *more]
        assert run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments) == 0
        yield server


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foundry.units.run.run_job", run_plainly)
        patch.setenv("no_proxy", "127.0.0.1")
        with captioned(scenes, out, truthful(scenes)) as server:
            assert len(server.bodies) == NUM_SCENES + 1, "once for each image, and to find the model"
            asked = server.bodies[-1]
    assert asked["response_format"]["json_schema"]["strict"] is True
    assert next(iter(asked["response_format"]["json_schema"]["schema"]["properties"])) == "high_level_description"
    assert "follows this JSON schema" in text_of(asked)
    return str(out)
