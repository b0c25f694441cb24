"""A structured run, from the questions to SQL, data set and features: a server answers with the truth of scenes, or as told."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from captioner.config import CaptionConfig
from captioner.run import main
from captioner.status import StatusConfig
from captioner.status import main as show_status
from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.dataset.webdataset import export_shards
from dataset_builder.reports.sections import gallery, statuses
from dataset_builder.runs.status import read_status
from dataset_builder.sql.database import Database
from dataset_builder.sql.dataset_files import open_stored, read_dataset
from dataset_builder.sql.run_files import open_run
from examples.openmoji.kinds import KIND_BY_NAME
from examples.openmoji.structured import structured_caption
from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.storage.run_record import RunRecord
from foundry.units.commits import read_commits
from tests.captioner.conftest import run_arguments, save_pictures
from tests.captioner.structured_scenes import MODEL, NUM_SCENES, SCENES, captioned, drawn, run, scenes, truthful
from tests.chat_server import Reply, fails, judge_server, says
from tests.foundry.units.plain_loop import run_plainly
from tests.trainer.tiny_sources import make_features, tiny_precompute
from trainer.features.store import FeatureStore, SampleRequest

__all__ = ["run", "scenes"]  # fixtures


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundry.units.run.run_job", run_plainly)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def rows(database: Database, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in database.fetch(sql).to_pylist()]


def red_left_of_the_centre() -> int:
    return sum(
        KIND_BY_NAME[thing.kind].color == "red" and thing.x_px + thing.width_px / 2 < 32
        for scene in drawn().values()
        for thing in scene.objects
    )


def red_objects(database: Database) -> int:
    sql = r"SELECT count(*) FROM caption_objects WHERE regexp_matches(description, '\bred\b') AND center_x < 500"
    return int(rows(database, sql)[0][0])


def test_sql_counts_red_objects_left_of_the_centre(run: str) -> None:
    assert red_left_of_the_centre() > 2
    with open_run(run) as database:
        assert red_objects(database) == red_left_of_the_centre()
        objects = sum(len(scene.objects) for scene in drawn().values())
        assert rows(database, "SELECT count(*), count(colors), max(object) FROM caption_objects") == [(objects, objects, 3)]
        ((path, kind, text, value),) = rows(
            database, "SELECT path, type, text, value->>'desc' = description FROM caption_objects ORDER BY key, object LIMIT 1"
        )
        assert (path, kind, text, value) == ("$.compositional_deconstruction.elements[0]", "object", None, True)


def test_objects_of_other_schemas_have_boxes_and_descriptions(scenes: Path, tmp_path: Path) -> None:
    """Qwen3-VL's own boxes begin with the left edge; an object may have a label or a name."""
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("name: p\nversion: 1\nprompts: [{name: q, text: Q, schema: {type: object}}]")
    pan, cup = {"bbox_2d": [700, 0, 900, 200], "label": "a pan"}, {"bbox": [0, 700, 200, 900], "name": "a cup"}
    captioner = truthful(scenes)
    captioner.spoil = lambda key, number, truth: says(json.dumps({"all": [pan, cup, {"name": "no box"}]}), model=MODEL)
    with captioned(scenes, tmp_path / "run", captioner, "--prompts", str(prompts), "--limit", "1", "--unit_size", "1"):
        pass
    with open_run(str(tmp_path / "run")) as database:
        found = rows(database, "SELECT description, y0, x0, y1, x1, center_x FROM caption_objects ORDER BY object")
    assert found == [("a pan", 0, 700, 200, 900, 800), ("a cup", 0, 700, 200, 900, 800)]


def test_the_value_is_a_column_and_prose_has_none(run: str) -> None:
    truths = {key: structured_caption(scene, seed=SCENES.seed) for key, scene in drawn().items()}
    with open_run(run) as database:
        found = rows(database, "SELECT key, caption, value, caption_raw FROM captions WHERE prompt = 'structured'")
        assert {key: json.loads(caption) for key, caption, *_ in found} == truths
        assert all(json.loads(value) == json.loads(raw) and caption == value for _, caption, value, raw in found)
        assert all(len(caption) < len(raw) for _, caption, _, raw in found), "compact"
        whole = "SELECT key, value->>'$.high_level_description' FROM captions WHERE value IS NOT NULL"
        assert dict(rows(database, whole)) == {key: truth["high_level_description"] for key, truth in truths.items()}
        prose = rows(database, "SELECT status, finish_reason, num_tokens, value, caption FROM captions WHERE value IS NULL")
        assert {row[:4] for row in prose} == {("ok", "rendered", 0, None)}
        assert len(prose) == NUM_SCENES and not any("{" in row[4] for row in prose)


def test_a_structured_caption_is_merged_and_refined_as_prose(run: str, tmp_path: Path) -> None:
    with open_run(run) as database:
        ((key, prose),) = rows(database, "SELECT key, caption FROM captions WHERE value IS NULL ORDER BY key LIMIT 1")
    more = ["--captions_from", run, "--only", f"SELECT '{key}' AS key", "--model", "m", "--t5.tokenizer", "mini"]
    for prompts, quoted in (("merge", f'describe this image: "{prose}" Write'), ("refine", f'is "{prose}" Compare')):
        with judge_server(lambda body: says("An owl.", model=MODEL)) as server:
            arguments = [*more, "--out", str(tmp_path / prompts), "--prompts", prompts, "--engine", "endpoint"]
            arguments += ["--endpoint.url", server.url]
            assert run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments) == 0
            assert quoted in server.texts()[-1]


def test_density_is_counted_over_values_and_prose(run: str) -> None:
    with open_run(run) as database:
        nouns = {noun for (noun,) in rows(database, "SELECT DISTINCT noun FROM nouns WHERE prompt = 'structured'")}
        kinds = {thing.kind for scene in drawn().values() for thing in scene.objects}
        assert not kinds - nouns and {"background", "illustration"} <= nouns
        assert not nouns & {"element", "elements", "bbox", "object", "text", "description", "palette", "desc", "deconstruction"}
        by_prompt = rows(database, "SELECT prompt, num_captions, valid_nouns FROM density() WHERE counted = 'written'")
        assert [row[:2] for row in by_prompt] == [("structured", NUM_SCENES), ("structured_prose", NUM_SCENES)]
        assert rows(database, "SELECT count(DISTINCT prompt) FROM noun_counts") == [(2,)]
        tokens = dict(rows(database, "SELECT prompt, min(num_t5_tokens) FROM captions GROUP BY ALL"))
        assert tokens["structured"] > 3 * tokens["structured_prose"]


def test_the_run_says_what_its_captions_depend_on(run: str) -> None:
    record = RunRecord.read(Folder(run))
    assert record is not None
    assert record.structured_prompts == ["structured"]
    assert record.prompt_names == ["structured", "structured_prose"]
    assert record.settings["structured_version"] == 2
    assert "high_level_description" in record.settings["prompts"]["prompts"][0]["schema"]


def test_a_data_set_and_features_hold_both_ways_to_say_it(run: str, tmp_path: Path) -> None:
    out = str(tmp_path / "dataset")
    where = "value IS NULL OR value->>'$.style_description.medium' = 'digital illustration'"
    build_dataset(BuildConfig(captions=(run,), out=out, where=where))
    with open_stored(run) as of_run, open_stored(out) as of_dataset:
        assert red_objects(of_dataset) == red_objects(of_run) == red_left_of_the_centre()
        captions = "SELECT key, prompt, caption, value FROM captions ORDER BY key, prompt"
        assert rows(of_dataset, captions) == rows(of_run, captions)
        expected = {(key, prompt): caption for key, prompt, caption, _ in rows(of_run, captions)}
    assert (
        export_shards(read_dataset(out), str(tmp_path / "tars"), prompt="structured", images_per_shard=100, num_workers=1) == 0
    )
    with tarfile.open(next((tmp_path / "tars" / "train").glob("*.tar"))) as tar:
        for member in (one for one in tar if one.name.endswith(".txt")):
            text = tar.extractfile(member)
            assert text is not None
            assert text.read().decode() == expected[member.name.removesuffix(".txt"), "structured"]
    config = tiny_precompute(tmp_path, Path(out))
    make_features(config)
    features = FeatureStore.open(f"{config.out}/alignment/32")
    found = {}
    for unit, num_rows in next(iter(features.samples("train").values())):
        for row in range(num_rows):
            for number, name in enumerate(features.caption_names(unit, row)):
                batch = features.read([SampleRequest(unit=unit, row=row, caption=number)])
                assert batch.texts is not None
                found[batch.keys[0], name] = batch.texts[0]
    assert {name for _, name in found} >= {"structured", "structured_prose"}
    assert {pair: text for pair, text in found.items() if pair[1] != "alt_text"}.items() <= expected.items()


def test_captions_of_two_runs_are_addressed_under_both_names(run: str, scenes: Path, tmp_path: Path) -> None:
    with captioned(scenes, tmp_path / "other", truthful(scenes), "--generation.seed", "1", "--limit", "10"):
        pass
    out = str(tmp_path / "dataset")
    build_dataset(BuildConfig(captions=(run, str(tmp_path / "other")), out=out))
    with open_stored(out) as database:
        found = rows(database, "SELECT prompt, count(*) FROM captions WHERE value IS NOT NULL GROUP BY ALL ORDER BY ALL")
        assert found == [("other/structured", 10), ("run/structured", NUM_SCENES)]
        assert rows(database, "SELECT count(DISTINCT prompt) FROM caption_objects") == [(2,)]


def test_the_report_shows_prose_and_counts_statuses(run: str) -> None:
    with open_stored(run) as database:
        assert statuses(database).rows == [["structured", "ok", NUM_SCENES], ["structured_prose", "ok", NUM_SCENES]]
        shown = gallery(database, number=5)
    assert len(shown.pictures) == 5 and not any("{" in picture.caption for picture in shown.pictures)


def test_what_is_invalid_is_asked_for_again_twice_and_then_kept_raw(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = sorted(drawn())
    late, never, cut, fenced = keys[0], keys[11], keys[12], keys[23]

    def spoil(key: str, number: int, truth: str) -> Reply:
        if key == never or (key == late and number < 3):
            return says('{"high_level_description": "<image> An owl"}', model=MODEL)
        if key == cut:
            return says(truth[:100], finish_reason="length", model=MODEL)
        return says(f"```json\n{truth}\n```" if key == fenced else truth, model=MODEL)

    captioner = truthful(scenes)
    captioner.spoil = spoil
    with captioned(scenes, tmp_path / "run", captioner) as server:
        assert captioner.tries == {key: 3 if key in (late, never, cut) else 1 for key in keys}
        again = [text for text in server.texts() if "An earlier answer could not be used" in text]
    assert len(again) == 6
    assert sum("$: 'style_description' is a required property" in text for text in again) == 4
    assert sum("it was cut after 15 tokens; be shorter" in text for text in again) == 1
    assert not any("<image>" in text for text in again)
    with open_run(str(tmp_path / "run")) as database:
        bad = rows(
            database, "SELECT key, prompt, caption, value, caption_raw FROM captions WHERE status = 'invalid_json' ORDER BY ALL"
        )
        raw = '{"high_level_description": "<image> An owl"}'
        assert [(key, prompt, caption, value) for key, prompt, caption, value, _ in bad] == [
            (key, prompt, "", None) for key in (never, cut) for prompt in ("structured", "structured_prose")
        ]
        assert bad[0][4] == raw and len(bad[2][4]) == 100 and bad[1][4] == ""
        tokens = dict(rows(database, "SELECT key, num_tokens FROM captions WHERE prompt = 'structured'"))
    assert tokens == {key: 45 if key in (late, never, cut) else 15 for key in keys}
    commits = read_commits(Folder(str(tmp_path / "run")))
    assert sum(commit.num_tokens for commit in commits) == 15 * (NUM_SCENES + 6)
    assert sum(commit.num_input_tokens for commit in commits) == 900 * (NUM_SCENES + 6)
    status = read_status(Folder(str(tmp_path / "run")))
    assert status.captions_by_status == {"invalid_json": 2} and "; captions: 2 invalid_json" in status.line()
    assert "warning: none of" not in capsys.readouterr().err
    build_dataset(BuildConfig(captions=(str(tmp_path / "run"),), out=str(tmp_path / "dataset")))
    with open_stored(str(tmp_path / "dataset")) as database:
        assert rows(database, "SELECT count(*) FROM samples") == [(NUM_SCENES - 2,)]
        assert rows(database, "SELECT count(*) FROM captions WHERE caption = ''") == [(0,)]


def test_images_of_invalid_json_are_captioned_in_a_run_of_their_own_and_joined(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A retry names the way, by a command whose query works; a data set of both runs has one name for the one prompt."""
    bad = sorted(drawn())[:2]
    captioner, first, second = truthful(scenes), tmp_path / "run", tmp_path / "again"
    captioner.spoil = lambda key, number, truth: says("{" if key in bad else truth, model=MODEL)
    with captioned(scenes, first, captioner):
        pass
    only = "SELECT key FROM captions WHERE status = 'invalid_json'"
    advice = f'--captions_from {first} --only "{only}" --out NEW'
    assert advice in capsys.readouterr().out, "at the end of the run"
    assert show_status(StatusConfig(run=str(first))) == 0 and advice in capsys.readouterr().out
    with captioned(scenes, first, captioner, "--retry_rejected"):
        pass
    said = capsys.readouterr().out
    assert "nothing to retry: no image is rejected\n" in said
    assert "2 captions with the status invalid_json, whose images are not rejected: " in said and said.count(advice) == 1
    with pytest.raises(ValueError, match="retry_rejected: invalid_json is a status of captions") as raised:
        CaptionConfig(images=["i"], out=str(first), model="m", retry_rejected=["invalid_json"])
    assert f'--captions_from {first} --only "{only}" --out NEW' in str(raised.value)
    captioner.spoil = lambda key, number, truth: says(truth, model=MODEL)
    with judge_server(captioner) as server:
        arguments = [
            "--captions_from",
            str(first),
            "--only",
            only,
            "--out",
            str(second),
            "--model",
            "m",
            "--engine",
            "endpoint",
        ]
        arguments += ["--endpoint.url", server.url, "--t5.tokenizer", "mini", "--prompts", "structured"]
        assert run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments) == 0
    assert "2 planned = 2 captioned + 0 rejected" in capsys.readouterr().out
    for runs in ([first, second], [second, first]):
        out = tmp_path / f"dataset-of-{runs[0].name}"
        build_dataset(BuildConfig(captions=tuple(map(str, runs)), out=str(out)))
        with open_stored(str(out)) as database:
            found = rows(database, "SELECT prompt, count(*), count(DISTINCT key) FROM captions GROUP BY ALL ORDER BY ALL")
            assert found == [(name, NUM_SCENES, NUM_SCENES) for name in ("structured", "structured_prose")]


def test_a_model_that_never_follows_the_schema_is_said_after_the_first_unit(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captioner = truthful(scenes)
    captioner.spoil = lambda key, number, truth: says("An owl.", model=MODEL)
    with captioned(scenes, tmp_path / "run", captioner, "--limit", "10"):
        pass
    said = capsys.readouterr()
    assert "10 captioned" in said.out and "captions: 10 invalid_json" in said.out
    assert "none of the 10 structured captions of unit 0 follows its schema" in said.err


def test_an_engine_without_constraints_is_asked_three_times(tmp_path: Path, tiny_llava: Path) -> None:
    images, prompts = save_pictures(tmp_path / "images", count=3), tmp_path / "prompts.yaml"
    prompts.write_text(
        "name: p\nversion: 1\nprompts: [{name: q, text: a key, schema: {type: object}}, {name: plain, text: an owl}]"
    )
    arguments = run_arguments(images, tmp_path / "run", tiny_llava, "--generation.dtype", "float32", "--prompts", str(prompts))
    assert run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments) == 0
    with open_run(str(tmp_path / "run")) as database:
        found = rows(
            database,
            "SELECT prompt, status, caption_raw <> '', num_tokens > 12, count(*) FROM captions GROUP BY ALL ORDER BY ALL",
        )
    assert found == [
        ("plain", "ok", True, False, 3),
        ("q", "invalid_json", True, True, 3),
        ("q_prose", "invalid_json", False, False, 3),
    ]


def test_a_server_that_takes_no_schema_is_said_before_work_begins(scenes: Path, tmp_path: Path) -> None:
    captioner = truthful(scenes)

    def reply(body: dict[str, Any]) -> Reply:
        return fails(400, "no response_format here") if "response_format" in body else captioner(body)

    with judge_server(reply) as server:
        arguments = ["--images", str(scenes), "--out", str(tmp_path / "run"), "--model", "m", "--engine", "endpoint"]
        arguments += [
            "--endpoint.url",
            server.url,
            "--endpoint.tries",
            "1",
            "--t5.tokenizer",
            "mini",
            "--prompts",
            "structured",
        ]
        job = _job(arguments)
        with pytest.raises(UserError, match="add response_format: null to the request's fields") as raised:
            job.check(job.load_engine())
        assert raised.value.setting == "endpoint.body"
        job = _job([*arguments, "--endpoint.body", '{"response_format": null}'])
        job.check(job.load_engine())


def _job(arguments: list[str]) -> Any:
    from captioner.runs.job import caption_job

    found: list[Any] = []

    def keep(config: CaptionConfig) -> int:
        found.append(caption_job(config))
        return 0

    assert run_command(CaptionConfig, keep, prog="python -m captioner.run", example="", argv=arguments) == 0
    return found[0]


def test_the_order_of_a_schemas_keys_is_part_of_the_run_and_no_schema_leaves_it_as_it_was(scenes: Path, tmp_path: Path) -> None:
    captioner = truthful(scenes)
    with judge_server(captioner) as server:
        arguments = ["--images", str(scenes), "--out", str(tmp_path / "run"), "--model", "m", "--engine", "endpoint"]
        arguments += ["--endpoint.url", server.url, "--t5.tokenizer", "mini"]
        ids = {}
        for names in ("a b", "b a"):
            path = tmp_path / "prompts.yaml"
            properties = json.dumps({name: {"type": "string"} for name in names.split()})
            path.write_text(
                f"name: p\nversion: 1\nprompts: [{{name: q, text: Q, schema: {{type: object, properties: {properties}}}}}]"
            )
            ids[names] = _job([*arguments, "--prompts", str(path)]).run_id
        plain = _job(arguments)
    assert ids["a b"] != ids["b a"]
    assert "structured_version" not in plain.settings
    assert plain.settings["prompts"]["prompts"] == [
        {"name": "dense", "text": plain.prompts.prompts[0].text, "fallback": None}
    ], "as runs of before have it"
    assert replace(plain.prompts.prompts[0], schema='{"type": "object"}').caption_names == ("dense", "dense_prose")
