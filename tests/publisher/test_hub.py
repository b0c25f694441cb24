"""Data sets and models on the hub: what is pushed is what is pulled, also after a kill; what the hub refuses is one line."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfFileSystem, constants
from PIL import Image

from dataset_builder.dataset.building import build_and_report
from dataset_builder.dataset.recipe import BuildConfig
from dataset_builder.reports.card import in_markdown
from dataset_builder.sql.dataset_files import DATASET_RECORD, open_stored, read_stored
from foundry.commands import STARTED_BY_T2I
from foundry.errors import UserError
from foundry.reporting.lines import OUTPUT
from foundry.storage.folder import Folder
from foundry.storage.hub import Repository
from foundry.storage.locations import describe, open_binary, walk
from model.formats.checkpoint import checkpoint_fingerprint, find_checkpoint
from publisher import pull, push
from publisher.licences import licence_to_keep
from tests.hub_server import TOKEN, HubServer, StoredRepository
from tests.trainer.tiny_training import tiny_config, write_store
from trainer import fit

NAME = "me/owls"


def pushed(path: Path | str, name: str = NAME, **changes: Any) -> int:
    return push.main(push.PushConfig(path=str(path), repository=name, **changes))


def pulled(out: Path, name: str = NAME, **changes: Any) -> int:
    return pull.main(pull.PullConfig(repository=name, out=str(out), **changes))


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not _is_of_the_hub(path)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def without_card(files: dict[str, bytes]) -> dict[str, bytes]:
    """The card has the name of its repository."""
    return {name: content for name, content in files.items() if name != "README.md"}


def _is_of_the_hub(path: Path) -> bool:
    return ".cache" in path.parts or path.name == ".gitattributes"


def test_a_data_set_comes_back_as_it_was(
    hub: HubServer, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pushed(dataset) == 0
    said = capsys.readouterr().out
    assert f"{hub.url}/datasets/{NAME}: private" in said
    assert "warning: paths on this machine, such as /data/img_0.jpg, refer to 5 images" in said
    repository = hub.repositories["dataset", NAME]
    assert repository.private and list(repository.files)[-1] == DATASET_RECORD, "the record comes last"
    assert DATASET_RECORD not in list(repository.commits.values())[-2]
    assert pulled(tmp_path / "copy") == 0
    assert contents(tmp_path / "copy") == hub.files(NAME)
    assert without_card(hub.files(NAME)) == without_card(contents(dataset))
    with open_stored(str(tmp_path / "copy")) as copy, open_stored(str(dataset)) as original:
        sql = "SELECT * FROM captions ORDER BY key, prompt"
        assert copy.fetch(sql).equals(original.fetch(sql))
    assert "look around with" in capsys.readouterr().out


def test_what_is_there_is_not_sent_again(hub: HubServer, dataset: Path, tmp_path: Path) -> None:
    pushed(dataset)
    num_uploads, commits = len(hub.uploaded_oids), len(hub.repositories["dataset", NAME].commits)
    hub.requests.clear()
    pushed(dataset)
    assert not [request for request in hub.requests if "preupload" in request or "/commit" in request]
    assert (len(hub.uploaded_oids), len(hub.repositories["dataset", NAME].commits)) == (num_uploads, commits)
    pulled(tmp_path / "copy")
    hub.requests.clear()
    pulled(tmp_path / "copy")
    assert not [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]


def test_progress_is_told_to_programs(
    hub: HubServer, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(OUTPUT, "format", "json")
    pushed(dataset)
    pulled(dataset.parent / "copy")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    ends = {line["what"]: line for line in lines if line["event"] == "progress_end"}
    for what, count in {f"push {NAME}": len(contents(dataset)), f"pull {NAME}": len(contents(dataset)) + 1}.items():
        assert ends[what]["done"] == ends[what]["total"] == count and ends[what]["megabytes"] > 0, what


def test_a_push_that_was_killed_is_finished_by_the_same_command(hub: HubServer, dataset: Path, tmp_path: Path) -> None:
    hub.held_from = 2
    killed_when(lambda: len(hub.uploaded_oids) == 2, "push", str(dataset), NAME, home=tmp_path)
    first = list(hub.uploaded_oids)
    assert len(first) == 2
    with pytest.raises(UserError, match="me/owls has no dataset.json and no t2i.json: its push is not finished"):
        pulled(tmp_path / "half")
    hub.held_from = None
    hub.release.set()
    pushed(dataset)
    assert without_card(hub.files(NAME)) == without_card(contents(dataset))
    large = {hashlib.sha256(data).hexdigest() for data, of_lfs in hub.repositories["dataset", NAME].files.values() if of_lfs}
    assert len(large) > 2, "some were not there when it was killed"
    assert {hub.uploaded_oids.count(oid) for oid in first} == {1}, "what was there is not sent again"


def test_a_pull_that_was_killed_is_finished_by_the_same_command(hub: HubServer, dataset: Path, tmp_path: Path) -> None:
    pushed(dataset)
    hub.downloaded.clear()
    hub.held_downloads_from = 3
    killed_when(lambda: len(hub.downloaded) == 3, "pull", NAME, str(tmp_path / "copy"), home=tmp_path)
    hub.held_downloads_from = None
    hub.release.set()
    there = {path for path in hub.downloaded[:3] if (tmp_path / "copy" / path).is_file()}
    hub.downloaded.clear()
    pulled(tmp_path / "copy")
    assert contents(tmp_path / "copy") == hub.files(NAME)
    assert there and not there & set(hub.downloaded), "what was there is not fetched again"


def killed_when(condition: Callable[[], bool], command: str, *arguments: str, home: Path) -> None:
    """Starts a command, and kills it once the condition holds."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "home")}
    process = subprocess.Popen([sys.executable, "-m", f"publisher.{command}", *arguments], env=environment)
    until = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)  # the answers that were on their way arrive
    process.kill()
    process.wait()
    assert condition()


def test_other_files_are_replaced_only_if_told(hub: HubServer, dataset: Path) -> None:
    pushed(dataset)
    repository = hub.repositories["dataset", NAME]
    repository.files["samples/old.parquet"] = (b"old", True)
    repository.files[DATASET_RECORD] = (b"{}", False)
    repository.commit("by somebody")
    with pytest.raises(UserError, match=r"me/owls holds other files \(dataset.json, samples/old.parquet\)") as refused:
        pushed(dataset)
    assert refused.value.setting == "replace"
    pushed(dataset, replace=True)
    assert without_card(hub.files(NAME)) == without_card(contents(dataset))


def test_a_public_repository_is_asked_for(hub: HubServer, dataset: Path) -> None:
    with pytest.raises(UserError, match="has images whose licence is not stated"):
        pushed(dataset, public=True)
    assert not hub.repositories, "nothing is created before"
    pushed(dataset, public=True, licence="cc-by-4.0")
    assert not hub.repositories["dataset", NAME].private
    card = hub.files(NAME)["README.md"].decode()
    assert "license: cc-by-4.0\n" in card and "Licence of this data set: cc-by-4.0." in card
    assert "## Concept density" in card and "task_categories" in card
    assert "\n# owls\n" in card and f'datasets.load_dataset("{NAME}", split="train")' in card
    assert f"`t2i query hf://datasets/{NAME}`" in card and "dataset/samples" not in card
    with pytest.raises(UserError, match="me/owls is public"):
        pushed(dataset, licence="cc-by-4.0")


def test_a_licence_that_was_named_is_kept(hub: HubServer, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    terms = "For research | see\nhttps://example.org/terms"
    pushed(dataset, licence=terms, public=True)
    card = hub.files(NAME)["README.md"]
    assert "license_name: for-research-see-https-example.org-terms\n" in card.decode()
    assert "Licence of this data set: For research \\| see https://example.org/terms." in card.decode()
    pushed(dataset, public=True)
    assert "keeps the licence that its card names: For research | see https://example.org/terms" in capsys.readouterr().out
    assert hub.files(NAME)["README.md"] == card
    repository = Repository(name=NAME, kind="dataset")
    with pytest.raises(UserError, match="has the licence For research .*, data has mit: name the one that holds") as refused:
        licence_to_keep(repository, ["MIT"], path="data")
    assert refused.value.setting == "licence"
    assert licence_to_keep(repository, [terms], path="data") == ""


@pytest.mark.parametrize("token", ["hf_wrong", ""])
def test_a_token_that_the_hub_refuses(hub: HubServer, dataset: Path, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(
        UserError, match=r"the hub refuses me/owls \(401: Invalid credentials.*\): set HF_TOKEN to a token that may write"
    ) as refused:
        pushed(dataset)
    assert not token or token not in str(refused.value)


def test_a_repository_of_somebody_else(hub: HubServer, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the hub refuses you/owls \(403: You don't have the rights .*\): .* may write there"):
        pushed(dataset, "you/owls")
    with pytest.raises(UserError, match=r"the hub has no you/owls that your token can read: .* a token that may read there"):
        pulled(tmp_path / "copy", "you/owls")
    with pytest.raises(UserError, match="expected a repository USER/NAME, found owls"):
        pushed(dataset, "owls")


def test_offline_and_out_of_reach_are_one_line(
    hub: HubServer, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: run this without it"):
        pushed(dataset)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: run this without it"):
        pulled(tmp_path / "copy", kind="dataset")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"me/owls is out of reach at http://127.0.0.1:9 .*run this again to resume"):
        pushed(dataset)


def test_a_network_opens_in_diffusers(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import PixArtAlphaPipeline

    assert pushed("mini", "me/mini") == 0
    commits = len(hub.repositories["model", "me/mini"].commits)
    assert pushed("mini", "me/mini") == 0
    assert len(hub.repositories["model", "me/mini"].commits) == commits, "the same weights are the same files"
    assert pulled(tmp_path / "mini", "me/mini") == 0
    assert "--source diffusers --target native" in capsys.readouterr().out
    pipeline = PixArtAlphaPipeline.from_pretrained(tmp_path / "mini")
    assert pipeline.transformer.num_parameters() > 1e6
    facts = json.loads((tmp_path / "mini" / "t2i.json").read_text())
    assert facts["fingerprint"] == checkpoint_fingerprint(find_checkpoint("mini"))
    card = (tmp_path / "mini" / "README.md").read_text()
    assert 'PixArtAlphaPipeline.from_pretrained("me/mini")' in card and "pipeline_tag: text-to-image" in card
    assert "license_name: " in card and in_markdown(facts["licence"]) in card
    assert str(Path.cwd()) not in card + json.dumps(facts), "no paths of this machine"


def test_what_is_neither_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="nosuch does not exist: give the folder of a data set, of a checkpoint, or of a"
    ) as error:
        pushed("nosuch", "me/nosuch")
    assert error.value.setting == "path"
    with pytest.raises(UserError, match="has no dataset.json, pipeline.json or checkpoints/: give the folder of a data set"):
        pushed(tmp_path, "me/nosuch")


def test_commands_are_named_as_typed(hub: HubServer, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = STARTED_BY_T2I.set(True)
    try:
        pushed(dataset)
        pulled(dataset.parent / "copy")
    finally:
        STARTED_BY_T2I.reset(token)
    said = capsys.readouterr().out
    assert "fetch it with t2i pull me/owls FOLDER" in said and "look around with t2i query " in said
    assert "python -m" not in said


def test_a_control_is_refused_with_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "pipeline.json").touch()
    (tmp_path / "transformer" / "control.safetensors").touch()
    with pytest.raises(UserError, match="is a control, .* --target controlnet .* hf upload me/control OUT"):
        pushed(tmp_path, "me/control")


def test_a_lora_opens_in_generate(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from model.formats.adapters import open_adapters
    from model.lora.settings import parse_choices

    assert pushed("mini-few-steps", "me/lora") == 0
    assert pulled(tmp_path / "lora", "me/lora") == 0
    assert "draw with it" in capsys.readouterr().out
    (adapter,) = open_adapters(parse_choices((str(tmp_path / "lora"),)), "mini")
    assert adapter.adapter.layers
    assert "PeftModel.from_pretrained" in (tmp_path / "lora" / "README.md").read_text()


def test_no_token_gets_into_what_is_pushed(hub: HubServer, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pushed(dataset)
    assert TOKEN.encode() not in b"".join(hub.files(NAME).values())
    assert TOKEN not in capsys.readouterr().out


def test_a_data_set_is_built_and_asked_on_the_hub(hub: HubServer, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, run = f"hf://datasets/{NAME}", str(dataset.parent / "owls")
    config = BuildConfig(captions=(run,), out=url, splits={"train": 1.0})
    assert build_and_report(config) == 0
    assert hub.repositories["dataset", NAME].private
    with open_stored(url) as there, open_stored(str(dataset)) as here:
        sql = "SELECT key, prompt, caption FROM captions ORDER BY ALL"
        assert there.fetch(sql).equals(here.fetch(sql))
    HfFileSystem.clear_instance_cache()
    assert build_and_report(config) == 0
    assert f"{url} is built already" in capsys.readouterr().out
    with pytest.raises(UserError, match="expected hf://datasets/USER/NAME"):
        build_and_report(replace(config, out="hf://me/owls"))


@pytest.mark.slow
def test_the_code_of_a_pushed_card_reads_the_data_set(hub: HubServer, dataset: Path, tmp_path: Path) -> None:
    """DuckDB alone is left out: its extension httpfs, which reads hf://, cannot be loaded offline."""
    assert pushed(dataset) == 0
    code = hub.files(NAME)["README.md"].decode().partition("```python\n")[2].partition("```")[0].splitlines()
    lines = [f"print(list(({line}).to_dict()['key'].values()))" for line in code if line.startswith("pandas.")]
    lines += [f"print({line}['key'][:])" for line in code if line.startswith("datasets.")]
    assert len(lines) == 2 and len(code) == 3
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", "import datasets, pandas\n" + "\n".join(lines)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    with open_stored(str(dataset)) as stored:
        keys = stored.fetch("SELECT key FROM samples")["key"].to_pylist()
    assert [sorted(json.loads(line.replace("'", '"'))) for line in found.stdout.splitlines()] == [sorted(keys)] * 2, (
        found.stderr
    )


def test_images_on_the_hub_are_a_source(hub: HubServer, tmp_path: Path) -> None:
    repository = StoredRepository(private=True, name="dataset me/pictures")
    for number in range(3):
        Image.new("RGB", (64, 48), (80 * number, 0, 0)).save(tmp_path / "image.png")
        repository.files[f"images/a{number}.png"] = ((tmp_path / "image.png").read_bytes(), True)
    repository.commit("images")
    hub.repositories["dataset", "me/pictures"] = repository
    folder = "hf://datasets/me/pictures/images"
    assert [listing.files for listing in walk(folder)] == [["a0.png", "a1.png", "a2.png"]]
    details = describe(f"{folder}/a1.png")
    assert details.num_bytes == len(repository.files["images/a1.png"][0]) and details.modified, "a change is noticed"
    with open_binary(f"{folder}/a2.png") as file, Image.open(file) as image:
        assert image.size == (64, 48) and image.convert("RGB").getpixel((0, 0)) == (160, 0, 0)


@pytest.mark.parametrize("url", ["hf://datasets/me/nothing/images", "hf://me/owls"])
def test_what_is_not_on_the_hub_gets_its_own_advice(hub: HubServer, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such file or folder; check the name USER/NAME .* your token") as refused:
        describe(url)
    assert ("a data set's path begins with hf://datasets/" in str(refused.value)) == (url == "hf://me/owls")
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(
        UserError, match="is neither a run nor a data set: .* the path in it, and set HF_TOKEN if it is private"
    ):
        read_stored(url)


def test_runs_are_not_written_to_the_hub(hub: HubServer) -> None:
    for write in (Folder.create, Folder.write):
        with pytest.raises(UserError, match="write to a folder, then push that: python -m publisher.push FOLDER USER/NAME"):
            write(Folder("hf://datasets/me/run"), "run.json", b"{}")
    assert not hub.requests


def test_the_card_of_a_training_has_its_facts(hub: HubServer, tmp_path: Path) -> None:
    """Samples, losses and evaluation too; an evaluation of other weights is refused."""
    write_store(tmp_path / "features")
    config = tiny_config(tmp_path, images=20)
    assert fit.main(config) == 0
    run, evaluation = Path(config.run_folder), tmp_path / "evaluation"
    (run / "samples").mkdir()
    for images_seen in (12, 20, 99):
        Image.new("RGB", (8, 8)).save(run / "samples" / f"{images_seen:012d}.png")
    evaluation.mkdir()
    (evaluation / "summary.md").write_text("| owls | 0.5 |\n")
    (evaluation / "evaluation.json").write_text('{"benchmark": "prompts", "checkpoint": "another"}')
    changes = {"copy_parts": False, "licence": "apache-2.0", "evaluation": (str(evaluation),)}
    with pytest.raises(UserError, match="evaluates other weights"):
        pushed(run, "me/net", **changes)
    fingerprint = checkpoint_fingerprint(find_checkpoint(run))
    (evaluation / "evaluation.json").write_text(json.dumps({"benchmark": "prompts", "checkpoint": fingerprint}))
    assert pushed(run, "me/net", **changes) == 0
    files = hub.files("me/net", "model")
    card, facts = files["README.md"].decode(), json.loads(files["t2i.json"])
    assert (
        "license: apache-2.0" in card
        and "| owls | 0.5 |" in card
        and "| images seen | 20 (20 of 16 px in batches of 4) |" in card
    )
    assert "![samples](samples/000000000020.png)" in card and "samples/000000000020.png" in files
    assert facts["training"]["images_seen"] == 20 and facts["training"]["last"]["validation"]["images_seen"] == 20
    assert str(tmp_path) not in card + json.dumps(facts)
