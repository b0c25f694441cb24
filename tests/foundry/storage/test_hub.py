"""A hub that answers, refuses, or is not there: each is one answer at once. The hub is a small server on this machine."""

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": json.dumps({"model_type": "llava", "vision_config": {"image_size": 64}}).encode(),
    "model.safetensors": save({"one": np.zeros((3, 5), np.float16), "two": np.zeros(7, np.float16)}),
}
ASK_MODEL = """
import json, sys, time
from captioner.engines.model_source import resolve_model
from foundry.errors import UserError
for name in sys.argv[1:]:
    started = time.monotonic()
    try:
        source = resolve_model(*name.split("@")[:1], revision=(name.split("@") + [None])[1])
        print(json.dumps([source.name, source.revision, source.on_hub, source.num_parameters]))
    except UserError as error:
        print(error)
    if time.monotonic() - started > 15:
        print("as long as six tries", file=sys.stderr)
"""

ASK_PART = """
import sys
from foundry.errors import UserError
from model.encoders.frozen_parts import find_part
for name in sys.argv[1:]:
    try:
        part = find_part(name, "vae")
        print(part.name, part.revision, *sorted(file.name for file in part.folder.iterdir()))
    except UserError as error:
        print(error)
"""

ASK_T5 = """
import sys
from dataset_builder.concepts.t5_view import T5Config, T5View
print(T5View(T5Config(tokenizer=sys.argv[1])).measure(["red owls"])[0].num_t5_tokens)
"""


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of one: files of one repository, and words for what there is not."""

    def do_HEAD(self) -> None:
        path, is_api = self.path.partition("?")[0].removeprefix("/api/models"), self.path.startswith("/api/")
        _, name, *rest = path.strip("/").split("/")
        revision, file = rest[1] if rest else "main", "config.json" if is_api else rest[2]
        if name == "unwell":
            self.send_response(503)
            self.end_headers()
            return
        error = {"gated": "GatedRepo", "nothing": "RepoNotFound"}.get(name, "")
        error = error or ("" if revision in ("main", COMMIT) else "RevisionNotFound")
        error = error or ("" if file in FILES else "EntryNotFound")
        self.send_response(403 if error == "GatedRepo" else 404 if error else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if is_api and not error:
            files = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in FILES.items()]
            self.answer(json.dumps(files if "/tree/" in path else {"id": "some/vae", "sha": COMMIT}).encode())
            return
        if error:
            self.send_header("X-Error-Code", error)
        else:
            self.send_header("ETag", f'"{sha256(FILES[file]).hexdigest()}"')
            self.send_header("Content-Length", str(len(FILES[file])))
        self.end_headers()
        if not error and self.command == "GET":
            self.wfile.write(FILES[file])

    do_GET = do_HEAD  # noqa: N815

    def answer(self, body: bytes) -> None:
        """Ends the headers and sends this JSON."""
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(*names: str, hub: str, home: Path, script: str = ASK_MODEL) -> tuple[list[str], str]:
    """Lines and standard error of a process that looks for names, with the hub at an address."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", script, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    return done.stdout.splitlines(), done.stderr


def test_what_the_hub_has_is_fetched_and_then_found_without_it(hub: str, tmp_path: Path) -> None:
    found, said = ask("some/llava", f"some/llava@{COMMIT}", hub=hub, home=tmp_path)
    assert [json.loads(line) for line in found] == [["some/llava", COMMIT, True, 22]] * 2, said
    (later,), _ = ask("some/llava", hub="http://127.0.0.1:9", home=tmp_path)
    assert json.loads(later)[:3] == ["some/llava", COMMIT, True]


def test_what_the_hub_refuses_is_said_in_words(hub: str, tmp_path: Path) -> None:
    names = ["some/nothing", "some/gated", "some/llava@v2", "a b", "some/unwell"]
    reasons = [
        "the hub has nothing by that name, or HF_TOKEN does not open it",
        "its licence has to be accepted on the hub first, and HF_TOKEN set",
        "it has no revision v2",
        "that is neither a folder nor a hub id",
        "the hub is out of reach, and its cache on this machine does not have it",
    ]
    lines, said = ask(*names, hub=hub, home=tmp_path)
    for name, line, reason in zip(names, lines, reasons, strict=True):
        advice = "fetch it first, or give a folder"
        assert line == f"{name.split('@')[0]} is unavailable ({reason}): {advice}", said


def test_a_part_of_a_pipeline_is_fetched_or_its_lack_is_said_in_the_same_words(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES, "diffusion_pytorch_model.safetensors", FILES["model.safetensors"])
    names = {
        "some/nothing": "the hub has nothing by that name, or HF_TOKEN does not open it",
        "some/gated": "its licence has to be accepted on the hub first, and HF_TOKEN set",
        "some/a b": "that is neither a folder nor a hub id",
        "some/unwell": "the hub is out of reach, and its cache on this machine does not have it",
    }
    lines, said = ask("some/vae", *names, hub=hub, home=tmp_path, script=ASK_PART)
    found = f"some/vae {COMMIT} config.json diffusion_pytorch_model.safetensors"
    assert lines[0] == found, said
    advice = "fetch it first, or give a folder"
    assert lines[1:] == [f"{name} is unavailable ({reason}): {advice}" for name, reason in names.items()], said
    (later,), _ = ask("some/vae", hub="http://127.0.0.1:9", home=tmp_path, script=ASK_PART)
    assert later == found


def test_a_repository_of_a_variant_alone_is_named_with_what_to_do(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES, "diffusion_pytorch_model.fp16.safetensors", FILES["model.safetensors"])
    monkeypatch.delitem(FILES, "model.safetensors")
    (line,), said = ask("some/vae", hub=hub, home=tmp_path, script=ASK_PART)
    assert line.startswith("some/vae only holds its weights as a variant (diffusion_pytorch_model.fp16.safetensors)"), said


def test_without_a_network_there_is_one_line_at_once(tmp_path: Path) -> None:
    lines, said = ask("some/llava", hub="http://127.0.0.1:9", home=tmp_path)
    assert (len(lines), said) == (1, "")
    assert "the hub is out of reach" in lines[0]


def test_the_hubs_t5_has_spiece_model_alone(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    ids: dict[str, Any] = {
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
        "vocab_size": 30,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    SentencePieceTrainer.train(sentence_iterator=iter(["red owls", "an owl", "a red fish"]), model_writer=file, **ids)
    monkeypatch.setitem(FILES, "spiece.model", file.getvalue())
    expected = str(len(SentencePieceProcessor(model_proto=file.getvalue()).encode("red owls")) + 1)
    for address in (hub, "http://127.0.0.1:9"):
        assert ask("some/t5", hub=address, home=tmp_path, script=ASK_T5) == ([expected], "")
