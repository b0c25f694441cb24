"""CLIP score over lists of prompts: it equals a direct calculation, and lists are read with their categories."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from foundry.command_line import run_command
from foundry.errors import UserError
from model.generation.image_files import image_names
from tests.dataset_builder.tiny_clip import write_tiny_clip
from trainer import evaluate
from trainer.evaluation.benchmark import Benchmark
from trainer.evaluation.benchmarks.prompts import open_benchmark
from trainer.evaluation.config import EvaluateConfig, PromptsConfig

LONG = "a very long prompt of many words that goes on and on until nobody reads it any more, last of all a CLIP"
ROWS = [("a red owl", "birds"), ("two blue keys, one of them small", "things"), (LONG, "things"), ("a red owl", "others")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


def test_the_score_is_the_cosine_of_a_direct_calculation(clip: Path, tmp_path: Path) -> None:
    texts = list(dict.fromkeys(text for text, _ in ROWS))
    rng, images = np.random.default_rng(0), []
    (tmp_path / "images").mkdir()
    for name in image_names(texts, range(3)):
        images.append(Image.fromarray(rng.integers(0, 256, size=(40, 60, 3), dtype=np.uint8)))
        images[-1].save(tmp_path / "images" / name)
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    settings = [f"--prompts.file={tmp_path / 'prompts.txt'}", f"--prompts.clip={clip}", f"--out={tmp_path / 'out'}"]
    argv = ["--benchmark=prompts", f"--images={tmp_path / 'images'}", "--judge_dtype=float32", *settings]
    assert run_command(EvaluateConfig, evaluate.main, prog="python -m trainer.evaluate", example="", argv=argv) == 0

    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    model.eval()
    with torch.inference_mode():
        seen = model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
        read = model.encode_text(open_clip.get_tokenizer(f"local-dir:{clip}")(texts), normalize=True)
    expected = (seen * read).sum(dim=1).tolist()
    rows = {row["prompt"]: row for row in pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()}
    assert [rows[text]["value"] for text in texts] == pytest.approx(expected, abs=2e-3)
    assert np.ptp(expected) > 0.02
    assert ["cut off at 12 tokens" in rows[text]["seen"] for text in texts] == [False, False, True]
    (score, over_all) = json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]
    assert score["value"] == over_all["value"] == pytest.approx(np.mean(expected), abs=2e-3)


def _opened(settings: PromptsConfig) -> Benchmark:
    return open_benchmark(EvaluateConfig(benchmark="prompts", out="out", images="images", prompts=settings))


def _write(path: Path) -> Path:
    table = {"caption": [text for text, _ in ROWS], "kind": [kind for _, kind in ROWS]}
    if path.suffix == ".parquet":
        pq.write_table(pa.table(table), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"caption": text, "kind": kind}) + "\n" for text, kind in ROWS))
    else:
        comma = "\t" if path.suffix == ".tsv" else ","
        path.write_text(f"caption{comma}kind\n" + "".join(f'"{text}"{comma}{kind}\n' for text, kind in ROWS))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_prompts_come_with_their_categories_each_once(tmp_path: Path, suffix: str) -> None:
    file = str(_write(tmp_path / f"list{suffix}"))
    benchmark = _opened(PromptsConfig(file=file, column="caption", category_column="kind", clip=None))
    assert [(prompt.text, prompt.category) for prompt in benchmark.prompts] == ROWS[:3]
    without = _opened(PromptsConfig(file=file, column="caption", clip=None, limit=2))
    assert [(prompt.text, prompt.category) for prompt in without.prompts] == [(text, "list") for text, _ in ROWS[:2]]


def test_prompts_of_our_own_are_a_first_try(clip: Path) -> None:
    benchmark = _opened(PromptsConfig(clip=str(clip)))
    assert len(benchmark.prompts) == 8
    assert list(benchmark.judges) == ["clip"]
    assert not benchmark.set_metrics
    assert benchmark.own_seeds  # images of one noise are alike, which a Fréchet distance must not measure


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("list.csv", {"column": "text"}, "has no column 'text', it has caption, kind: choose one"),
        ("list.csv", {"column": "caption", "category_column": "genre"}, "has no column 'genre', it has caption, kind"),
        ("list.parquet", {"column": "text"}, "has no column 'text', it has caption, kind"),
        (
            "quotes.csv",
            {"column": "caption", "category_column": "kind"},
            "double quote in line 2 makes one row of lines 2 to 4",
        ),
        ("list.txt", {"category_column": "kind"}, "has no columns"),
        ("list.yaml", {}, r"expected \.txt, \.jsonl, \.csv or \.tsv"),
        ("none.parquet", {}, "cannot be read"),
        ("empty.parquet", {"column": "caption"}, "are empty"),
        ("gap.parquet", {"column": "caption"}, "row 2: expected text in caption"),
    ],
)
def test_lists_that_cannot_be_read_are_one_line(tmp_path: Path, name: str, settings: dict[str, Any], complaint: str) -> None:
    for suffix in (".csv", ".parquet", ".txt", ".yaml"):
        _write(tmp_path / f"list{suffix}")
    (tmp_path / "quotes.csv").write_text('caption,kind\n"an owl,a\na key,b\na tree",a\n')
    pq.write_table(pa.table({"caption": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    pq.write_table(pa.table({"caption": ["a cup", " "]}), tmp_path / "gap.parquet")
    with pytest.raises(ValueError, match=complaint):
        _opened(PromptsConfig(file=str(tmp_path / name), clip=None, **settings))


def test_a_clip_that_is_unavailable_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a CLIP of open_clip"):
        _opened(PromptsConfig(clip=str(tmp_path)))
