"""Rewritten prompts: what a prompt states is kept or the prompt is drawn as written, and each is written once."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from foundry.command_line import run_command
from foundry.errors import UserError
from model import generate, rewrite
from model.formats.checkpoint import PartConfig, PipelineConfig
from model.rewriting.config import RewriteConfig
from model.rewriting.rewriter import RewriterRecord, open_rewriter
from model.rewriting.rewriting import open_prompt_rewriter
from model.rewriting.stated import lost_words
from tests.chat_server import JudgeServer, Reply, fails, judge_server, says
from tests.model.tiny_parts import save_tiny_checkpoint

PROMPTS = ("a red owl", "a blue key")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("rewriting"), objective="rectified_flow"))


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(_dense) as running:
        yield running


def _asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"]).rpartition("Prompt: ")[2]


def _dense(body: dict[str, Any]) -> Reply:
    return says(f"{_asked(body)} on the left", model="m")


def _rewriter(server: JudgeServer, checkpoint: str, **settings: Any) -> Any:
    return open_prompt_rewriter(RewriteConfig(model="m", url=server.url, tries=1, **settings), checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("prompt", "rewritten", "lost"),
    [
        ("a picture of an owl on the left", "An owl is on the left.", []),
        ("an owl and two keys", "There is an owl, a key at the top and a key at the bottom.", []),
        ("three keys", "A key is next to another key.", ["three"]),
        ("3 keys", "Three keys.", []),
        ("cherries in boxes", "A box holds a cherry.", []),
        ("a red owl", "An owl on a branch.", ["red"]),
        ("a big owl on top, blue background", "A large owl is at the top of a blue background.", []),
        ("a big owl", "An owl.", ["big"]),
        ("", "An owl.", []),
    ],
)
def test_a_lost_word_is_found(prompt: str, rewritten: str, lost: list[str]) -> None:
    assert lost_words(prompt, rewritten, RewriterRecord(synonyms={"big": ["large"]})) == lost


def test_ignored_words_may_go() -> None:
    assert lost_words("an owl in the upper corner", "An owl.", RewriterRecord(ignored_words=("upper", "corner"))) == []


def test_each_prompt_is_asked_for_once(server: JudgeServer, checkpoint: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    rewriter = _rewriter(server, checkpoint)
    first = rewriter.rewrite([*PROMPTS, PROMPTS[0]], cache=cache)
    assert first.drawn(PROMPTS) == tuple(f"{prompt} on the left" for prompt in PROMPTS)
    assert len(server.bodies) == 2
    body = server.bodies[0]
    assert (body["model"], body["temperature"]) == ("m", 0) and "Keep all that is stated" in body["messages"][0]["content"]
    assert rewriter.rewrite(PROMPTS, cache=cache) == first
    assert len(server.bodies) == 2
    _rewriter(server, checkpoint, body={"seed": 1}).rewrite(PROMPTS, cache=cache)  # other texts may come of another request
    assert len(server.bodies) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_a_damaged_file_of_the_cache_is_named(server: JudgeServer, checkpoint: str, tmp_path: Path) -> None:
    rewriter = _rewriter(server, checkpoint)
    rewriter.rewrite(PROMPTS, cache=str(tmp_path))
    damaged = sorted(tmp_path.iterdir())[0]
    damaged.write_text("{")
    with pytest.raises(UserError, match=f"{damaged.name} holds no rewritten prompt: remove it"):
        rewriter.rewrite(PROMPTS, cache=str(tmp_path))


def test_of_two_writers_the_first_decides(server: JudgeServer, checkpoint: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    rewriter = _rewriter(server, checkpoint)

    def overtaken(body: dict[str, Any]) -> Reply:
        server.reply = lambda body: says("a red owl at the top", model="m")
        rewriter.rewrite(PROMPTS[:1], cache=cache)
        return _dense(body)

    server.reply = overtaken
    assert rewriter.rewrite(PROMPTS[:1], cache=cache).drawn(PROMPTS[:1]) == ("a red owl at the top",)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (says(""), "the rewriter wrote nothing"),
        (says("a red owl", finish_reason="length"), "did not finish"),
        (says("a red owl on", finish_reason="content_filter"), "the rewriter wrote nothing"),
        (says("a red owl " * 30), "of which the text encoder reads 20"),
        (says("an owl"), "the rewritten prompt no longer says: red"),
    ],
)
def test_a_bad_answer_leaves_the_prompt_as_it_is_and_says_so(
    server: JudgeServer, checkpoint: str, reply: Reply, problem: str
) -> None:
    server.reply = lambda body: reply if "red" in _asked(body) else _dense(body)
    rewriting = _rewriter(server, checkpoint).rewrite(PROMPTS, cache=None)
    assert rewriting.drawn(PROMPTS) == ("a red owl", "a blue key on the left")
    assert problem in rewriting.summary() and "1 of 2 prompts rewritten by m" in rewriting.summary()


def test_an_endpoint_that_goes_away_keeps_what_it_answered(server: JudgeServer, checkpoint: str, tmp_path: Path) -> None:
    server.reply = lambda body: fails(503) if "blue" in _asked(body) else _dense(body)
    cache, rewriter = str(tmp_path / "cache"), _rewriter(server, checkpoint, concurrency=1)
    with pytest.raises(UserError, match=r"the rewriter at http://.* does not answer .*; the same command resumes"):
        rewriter.rewrite(PROMPTS, cache=cache)
    server.reply = _dense
    server.bodies.clear()
    assert _rewriter(server, checkpoint).rewrite(PROMPTS, cache=cache).drawn(PROMPTS)[0] == "a red owl on the left"
    assert [_asked(body) for body in server.bodies] == ["a blue key"]


def test_an_image_says_what_it_was_drawn_of(server: JudgeServer, checkpoint: str, tmp_path: Path) -> None:
    server.reply = lambda body: says("an owl") if "red" in _asked(body) else _dense(body)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    common = [f"--checkpoint={checkpoint}", "--num_inference_steps=1", "--dtype=float32"]
    argv = [*common, f"--prompts_file={prompts}", "--rewrite.model=m", f"--rewrite.url={server.url}", f"--out={tmp_path / 'a'}"]
    assert _generate(argv) == 0
    found = {path.name: _texts(path) for path in (tmp_path / "a").iterdir()}
    assert found["a-blue-key-s0.png"]["rewritten_prompt"] == "a blue key on the left"
    assert found["a-blue-key-s0.png"]["prompt"] == "a blue key"
    assert "rewritten_prompt" not in found["a-red-owl-s0.png"]
    assert json.loads(found["a-red-owl-s0.png"]["settings"])["rewriter"] == "m"
    assert _generate([*common, "--prompt=a blue key on the left", f"--out={tmp_path / 'b.png'}"]) == 0
    with Image.open(tmp_path / "a" / "a-blue-key-s0.png") as one, Image.open(tmp_path / "b.png") as other:
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1


def test_the_command_writes_both_prompts(server: JudgeServer, checkpoint: str, tmp_path: Path) -> None:
    argv = [f"--checkpoint={checkpoint}", "--prompt=a blue key", f"--rewrite.url={server.url}", "--rewrite.model=m"]
    argv += [f"--out={tmp_path / 'texts.jsonl'}"]
    assert run_command(rewrite.RewriteCommandConfig, rewrite.main, prog="python -m model.rewrite", example="", argv=argv) == 0
    row = json.loads((tmp_path / "texts.jsonl").read_text())
    text = "a blue key on the left"
    assert row == {"prompt": "a blue key", "rewritten": text, "drawn": text, "problem": ""}


def test_an_instruct_model_is_asked_by_its_template(tmp_path: Path, checkpoint: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(checkpoint).parent / "t5")
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no chat template and no rewriter.json: give an instruct model"):
        open_rewriter(str(tmp_path))
    tokenizer.chat_template = "{% for one in messages %}{{ one.content }}.{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    rewriter = open_rewriter(str(tmp_path), max_tokens=4)
    ids = rewriter._inputs(["a red owl", "owl"])
    seen = tokenizer.batch_decode(ids.input_ids, skip_special_tokens=True)
    assert all("Keep all that is stated" in text for text in seen)
    assert seen[0].endswith("a red owl.") and seen[1].endswith("owl.")
    assert sorted(index for index, _ in rewriter.rewrite(["a red owl", "owl"])) == [0, 1]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: RewriteConfig(model="checkpoint"), "pipeline.json of this checkpoint names no rewriter"),
        (lambda: RewriteConfig(model="./nowhere"), "there is no rewriter in nowhere"),
    ],
)
def test_a_rewriter_that_is_not_there_is_one_line(checkpoint: str, config: Callable[[], RewriteConfig], said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_prompt_rewriter(config(), checkpoint=checkpoint)


def test_pipeline_json_names_a_rewriter_only_where_there_is_one() -> None:
    plain = PipelineConfig(objective="diffusion", resolution=64)
    assert "rewriter" not in plain.to_dict() and PipelineConfig.from_dict(plain.to_dict()) == plain
    named = PipelineConfig(objective="diffusion", resolution=64, rewriter=PartConfig(name="mini", fingerprint="0f"))
    assert PipelineConfig.from_dict(named.to_dict()) == named


def _generate(argv: list[str]) -> int:
    return run_command(generate.GenerateConfig, generate.main, prog="python -m model.generate", example="", argv=argv)


def _texts(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        image.load()
        return dict(image.text)  # type: ignore[attr-defined]
