"""Data sets from runs: every image is accounted for, what is kept is what the recipe says, and other tools can read it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from dataset_builder.build import main
from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.schema import DROPPED, SAMPLES
from dataset_builder.sql.dataset_files import open_stored, read_dataset
from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.storage.folder import Folder
from tests.dataset_builder.dataset.built import ask, built, check_that_the_funnel_adds_up
from tests.dataset_builder.small_run import SmallRun, write_run_with_images


def test_every_image_of_the_run_is_a_sample_or_dropped_with_its_reason(config: BuildConfig) -> None:
    with built(config) as database:
        assert ask(database, "SELECT key FROM samples ORDER BY key") == [(f"img_{n}",) for n in (0, 1, 2, 3, 5)]
        assert ask(database, "SELECT key, run, step, reason FROM dropped ORDER BY key") == [
            ("img_4", "owls", "rejected", "broken"),
            ("img_6", "owls", "captioned", "not captioned yet"),
            ("img_7", "owls", "captioned", "not captioned yet"),
        ]
        check_that_the_funnel_adds_up(database, planned=8)


def test_a_sample_has_the_captions_of_all_prompts_with_their_figures(config: BuildConfig) -> None:
    with built(config) as database:
        (captions, nouns, alt_text), *_ = ask(database, "SELECT captions, nouns, alt_text FROM samples WHERE key = 'img_0'")
        assert alt_text == "An owl and a tree."
        assert [caption["prompt"] for caption in captions] == ["dense", "short"]
        short = captions[1]
        assert (short["opener"], short["repetition"], short["meta_share"]) == ("an image of", 0.0, 0.5)
        assert nouns == [["owl", "house", "tree", "sky"], ["image", "owl"]]
        assert (
            ask(database, "SELECT prompt, caption FROM captions WHERE key = 'img_0' ORDER BY prompt")[1][1] == short["caption"]
        )


def test_repetition_is_the_share_of_nouns_named_before(config: BuildConfig, tmp_path: Path) -> None:
    run = SmallRun(captions={"dense": "An owl and an owl and an owl in a tree."}).write(Folder(str(tmp_path / "again")))
    with built(replace(config, captions=(run.url,))) as database:
        assert ask(database, "SELECT repetition FROM captions LIMIT 1") == [(0.5,)]


def test_a_condition_drops_captions_and_images_go_with_their_last_one(config: BuildConfig) -> None:
    with built(replace(config, where="num_nouns > 2 OR key = 'img_1'")) as database:
        assert ask(database, "SELECT key, len(captions) FROM samples ORDER BY key") == [
            ("img_0", 1), ("img_1", 2), ("img_2", 1), ("img_3", 1), ("img_5", 1)]  # fmt: skip
    wanted = replace(config, out=config.out + "-2", where="score >= 1 AND key IN (SELECT key FROM nouns WHERE noun = 'sky')")
    with built(wanted) as database:  # a carried column, and a question to a view
        assert ask(database, "SELECT key FROM samples ORDER BY key") == [("img_2",), ("img_3",), ("img_5",)]
        check_that_the_funnel_adds_up(database, planned=8)


def test_steps_drop_what_they_say(config: BuildConfig) -> None:
    steps = {
        "min_side_px": replace(config, min_side_px=49),
        "max_aspect": replace(config, max_aspect=1.3),
        "statuses": replace(config, statuses=("refusal",)),
        "prompts": replace(config, prompts=("other",)),
        "least": replace(config, least={"clip_mean": 0.2}),
        "where": replace(config, where="false"),
    }
    for step, strict in steps.items():
        funnel = build_dataset(replace(strict, dry_run=True)).funnel.to_pylist()
        assert [row["step"] for row in funnel if row["dropped"] == 5] == [step]
        with pytest.raises(UserError, match=f"no image is left: the step {step}"):
            build_dataset(strict)
    assert not Path(config.out).exists()


def test_quantiles_are_of_the_captions_that_are_left(config: BuildConfig) -> None:
    with built(replace(config, prompts=("dense",), quantiles={"score": (0.25, 0.75)})) as database:
        assert ask(database, "SELECT key FROM samples ORDER BY key") == [("img_1",), ("img_2",), ("img_3",)]  # of 0 1 2 3 5


def test_each_split_has_its_share_and_a_condition_comes_in_its_turn(config: BuildConfig, tmp_path: Path) -> None:
    run = SmallRun(num_images=2000, unit_size=1000, rejected=()).write(Folder(str(tmp_path / "many")))
    splits: dict[str, float | str] = {"validation": 0.1, "best": "score >= 900", "train": 0.8}
    many = replace(config, captions=(run.url,), splits=splits)
    with built(many) as database:
        sizes = dict(ask(database, "SELECT split, count(*) FROM samples GROUP BY split"))
        assert 150 < sizes["validation"] < 250
        assert ask(database, "SELECT count(*) FROM images WHERE split = 'train' AND score >= 900") == [(0,)]
        assert 150 < sizes["best"] < 200
        assert read_dataset(many.out).splits == sizes
        check_that_the_funnel_adds_up(database, planned=2000)
        validation = ask(database, "SELECT key FROM samples WHERE split = 'validation' ORDER BY key")
    fewer = replace(many, out=many.out + "-2", where="score < 500")
    with built(fewer) as database:  # an image keeps its split in another recipe
        again = ask(database, "SELECT key FROM samples WHERE split = 'validation' ORDER BY key")
        assert again == [row for row in validation if int(row[0].removeprefix("img_")) < 1000]


def test_noun_counts_and_macros_agree_with_the_captions(config: BuildConfig) -> None:
    with built(replace(config, splits={"validation": 0.5, "train": 0.5})) as database:
        counted = "SELECT prompt, noun, count, count_t5, num_captions FROM noun_counts ORDER BY ALL"
        figures = "count(*), count(*) FILTER (read_by_t5), count(DISTINCT key)"
        recounted = f"SELECT prompt, noun, {figures} FROM nouns GROUP BY ALL ORDER BY ALL"
        assert ask(database, counted) == ask(database, recounted)
        by_index = ask(database, "SELECT key, prompt FROM with_all(['owl', 'sky', 'owl']) ORDER BY ALL")
        assert by_index == ask(database, "SELECT key, prompt FROM captions WHERE with_all(nouns, ['owl', 'sky']) ORDER BY ALL")
        assert len(by_index) == 5
        whole = ask(database, "SELECT count_a, count_b FROM compare('dense', 'short') WHERE noun = 'owl'")
        assert whole == [(5, 5)]


def test_building_again_changes_nothing_and_another_recipe_is_refused(config: BuildConfig) -> None:
    first = build_dataset(config)
    before = {path: path.read_bytes() for path in Path(config.out).rglob("*") if path.is_file()}
    second = build_dataset(config)
    assert second.funnel.equals(first.funnel.cast(second.funnel.schema))
    assert {path: path.read_bytes() for path in Path(config.out).rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="another recipe"):
        build_dataset(replace(config, where="num_nouns > 2"))


def test_an_interrupted_build_is_done_again_and_other_folders_are_left_alone(config: BuildConfig, run: str) -> None:
    build_dataset(config)
    out = Folder(config.out)
    record = json.loads(out.read("dataset.json"))
    out.filesystem.rm_file(out.path("dataset.json"))
    with pytest.raises(UserError, match="holds other files"):
        build_dataset(config)
    out.write("unfinished.txt", b"")
    out.write("samples/train/part-00007.parquet", b"left behind")
    build_dataset(config)
    assert json.loads(out.read("dataset.json"))["files"] == record["files"]  # with the same digests
    assert not out.exists("samples/train/part-00007.parquet")
    with pytest.raises(UserError, match="holds other files"):
        build_dataset(replace(config, out=run))


def test_files_are_as_other_tools_want_them(config: BuildConfig) -> None:
    build_dataset(config)
    dataset = read_dataset(config.out)
    for record in dataset.record["files"]:
        file = pq.ParquetFile(Path(config.out) / record["path"])
        assert file.metadata.num_rows == record["rows"]
        assert file.schema_arrow.metadata[b"t2i_foundry.schema_version"] == b"1"
    samples = pq.read_table(Path(config.out) / dataset.paths("samples", split="train")[0])
    assert samples.schema.equals(SAMPLES)
    assert samples["key"].to_pylist() == sorted(samples["key"].to_pylist())
    assert pq.read_table(Path(config.out) / dataset.paths("dropped")[0]).schema.equals(DROPPED)
    assert samples.to_pandas()["bucket"].tolist() == ["0.72"] * 5  # 48 / 64 lies in the middle: the smaller ratio


def test_embedded_images_are_images_for_datasets(config: BuildConfig, tmp_path: Path) -> None:
    run = write_run_with_images(tmp_path)
    with built(replace(config, captions=(run,), embed=True)) as database:
        assert ask(database, "SELECT key FROM samples WHERE uri IS NULL") == [("img_0",)]
        assert ask(database, "SELECT key, step, reason FROM dropped ORDER BY key")[:2] == [
            ("img_1", "embed", "unreadable"),
            ("img_2", "embed", "the image has changed since it was captioned"),
        ]
        check_that_the_funnel_adds_up(database, planned=3)
    import datasets

    loaded = datasets.load_dataset("parquet", data_dir=f"{config.out}/samples/train", cache_dir=str(tmp_path / "cache"))[
        "train"
    ]
    assert loaded[0]["image"].size == (64, 48)
    assert loaded[0]["captions"][1]["caption"] == "An image of an owl."


def test_on_object_storage(config: BuildConfig) -> None:
    run = SmallRun().write(Folder("memory://bucket/run"))
    out = "memory://bucket/dataset"
    with built(replace(config, captions=(run.url,), out=out)) as database:
        assert ask(database, "SELECT count(*) FROM samples") == [(5,)]
    Folder(out).filesystem.rm("/bucket", recursive=True)


def test_the_card_tells_what_is_in_and_what_is_not(config: BuildConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(replace(config, name="owls of the small world", where="num_nouns > 2")) == 0
    card = (Path(config.out) / "README.md").read_text()
    shown = [
        "# owls of the small world",
        "where: num_nouns > 2",
        "captioned: not captioned yet",
        "LAION-LLaVA",
        "not stated; ask",
    ]
    assert [text for text in shown if text not in card] == []
    printed = capsys.readouterr().out
    assert "owls is not finished: built from the 2 of 3 units that are committed" in printed
    assert f"{config.out}: train 5" in printed


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("CC-BY-4.0", "CC-BY-4.0"), {"license": "cc-by-4.0"}),
        (("CC0-1.0", "CC-BY-4.0"), {"license": ["cc-by-4.0", "cc0-1.0"]}),
        (("CC0-1.0", ""), {"license": "other", "license_name": "cc0-1.0-not-stated-for-all-images"}),
    ],
)
def test_the_front_matter_of_the_card_carries_the_licences_of_the_runs(
    tmp_path: Path, licences: tuple[str, str], expected: dict[str, Any]
) -> None:
    runs = []
    for number, licence in enumerate(licences):
        run = SmallRun(content_hashes={f"img_{n}": f"{number}{n}" for n in range(8)}).write(
            Folder(str(tmp_path / f"run{number}"))
        )
        record = json.loads(run.read("run.json"))
        run.write("run.json", json.dumps(record | {"licence": licence}).encode())
        runs.append(run.url)
    build_dataset(BuildConfig(captions=tuple(runs), out=str(tmp_path / "dataset"), splits={"train": 1.0}))
    _, head, body = (tmp_path / "dataset" / "README.md").read_text().split("---\n", 2)
    front_matter = yaml.safe_load(head)
    assert {name: value for name, value in front_matter.items() if name.startswith("license")} == expected
    assert all(f"Licence and terms of the images: {licence or 'not stated'}" in body for licence in licences)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("num_nons > 2", "there is no column num_nons: did you mean num_nouns"),
        ("true; SELECT 1", "syntax error"),
        ("true) OR (true", "syntax error"),
        ("key IN (SELECT content FROM read_text('/etc/hostname'))", "only reads the views"),
        ("num_nouns > 'many'", "correct the SQL"),
    ],
)
def test_sql_that_is_wrong_is_one_clear_line(config: BuildConfig, where: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        build_dataset(replace(config, where=where))
    assert message in str(error.value)


def test_the_recipe_of_the_demo_is_read_and_its_steps_are_taken(
    config: BuildConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(__file__).parents[3] / "examples/openmoji/recipe.yaml"
    options = ["--config", str(recipe), "--min_side_px", "48", "--captions", *config.captions, "--out", config.out, "--dry_run"]
    assert run_command(BuildConfig, main, prog="build", example="", argv=options) == 0
    printed = capsys.readouterr().out
    assert "no perceptual hash to compare" in printed
    assert "a dry run: nothing is written" in printed


def test_other_mistakes(config: BuildConfig, run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a captioning run"):
        build_dataset(replace(config, captions=(str(tmp_path / "nothing"),)))
    with pytest.raises(UserError, match="is given twice: name each run once"):
        build_dataset(replace(config, captions=(run, f"{run}/")))
    record = json.loads(Folder(run).read("run.json"))
    record["settings"]["tagger"]["version"] = "4"
    other = SmallRun().write(Folder(str(tmp_path / "other")))
    other.write("run.json", json.dumps(record).encode())
    with pytest.raises(UserError, match="another tagger"):
        build_dataset(replace(config, captions=(run, other.url)))
    with pytest.raises(ValueError, match="sum to at most 1.*identifier|letters, digits"):
        replace(config, splits={"a b": 0.5})
    with pytest.raises(ValueError, match="sum to at most 1"):
        replace(config, splits={"a": 0.9, "b": 0.2})


def test_another_schema_version_is_refused(config: BuildConfig) -> None:
    build_dataset(config)
    path = Path(config.out) / "dataset.json"
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(UserError, match="schema version 1, this program reads 2: build it again"):
        open_stored(config.out)
