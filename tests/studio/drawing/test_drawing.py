"""Drawing with the shipped checkpoint, its history, blind comparison: a seed is an image, and names stay hidden."""

import io
import json
import random
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from foundry.errors import UserError
from studio.drawing.history import History
from studio.drawing.page import DrawTab
from studio.drawing.painter import Drawn, DrawSettings, Painter, StoppedError
from studio.judging.page import JudgeTab
from studio.judging.verdicts import Verdict, VerdictLog, tally, tally_rows, wilson_interval

OWL = DrawSettings(prompt="a red owl in the center on a yellow background <b>", seed=3, num_inference_steps=2, guidance_scale=1)
VERDICT = Verdict(
    judged_at="2026-01-01T00:00:00+00:00",
    judged_by="Ada",
    first="a",
    second="b",
    first_was_left=True,
    prompt="an owl",
    seed=0,
    num_inference_steps=None,
    guidance_scale=None,
    better="first",
)


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(["mini", "mini-few-steps"], device="cpu")


@pytest.fixture(scope="module")
def drawn(painter: Painter) -> Drawn:
    return painter.draw("mini", OWL)


@pytest.fixture
def tab(painter: Painter, tmp_path: Path) -> DrawTab:
    return DrawTab(painter, History(tmp_path))


def test_a_seed_is_an_image_and_its_png_says_what_it_is(painter: Painter, tmp_path: Path) -> None:
    first, again, other = (painter.draw("mini", settings) for settings in (OWL, OWL, replace(OWL, seed=4)))
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert not np.array_equal(np.asarray(first.image), np.asarray(other.image))
    history = History(tmp_path)
    drawing = history.add(first)
    path = history.file(drawing.name)
    assert path is not None
    with Image.open(path) as image:
        image.load()
        assert image.text["prompt"] == OWL.prompt and image.text["seed"] == "3"  # type: ignore[attr-defined]
        assert json.loads(image.text["settings"])["num_inference_steps"] == 2  # type: ignore[attr-defined]


def test_checkpoints_are_drawn_side_by_side_and_one_that_fails_says_so(tab: DrawTab) -> None:
    *waiting, last = tab.draw(["mini", "missing", "mini-few-steps"], OWL)
    assert "drawing with mini (1 of 3)" in waiting[0]
    assert last.count("<img") == 2 and "missing is not open" in last
    assert "&lt;b&gt;" in last and "background <b>" not in last
    assert [one.checkpoint for one in tab.history.newest(number=9)] == ["mini-few-steps", "mini"]


def test_the_history_outlives_the_studio_and_gives_its_settings_back(tab: DrawTab, drawn: Drawn, tmp_path: Path) -> None:
    for seed in range(26):
        tab.history.add(replace(drawn, settings=replace(OWL, seed=seed)))
    later = DrawTab(tab.painter, History(tmp_path))
    html, last = later.past()
    assert html.count("data-pick=") == 24 and "seed 25" in html and last
    rest, end = later.past(last)
    assert rest.count("data-pick=") == 2 and end == ""
    oldest = later.history.newest(number=99)[-1]
    assert later.settings_of(oldest.name).settings == replace(OWL, seed=0)


@pytest.mark.parametrize("name", ["../verdicts.jsonl", "drawings.jsonl", "20260101T000000-00000000.png/..", "..", ""])
def test_no_other_file_is_a_drawing(tab: DrawTab, name: str) -> None:
    tab.history.folder.mkdir(parents=True, exist_ok=True)
    (tab.history.folder / "drawings.jsonl").touch()
    assert tab.history.file(name) is None


@pytest.mark.parametrize(
    ("checkpoint", "settings", "reason"),
    [
        ("/etc", OWL, "is not open"),
        ("mini", replace(OWL, prompt=" "), "expected a prompt"),
        ("mini", replace(OWL, lora="/etc/passwd"), "the LoRA /etc/passwd is not open"),
        ("mini", replace(OWL, num_inference_steps=0), "num_inference_steps must be 1 to 1000"),
        ("mini", replace(OWL, rewrites=True), "names no rewriter"),
        ("mini", replace(OWL, width=4096, height=64), "expected at most 8,192 pixels, twice the 64 x 64 px"),
    ],
)
def test_what_cannot_be_drawn_is_said(painter: Painter, checkpoint: str, settings: DrawSettings, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        painter.draw(checkpoint, settings)


def test_a_drawing_ends_at_the_step_in_which_it_is_stopped(tab: DrawTab) -> None:
    slow = replace(OWL, num_inference_steps=1000)
    found = tab.draw(["mini", "mini-few-steps"], slow, person="ada")
    next(found)
    other = threading.Timer(0.5, tab.stop, ["ada"])
    other.start()
    (last,) = found
    assert "stopped before mini was done" in last and "few-steps" not in last
    assert tab.history.newest(number=9) == []
    tab.stop("nobody")
    assert "<img" in list(tab.draw(["mini"], OWL, person="ada"))[-1]  # the next one is drawn


def test_whoever_waits_for_another_drawing_can_stop(painter: Painter) -> None:
    stop = threading.Event()
    stop.set()
    with painter._lock, pytest.raises(StoppedError):
        painter.draw("mini", OWL, stop=stop)


def test_a_painter_that_is_closed_draws_nothing_more() -> None:
    closed = Painter(["mini"], device="cpu")
    closed.close()
    with pytest.raises(StoppedError):
        closed.draw("mini", OWL)


def test_a_pair_hides_its_names_until_the_verdict(painter: Painter, tmp_path: Path) -> None:
    judge = JudgeTab(painter, VerdictLog(tmp_path), generator=random.Random(0))
    sides = set()
    for _ in range(6):
        token, html = judge.new_pair(["mini-few-steps", "mini"], "an owl\na key", steps=2, guidance=1)
        assert "mini" not in html and f"/pairs/{token}/left.png" in html
        left, right = (judge.image(token, side) for side in ("left", "right"))
        assert left is not None and right is not None and left != right
        with Image.open(io.BytesIO(left)) as image:
            assert not getattr(image, "text", {})
        said = judge.judge(token, "left", by="Ada")
        sides.add(judge.verdicts.all()[-1].first_was_left)
        left_name = "mini" if judge.verdicts.all()[-1].first_was_left else "mini-few-steps"
        assert f"the left image was drawn by {left_name}," in said
        assert judge.is_judged(token)  # a second click is passed over
        with pytest.raises(UserError, match="no pair to judge"):
            judge.judge(token, "left", by="Ada")
    assert sides == {True, False}
    verdicts = judge.verdicts.all()
    assert len({(one.prompt, one.seed) for one in verdicts}) == 6
    assert sorted(one.prompt for one in verdicts) == ["a key"] * 3 + ["an owl"] * 3
    assert {one.better for one in verdicts if one.first_was_left} == {"first"}
    assert "95 % interval" in judge.tally()


def test_a_pair_needs_two_checkpoints_and_a_prompt(painter: Painter, tmp_path: Path) -> None:
    judge = JudgeTab(painter, VerdictLog(tmp_path))
    with pytest.raises(UserError, match="two different checkpoints"):
        judge.new_pair(["mini", "mini"], "an owl")
    with pytest.raises(UserError, match="expected prompts"):
        judge.new_pair(["mini", "mini-few-steps"], " \n")


@pytest.mark.parametrize(("wins", "trials"), [(0, 1), (1, 1), (7, 10), (50, 100), (0, 40), (999, 1000)])
def test_the_interval_is_wilsons(wins: int, trials: int) -> None:
    expected = binomtest(wins, trials).proportion_ci(method="wilson")
    assert wilson_interval(wins, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_tally_leaves_ties_out_of_the_share() -> None:
    found = tally([VERDICT, VERDICT, replace(VERDICT, better="second"), *[replace(VERDICT, better="tie")] * 5])
    assert (found.first_better, found.second_better, found.ties) == (2, 1, 5)
    assert found.share == pytest.approx(2 / 3)
    only_ties = tally([replace(VERDICT, better="tie")])
    assert (only_ties.share, only_ties.low) == (None, None)
    assert tally_rows([only_ties])[0]["A's share of decided"] is None


def test_a_line_that_a_kill_cut_off_loses_no_verdict(tmp_path: Path) -> None:
    log = VerdictLog(tmp_path)
    log.add(VERDICT)
    with log.path.open("a") as file:
        file.write('{"judged_at": "20')
    log.add(VERDICT)
    assert log.all() == [VERDICT, VERDICT]
