"""WISE from the command line, with a judge on loopback: figures, resumption, and what is never to happen."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from foundry.command_line import run_command
from model.generation.image_files import image_names
from tests.chat_server import JudgeServer, Reply, fails, judge_server, says, text_of
from trainer import evaluate
from trainer.evaluation.benchmarks.wise_edition import CATEGORIES, own_prompts
from trainer.evaluation.config import EvaluateConfig

KEY = "sk-77aa-not-to-be-seen"
GRADES = {
    "culture": (2, 1, 0),
    "time": (1, 1, 1),
    "space": (0, 0, 0),
    "biology": (2, 2, 2),
    "physics": (1, 0, 2),
    "chemistry": (0, 2, 0),
}
PROMPTS = {prompt.text: prompt for prompt in own_prompts()}


def _prompt_of(body: dict[str, Any]) -> str:
    return next(text for text in PROMPTS if f"Prompt: {text}\n" in text_of(body))


def _graded(body: dict[str, Any]) -> Reply:
    consistency, realism, beauty = GRADES[PROMPTS[_prompt_of(body)].category]
    return says(f"Consistency: {consistency}\nRealism: {realism}\nAesthetic Quality: {beauty}")


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("THE_KEY", KEY)
    with judge_server(_graded) as server:
        yield server


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image for each prompt, each of another gray."""
    folder = tmp_path_factory.mktemp("images")
    for level, name in enumerate(image_names(list(PROMPTS), [0] * len(PROMPTS))):
        Image.fromarray(np.full((8, 8, 3), level, dtype=np.uint8)).save(folder / name)
    return folder


def _arguments(images: Path, out: Path, judge: JudgeServer, *more: str, benchmark: str = "wise") -> list[str]:
    ours = [f"--benchmark={benchmark}", f"--images={images}", f"--out={out}", f"--wise.judge.url={judge.url}"]
    return [*ours, "--wise.judge.key_variable=THE_KEY", *more]


def _run(arguments: list[str]) -> int:
    return run_command(EvaluateConfig, evaluate.main, prog="python -m trainer.evaluate", example="", argv=arguments)


def _scores(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    scores = json.loads((out / "summary.json").read_text())["scores"]
    return {(score["category"], score["metric"]): score for score in scores}


def _answers(out: Path, name: str = "wise") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers" / f"{name}.jsonl").read_text().splitlines()]


def test_figures_are_those_worked_out_by_hand(images: Path, tmp_path: Path, judge: JudgeServer) -> None:
    assert _run(_arguments(images, tmp_path / "out", judge)) == 0
    scores = _scores(tmp_path / "out")
    by_hand = {"culture": 0.8, "time": 0.5, "space": 0.0, "biology": 1.0, "physics": 0.45, "chemistry": 0.2}
    for category, value in by_hand.items():
        assert scores[category, "wiscore"]["value"] == pytest.approx(value)
        assert scores[category, "wiscore"]["num_images"] == 2
    # .4 x .8 + .167 x .5 + .133 x 0 + .1 x (1 + .45 + .2)
    assert scores["overall", "wiscore"]["value"] == pytest.approx(0.32 + 0.0835 + 0.165)
    assert scores["overall", "wiscore"]["published"]["value"] == 0.47
    assert scores["all prompts", "unanswered"]["value"] == 0
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    row = next(row for row in rows if row["category"] == "physics" and row["metric"] == "wiscore")
    assert row["seen"] == "Consistency: 1\nRealism: 0\nAesthetic Quality: 2"
    assert row["comparable"] == "no: our own prompts; our own instructions"


def test_the_request_is_that_of_the_original(images: Path, tmp_path: Path, judge: JudgeServer) -> None:
    _run(
        _arguments(
            images, tmp_path / "out", judge, "--wise.judge.model=another", '--wise.judge.body={"max_tokens": null, "seed": 3}'
        )
    )
    body = judge.bodies[0]
    (message,) = body.pop("messages")
    assert body == {"model": "another", "temperature": 0.0, "seed": 3}
    assert message["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    comparable = _scores(tmp_path / "out")["overall", "wiscore"]["published"]["differences"]
    assert "another judges in place of gpt-4o-2024-05-13" in comparable
    assert "other settings of the judge" in comparable


def test_verified_is_right_or_wrong_and_has_no_published_figure(images: Path, tmp_path: Path, judge: JudgeServer) -> None:
    right = {"culture": 1, "time": 1, "space": 1, "biology": 0, "physics": 0, "chemistry": 1}
    judge.reply = lambda body: says(f"<think>Score: 0? No.</think>Score: {right[PROMPTS[_prompt_of(body)].category]}")
    assert _run(_arguments(images, tmp_path / "out", judge, benchmark="wise_verified")) == 0
    scores = _scores(tmp_path / "out")
    assert scores["overall", "wiscore_verified"]["value"] == pytest.approx(0.4 + 0.12 * 3)
    assert {score["published"] for score in scores.values()} == {None}
    assert judge.bodies[0]["model"] == "Qwen3.5-35B-A3B"
    assert judge.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_nonsense_and_silence_are_asked_again_and_then_counted(images: Path, tmp_path: Path, judge: JudgeServer) -> None:
    nonsense, silent, late, refused = list(PROMPTS)[:8:2]
    asked: Counter[str] = Counter()
    lock = threading.Lock()

    def reply(body: dict[str, Any]) -> Reply:
        prompt = _prompt_of(body)
        with lock:
            asked[prompt] += 1
        if prompt == late:
            return _graded(body) if asked[prompt] == 3 else says("Hm.")
        if prompt == refused:
            return fails(400, "content_policy_violation")
        return {nonsense: says("It is lovely."), silent: says(None, finish_reason="length")}.get(prompt, _graded(body))

    judge.reply = reply
    out = tmp_path / "out"
    assert _run(_arguments(images, out, judge)) == 0
    assert [asked[prompt] for prompt in (nonsense, silent, late, refused)] == [3, 3, 3, 3]
    assert {asked[prompt] for prompt in PROMPTS} == {1, 3}
    scores = _scores(out)
    assert scores["all prompts", "unanswered"]["value"] == pytest.approx(3 / 12)
    assert scores["culture", "wiscore"]["num_images"] == 1
    assert scores["culture", "wiscore"]["value"] == pytest.approx(0.8)  # not halved by a zero
    assert "a score for 1 of 2 images" in scores["culture", "wiscore"]["published"]["differences"]
    assert "a score for 9 of 12 images" in scores["overall", "wiscore"]["published"]["differences"]
    rows = pq.read_table(out / "results.parquet").to_pylist()
    seen = {row["prompt"]: row["seen"] for row in rows if row["metric"] == "unanswered" and row["value"]}
    assert seen == {
        nonsense: "no verdict in 3 answers, the last one: It is lovely.",
        silent: "no verdict in 3 answers, the last one: (length)",
        refused: "no verdict in 3 answers, the last one: (content_policy_violation)",
    }
    tries = Counter((answer["prompt"], answer["is_verdict"]) for answer in _answers(out))
    assert (tries[nonsense, False], tries[late, False], tries[late, True]) == (3, 2, 1)


def test_a_judge_that_answers_under_another_name_is_said(images: Path, tmp_path: Path, judge: JudgeServer) -> None:
    judge.reply = lambda body: says("Consistency: 1\nRealism: 1\nAesthetic Quality: 1", model="llama")
    (tmp_path / "own.txt").write_text("Grade: {prompt} {explanation}")
    told = f"--wise.instructions={tmp_path / 'own.txt'}"
    assert _run(_arguments(images, tmp_path / "out", judge, told)) == 0
    differences = _scores(tmp_path / "out")["overall", "wiscore"]["published"]["differences"]
    assert differences == ["our own prompts", "instructions of own.txt", "llama answered in place of gpt-4o-2024-05-13"]
    assert {answer["answered_by"] for answer in _answers(tmp_path / "out")} == {"llama"}


def _complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line; a slow machine shows progress bars above it."""
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    return line


def test_a_judge_that_never_gives_a_verdict_is_left_alone(
    images: Path, tmp_path: Path, judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.reply = lambda body: says("I am a language model.")
    assert _run(_arguments(images, tmp_path / "out", judge, "--wise.judge.concurrency=1")) == 2
    line = _complaint(capsys)
    assert "gave no verdict on 10 images in a row, its last words: 'I am a language model.'" in line
    assert len(judge.bodies) == 30


def test_after_a_kill_no_image_is_asked_twice(images: Path, tmp_path: Path, judge: JudgeServer) -> None:
    arguments = _arguments(images, tmp_path / "out", judge, "--wise.judge.concurrency=2")
    started = subprocess.Popen([sys.executable, "-m", "trainer.evaluate", *arguments], stdout=subprocess.DEVNULL)
    answered: list[str] = []
    lock = threading.Lock()

    def kills_at_the_sixth(body: dict[str, Any]) -> Reply:
        with lock:
            if len(judge.bodies) >= 6:
                started.kill()
                started.wait()
            answered.append(_prompt_of(body))
            return _graded(body)

    judge.reply = kills_at_the_sixth
    assert started.wait(timeout=120) == -signal.SIGKILL
    kept = [answer["prompt"] for answer in _answers(tmp_path / "out")]
    assert len(kept) >= 4
    judge.bodies.clear()
    judge.reply = _graded
    assert _run(arguments) == 0
    asked = [_prompt_of(body) for body in judge.bodies]
    assert sorted([*kept, *asked]) == sorted(PROMPTS)
    judge.bodies.clear()
    assert _run(arguments) == 0
    assert judge.bodies == []


def test_lost_verdicts_are_made_of_the_kept_answers(images: Path, tmp_path: Path, judge: JudgeServer) -> None:
    arguments = _arguments(images, tmp_path / "out", judge)
    _run(arguments)
    (tmp_path / "out" / "verdicts" / "wise.jsonl").unlink()
    judge.bodies.clear()
    assert _run(arguments) == 0
    assert judge.bodies == []


def test_an_outage_ends_in_one_line_and_the_same_command_resumes(
    images: Path, tmp_path: Path, judge: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    first_five = list(PROMPTS)[:5]
    judge.reply = lambda body: _graded(body) if _prompt_of(body) in first_five else fails(503, Retry_After="0")
    arguments = _arguments(images, tmp_path / "out", judge, "--wise.judge.outage_tries=2")
    assert _run(arguments) == 2
    line = _complaint(capsys)
    assert "does not answer (HTTP 503" in line
    judge.bodies.clear()
    judge.reply = _graded
    assert _run(arguments) == 0
    assert sorted(map(_prompt_of, judge.bodies)) == sorted(set(PROMPTS) - set(first_five))


def test_no_more_questions_are_under_way_than_allowed(images: Path, tmp_path: Path, judge: JudgeServer) -> None:
    together = threading.Barrier(3)

    def three_at_once(body: dict[str, Any]) -> Reply:
        together.wait(timeout=30)
        return _graded(body)

    judge.reply = three_at_once
    assert _run(_arguments(images, tmp_path / "out", judge, "--wise.judge.concurrency=3")) == 0
    assert judge.most_at_once == 3


def test_the_key_appears_nowhere(images: Path, tmp_path: Path, judge: JudgeServer, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = list(PROMPTS)[:2]

    def tells_the_key(body: dict[str, Any]) -> Reply:
        if _prompt_of(body) == first:
            return says(f"{KEY}!")
        return Reply(body=json.dumps({"error": {"message": KEY}}), status=403) if _prompt_of(body) == second else _graded(body)

    judge.reply = tells_the_key
    assert _run(_arguments(images, tmp_path / "out", judge)) == 2
    judge.reply = lambda body: says(f"{KEY}!") if _prompt_of(body) == first else _graded(body)
    assert _run(_arguments(images, tmp_path / "out", judge)) == 0
    assert judge.headers[0]["Authorization"] == f"Bearer {KEY}"
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(b"[key]!" in data for data in written)
    assert not any(KEY.encode() in data for data in written)
    assert KEY not in "".join(capfd.readouterr())


def test_the_first_prompts_of_each_category_are_a_trial(images: Path, tmp_path: Path, judge: JudgeServer) -> None:
    assert _run(_arguments(images, tmp_path / "out", judge, "--wise.prompts_per_category=1")) == 0
    prompts = [json.loads(line) for line in (tmp_path / "out" / "prompts.jsonl").read_text().splitlines()]
    assert [prompt["category"] for prompt in prompts] == list(CATEGORIES)


@pytest.fixture
def usual(images: Path, tmp_path: Path, judge: JudgeServer) -> list[str]:
    return _arguments(images, tmp_path / "out", judge)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--wise.judge.url=null"], "no judge to ask: give the address .*--wise.judge.url"),
        (
            ["--wise.judge.key_variable=NO_SUCH_KEY"],
            "environment variable NO_SUCH_KEY is not set",
        ),
        (["--wise.judge.url=https://me:pw@host/v1"], "judge.url must hold no user, password"),
        (["--wise.judge.concurrency=0"], "must be 1 or more"),
        (["--wise.folder=nowhere"], r"nowhere/WISE_legacy/data/cultural_common_sense.json cannot be read"),
        (["--wise.instructions=nowhere.txt"], "the instructions nowhere.txt cannot be read"),
    ],
)
def test_bad_input_is_one_line(
    usual: list[str], arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run([*usual, *arguments]) == 2
    line = _complaint(capsys)
    assert re.search(complaint, line)
