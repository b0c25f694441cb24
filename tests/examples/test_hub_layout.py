"""llava-mini opens elsewhere: its weights have the hub's names, and say the same under transformers' own."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from examples.openmoji.composition import draw_scene, render
from examples.openmoji.evaluate_captions import EvaluateConfig, caption_scenes
from examples.openmoji.llava_mini import IMAGE_TOKEN, NUM_IMAGE_TOKENS, PROMPTS, build_model, chat_text, hub_name
from examples.openmoji.llava_training import _save

LLAVA = Path(__file__).resolve().parents[2] / "captioner/pretrained/llava-mini"
WEIGHTS = "model.safetensors"
SCENES = [draw_scene(seed=77, index=index, split="unseen") for index in range(6)]
VLLM_PYTHON = os.environ.get("VLLM_PYTHON", sys.executable if find_spec("vllm") else "")
"""The interpreter of an environment with vLLM: it pins another transformers, so it is seldom this one."""

_IN_VLLM = """
import json, sys
from PIL import Image
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    model, question, *images = sys.argv[1:]
    llm = LLM(model=model, dtype="float32", enforce_eager=True, max_model_len=512, limit_mm_per_prompt={"image": 1})
    inputs = [{"prompt": question, "multi_modal_data": {"image": Image.open(path)}} for path in images]
    said = llm.generate(inputs, SamplingParams(temperature=0, max_tokens=160))
    print("captions", json.dumps([one.outputs[0].text.strip() for one in said]))
"""


@pytest.fixture(scope="module")
def own_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llava-mini as transformers 5 would save it."""
    folder = tmp_path_factory.mktemp("own") / "llava-mini"
    shutil.copytree(LLAVA, folder)
    tensors = load_file(LLAVA / WEIGHTS)
    save_file({name.replace(".vision_model.", "."): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)
    return folder


def test_the_shipped_weights_have_the_names_of_llava_15_on_the_hub() -> None:
    names = set(load_file(LLAVA / WEIGHTS))
    assert {
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "vision_tower.vision_model.pre_layrnorm.weight",
        "multi_modal_projector.linear_1.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
    } <= names
    assert all(hub_name(name) == name for name in names)


def test_transformers_reads_both_layouts_and_they_say_the_same(own_layout: Path) -> None:
    assert set(load_file(own_layout / WEIGHTS)) != set(load_file(LLAVA / WEIGHTS))
    processor = AutoProcessor.from_pretrained(LLAVA)
    images = [Image.fromarray(render(scene)) for scene in SCENES]
    inputs = processor(images=images, text=[f"<s>USER: <image>\n{PROMPTS['dense']} ASSISTANT:"] * 6, return_tensors="pt")
    logits = []
    for folder in (LLAVA, own_layout):
        model, found = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.inference_mode():
            logits.append(model.eval()(**inputs).logits)
    assert torch.equal(*logits) and logits[0].std() > 0.1
    hub, own = (caption_scenes(EvaluateConfig(model=str(folder)), SCENES) for folder in (LLAVA, own_layout))
    assert hub == own and len(set(hub)) == 6


def test_a_training_saves_the_hubs_names_and_the_same_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(LLAVA)
    model = build_model(tokenizer)
    _save(model, tokenizer, tmp_path / "model")
    assert set(load_file(tmp_path / "model" / WEIGHTS)) == set(load_file(LLAVA / WEIGHTS))
    assert not list((tmp_path / "model").glob("*.partial"))
    read = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.bfloat16).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(read[name], tensor.to(torch.bfloat16)), name


@pytest.mark.slow
@pytest.mark.skipif(
    not VLLM_PYTHON, reason="vLLM is not installed here: set VLLM_PYTHON to the python of an environment that has it"
)
def test_vllm_reads_it_and_captions_as_transformers_does(tmp_path: Path) -> None:
    images = [tmp_path / f"{index}.png" for index in range(len(SCENES))]
    for path, scene in zip(images, SCENES, strict=True):
        Image.fromarray(render(scene)).save(path)
    (tmp_path / "in_vllm.py").write_text(_IN_VLLM)
    question = chat_text(PROMPTS["dense"]).replace(IMAGE_TOKEN * NUM_IMAGE_TOKENS, IMAGE_TOKEN)
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command = [VLLM_PYTHON, str(tmp_path / "in_vllm.py"), str(LLAVA), question, *map(str, images)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=os.environ | settings)
    assert done.returncode == 0, done.stderr[-2000:]
    said = next(line for line in done.stdout.splitlines() if line.startswith("captions "))
    assert json.loads(said.removeprefix("captions ")) == caption_scenes(EvaluateConfig(model=str(LLAVA)), SCENES)
