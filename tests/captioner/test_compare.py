"""captioner.compare: paired figures, honest errors, what cannot be compared, the page, and TaBR."""

import contextlib
import json
import math
import re
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from captioner.compare import CompareConfig, main
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.scores.job import score_job
from dataset_builder.scores.plan import find_scored, plan_scores
from dataset_builder.sql.run_files import open_run
from dataset_builder.sql.score_files import score_folder
from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.storage.run_record import RunRecord
from tests.captioner.comparison.imported_runs import import_run, invented_captions, true_captions
from tests.dataset_builder.small_run import SmallRun
from tests.dataset_builder.tiny_clip import write_tiny_clip
from tests.foundry.units.plain_loop import run_plainly

COUNT = 48


@pytest.fixture(scope="module")
def true_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return import_run(tmp_path_factory.mktemp("true") / "true", true_captions(COUNT))


@pytest.fixture(scope="module")
def retold_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """True captions in other words."""
    return import_run(tmp_path_factory.mktemp("retold") / "retold", true_captions(COUNT, seed=77))


@pytest.fixture(scope="module")
def invented_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Captions that name objects that are not there. It refused scene 3, and has not seen the last two."""
    return import_run(tmp_path_factory.mktemp("invented") / "invented", invented_captions(COUNT - 2) | {3: ""})


@pytest.fixture(scope="module")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three runs: one with two prompts, one with another, one that is empty yet."""
    folder = tmp_path_factory.mktemp("small")
    small_run(folder / "a")
    small_run(folder / "b", captions={"alt": "An owl."})
    small_run(folder / "empty", num_committed=0)
    return folder


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "compare.html"


def compare(capsys: pytest.CaptureFixture[str], runs: Sequence[str], **options: Any) -> dict[str, Any]:
    """The line of JSON."""
    capsys.readouterr()
    assert main(CompareConfig(runs=tuple(runs), json=True, **options)) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def difference(answer: dict[str, Any], figure: str, *, of: str, to: str) -> tuple[float, float]:
    """Value and standard error."""
    (found,) = (one for one in answer["figures"][figure]["differences"] if (one["of"], one["to"]) == (of, to))
    return found["value"], found["error"]


def small_run(folder: Path, *, hashes: Sequence[str] | None = None, **options: Any) -> str:
    """A run of 8 images with the prompts dense and short, written file by file; it has committed 6."""
    names = hashes or [f"hash{index}" for index in range(8)]
    known = {f"img_{index}": name for index, name in enumerate(names)}
    return SmallRun(rejected=(), content_hashes=known, **options).write(Folder(str(folder))).url


def test_figures_are_means_over_common_images_with_errors_of_paired_differences(
    capsys: pytest.CaptureFixture[str], true_run: str, retold_run: str, invented_run: str
) -> None:
    answer = compare(capsys, [true_run, retold_run, invented_run])
    common = [index for index in range(COUNT - 2) if index != 3]
    assert answer["num_images"] == len(common)
    assert [(one["num_captions"], one["num_without_text"]) for one in answer["candidates"]] == [
        (COUNT, 0),
        (COUNT, 0),
        (COUNT - 3, 1),
    ]
    words = [{index: len(text.split()) for index, text in true_captions(COUNT, seed=seed).items()} for seed in (5, 77)]
    first, second = ([said[index] for index in common] for said in words)
    figure = answer["figures"]["num_words"]
    assert figure["num_images"] == len(common)
    assert figure["values"]["A"]["value"] == pytest.approx(statistics.mean(first))
    assert figure["values"]["A"]["error"] == pytest.approx(statistics.stdev(first) / math.sqrt(len(common)))
    paired = [b - a for a, b in zip(first, second, strict=True)]
    value, error = difference(answer, "num_words", of="B", to="A")
    assert value == pytest.approx(statistics.mean(paired))
    assert error == pytest.approx(statistics.stdev(paired) / math.sqrt(len(common)))
    with open_run(true_run) as run:
        keys = ", ".join(f"'scene-{index}'" for index in common)
        counts = run.fetch(f"SELECT count(*) AS n FROM nouns WHERE key IN ({keys}) GROUP BY noun")["n"].to_pylist()
    assert answer["figures"]["distinct_nouns_written"]["values"]["A"]["value"] == len(counts)
    assert answer["figures"]["valid_nouns_written"]["values"]["A"]["value"] == sum(count > 10 for count in counts)


def test_invented_objects_are_confirmed_less(
    capsys: pytest.CaptureFixture[str], true_run: str, retold_run: str, invented_run: str
) -> None:
    answer = compare(capsys, [true_run, retold_run, invented_run])
    for other in "AB":
        for figure in ("confirmed", "covered"):
            value, error = difference(answer, figure, of="C", to=other)
            assert value < -3 * error
    assert "tabr" not in answer["figures"] and "clip_mean" not in answer["figures"]


def test_the_table_says_what_was_compared_and_leaves_the_order(
    capsys: pytest.CaptureFixture[str], true_run: str, retold_run: str, invented_run: str
) -> None:
    assert main(CompareConfig(runs=(invented_run, true_run))) == 0
    text = capsys.readouterr().out
    assert f"A  invented dense                                   {COUNT - 3}         1             0  imported" in text
    assert f"B  true dense                                       {COUNT}         0             3  imported" in text
    assert re.search(r"words +\d[\d.]* ± [\d.]+ +\d[\d.]* ± [\d.]+ +[+-]?[\d.]+ ± [\d.]+", text)
    assert "B - A" in text and "Paired differences" not in text
    assert main(CompareConfig(runs=(invented_run, true_run, retold_run))) == 0
    assert "Paired differences to A" in capsys.readouterr().out


def test_prompts_of_one_run_are_compared_and_can_be_chosen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run, other = small_run(tmp_path / "a"), small_run(tmp_path / "b", run_id="fedcba9876543210")
    answer = compare(capsys, [run])
    assert [one["prompt"] for one in answer["candidates"]] == ["dense", "short"]
    # dense names owl, house, tree and sky, short an owl and (of no account) an image
    assert answer["figures"]["confirmed"]["values"] == {"A": {"value": 0.25, "error": 0}, "B": {"value": 1, "error": 0}}
    answer = compare(capsys, [run, other])
    assert [one["prompt"] for one in answer["candidates"]] == ["dense", "short"] * 2
    assert answer["figures"]["confirmed"]["values"]["A"]["value"] == 1, "its own short caption is no witness, the other run is"
    answer = compare(capsys, [run, other], prompts=("short",))
    assert [(one["run"], one["prompt"]) for one in answer["candidates"]] == [(run, "short"), (other, "short")]


def test_images_are_the_same_by_their_bytes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The second run has the first four under other keys, two others, and one of them twice."""
    run = small_run(tmp_path / "a")
    other = small_run(tmp_path / "b", hashes=["hash3", "hash2", "hash1", "new", "hash0", "hash0", "unread", "unread"])
    answer = compare(capsys, [run, other], prompts=("dense",))
    assert answer["num_images"] == 4
    strange = small_run(tmp_path / "c", hashes=[f"x{index}" for index in range(8)])
    with pytest.raises(UserError, match=r"captions of no image in common \(captions: .*/a 6, .*/c 6; .*\): caption the same"):
        main(CompareConfig(runs=(run, strange), prompts=("dense",)))


def test_a_run_that_is_not_finished_is_compared_as_far_as_it_is_and_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, other = small_run(tmp_path / "a", num_committed=1), small_run(tmp_path / "b", num_committed=3)
    answer = compare(capsys, [run, other], prompts=("dense",))
    assert answer["num_images"] == 3
    assert answer["notes"] == [f"{run} is not finished: 3 of 8 images are; what is committed is compared."]


def test_cost_and_speed_come_from_the_commits_and_the_last_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run, other = small_run(tmp_path / "a"), small_run(tmp_path / "b")
    prices = {"input_price": 1.0, "output_price": 50.0}
    for time, device, endpoint in (("1", "GPU", {}), ("2", "CPU", prices)):
        record = {"device": device, "cluster": "2 nodes", "config": {"endpoint": endpoint}}
        Folder(run).write(f"starts/{time}.json", json.dumps(record).encode())
    costs = compare(capsys, [run, other], prompts=("dense",))["runs"]
    # two units of 3 images with 2 captions of 10 tokens, each in 2 s
    assert costs[0]["num_images"] == 6 and costs[0]["tokens_per_image"] == 20 and costs[0]["replica_seconds"] == 4
    assert costs[0]["images_per_s"] == 1.5 and costs[0]["tokens_per_s"] == 30
    assert costs[0]["cost_per_1000"] == pytest.approx(1000 * 20 * 50 / 1e6)
    assert costs[0]["hardware"] == "CPU 2 nodes"
    assert costs[1]["cost_per_1000"] is None and costs[1]["input_tokens_per_image"] is None and costs[1]["hardware"] == ""
    served = {"engine": "endpoint", "endpoint": {"url": "http://there/v1"}}
    Folder(run).write("starts/3.json", json.dumps({"device": "CPU", "cluster": "1 node", "config": served}).encode())
    assert compare(capsys, [run], prompts=("dense", "short"))["runs"][0]["hardware"] == "server at http://there/v1"


def test_counts_of_other_tokenizers_are_computed_again_for_the_sample(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, true_run: str
) -> None:
    other = import_run(tmp_path / "short", true_captions(20), t5=T5Config(tokenizer="mini", max_tokens=20))
    answer = compare(capsys, [true_run, other], sample_size=8)
    (note,) = answer["notes"]
    assert note.startswith("The T5 tokenizers of the runs differ, so the captions of 8 images were counted again")
    cut = answer["figures"]["cut"]
    assert cut["num_images"] == 8 and cut["values"]["A"] == cut["values"]["B"]  # the same captions, the same limit of 120
    assert answer["num_images"] == 20 and answer["figures"]["confirmed"]["values"]["A"]["value"] == 1
    answer = compare(capsys, [other, true_run], sample_size=8)
    assert answer["figures"]["cut"]["values"]["A"]["value"] == 1


def test_runs_that_say_less_of_their_tagger_are_counted_alike(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run, other = small_run(tmp_path / "a"), small_run(tmp_path / "b")
    record = RunRecord.read(Folder(other))
    assert record is not None
    t5 = record.settings["t5"] | {"fingerprint": "0"}
    replace(record, settings=record.settings | {"t5": t5}).write(Folder(other))
    assert "counted again" not in str(compare(capsys, [run, other], prompts=("dense",))["notes"])


def test_clip_scores_are_those_of_the_runs_or_computed_alike(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, true_run: str
) -> None:
    clip = str(write_tiny_clip(tmp_path / "clip"))
    run, other = (import_run(tmp_path / name, true_captions(6, seed=seed)) for name, seed in (("a", 5), ("b", 77)))
    computed = compare(capsys, [run, other], clip=clip)["figures"]
    assert computed["clip_mean"]["num_images"] == 6
    score(run, clip)
    answer = compare(capsys, [run, other])
    assert "clip_mean" not in answer["figures"]
    assert answer["notes"] == ["CLIP scores are left out, since not all runs were scored, or by different CLIPs: name a CLIP."]
    score(other, clip)
    stored = compare(capsys, [run, other], sample_size=1)["figures"]
    for figure in ("clip_mean", "clip_least"):
        for letter in "AB":
            assert stored[figure]["values"][letter] == pytest.approx(computed[figure]["values"][letter], rel=1e-4)
        assert stored[figure]["num_images"] == 6


def test_images_that_are_gone_or_changed_are_left_out_of_what_needs_them_and_counted(
    capsys: pytest.CaptureFixture[str], page: Path, tmp_path: Path
) -> None:
    run, other = (import_run(tmp_path / name, true_captions(6, seed=seed)) for name, seed in (("a", 5), ("b", 77)))
    (tmp_path / "a-images" / "scene-1.jpg").unlink()
    shutil.copy(tmp_path / "a-images" / "scene-0.jpg", tmp_path / "a-images" / "scene-2.jpg")
    answer = compare(capsys, [run, other], clip=str(write_tiny_clip(tmp_path / "clip")), out=str(page))
    assert answer["figures"]["num_words"]["num_images"] == 6 and answer["figures"]["clip_mean"]["num_images"] == 4
    (note,) = answer["notes"]
    assert note.startswith("CLIP scores leave out 2 images that could not be read, the first: scene-")
    assert "2 images could not be read, the first: scene-" in page.read_text()


def score(run: str, clip: str) -> None:
    """As dataset_builder.score does, in this process."""
    scored = find_scored(run)
    job = score_job(scored, clip=clip, aesthetic=None, batch_size=64)
    run_plainly(job, plan_scores(scored, score_folder(scored.folder, job.score_id)))


class _Page(HTMLParser):
    """Keys of the cards, and whatever a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v for name, v in attrs if name in ("src", "href") and v and not v.startswith(("#", "data:"))]


def test_the_page_shows_captions_side_by_side_and_fetches_nothing(
    capsys: pytest.CaptureFixture[str], page: Path, tmp_path: Path, true_run: str
) -> None:
    odd = dict.fromkeys(range(12), "A <script>alert(1)</script> & an owl.")
    said = true_captions(12)
    other = import_run(tmp_path / "odd", {index: said[index] if index % 2 else odd[index] for index in range(12)})
    assert main(CompareConfig(runs=(true_run, other), out=str(page), pictures=8)) == 0
    assert f"{page}: open it in a browser" in capsys.readouterr().out
    text = page.read_text()
    parsed = _Page()
    parsed.feed(text)
    assert parsed.fetched == [] and "url(" not in text
    assert "<script>alert" not in text and "&lt;script&gt;" in text
    assert parsed.tags.count("article") == 8 and parsed.tags.count("img") == 8
    most, random = re.findall(r'<section id="s[45]">(.*?)</section>', text, re.DOTALL)
    shared = [[int(share) for share in re.findall(r"(\d+)% of the nouns are shared", part)] for part in (most, random)]
    assert max(shared[0]) < 50, "those with other captions come first"
    assert shared[1] == sorted(shared[1])
    assert '<mark class="alone">' in most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": ["a"], "prompts": ["dense"]}, "expected 2 to 26 captioners to compare, found 1 .*a with the prompt dense"),
        ({"runs": ["a", "a/"]}, "a is given twice: give each run once"),
        ({"runs": ["a", "b"], "prompts": ["long"]}, "no run has the prompt long: there are dense, short, alt"),
        ({"runs": ["a", "b"], "prompts": ["dense"]}, "b has none of the prompts asked for: it has alt"),
        ({"runs": ["a", "empty"]}, "empty has no caption with text under dense yet: caption first"),
        ({"runs": ["a", "nothing"]}, "nothing is not a captioning run: it has no run.json"),
        ({"runs": ["a"], "out": "no/folder/x.html"}, "x.html cannot be written because its folder does not exist"),
        ({"runs": ["a"], "checkpoint": "mini"}, "--checkpoint needs --out"),
        ({"runs": ["a"], "tabr.generate": '{"seed": 3}'}, "tabr.generate must not hold seed"),
        ({"runs": ["a"], "tabr.num_images": "0"}, "tabr.num_images must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_line(
    capsys: pytest.CaptureFixture[str], small_runs: Path, options: dict[str, Any], message: str
) -> None:
    values = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    argv = [word for name, value in values.items() for word in (f"--{name}", *value)]
    with contextlib.chdir(small_runs):
        assert run_command(CompareConfig, main, prog="python -m captioner.compare", example="", argv=argv) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


@pytest.mark.slow
def test_captions_that_are_true_are_drawn_more_like_the_original(
    capsys: pytest.CaptureFixture[str], page: Path, true_run: str, invented_run: str
) -> None:
    argv = ["--runs", true_run, invented_run, "--json", "--out", str(page), "--checkpoint", "mini", "--tabr.similarity", "mini"]
    argv += ["--tabr.num_images", "8", "--tabr.generate", '{"num_inference_steps": 10}', "--pictures", "4"]
    assert run_command(CompareConfig, main, prog="python -m captioner.compare", example="", argv=argv) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["figures"]["tabr"]["num_images"] == 8
    value, error = difference(answer, "tabr", of="B", to="A")
    assert value < -3 * error
    values = {name: answer["figures"][name]["values"]["A"]["value"] for name in ("tabr", "tabr_chance")}
    assert values["tabr"] > values["tabr_chance"] + 0.3
    assert any("the vision tower of llava-mini" in note for note in answer["notes"])
    assert page.read_text().count("drawn from this caption") == 2 * 2
    assert len(list((page.parent / "compare-images").glob("*.png"))) == 16
