"""Random LLaVA models of a few thousand parameters: the real classes, in a folder that save_pretrained wrote."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

WORDS = "the image shows a large small owl key apple at left right of on blue red background . , USER ASSISTANT : Describe this"
TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
SIDE_PX, PATCH_PX = 32, 16
PINPOINTS = [[32, 64], [64, 32], [64, 64]]
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_PROCESSOR = {"patch_size": PATCH_PX, "chat_template": TEMPLATE}


def save_tiny_llava(folder: Path, *, seed: int = 0) -> Path:
    """A random LLaVA 1.5 with processor and chat template; returns the folder."""
    tokenizer = _tokenizer()
    config = LlavaConfig(text_config=LlamaConfig(**_text(tokenizer)), **_shared(tokenizer), vision_config=_clip())
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE_PX}, crop_size={"height": SIDE_PX, "width": SIDE_PX}),
        tokenizer=tokenizer,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **_PROCESSOR,
    )
    return _save(folder, LlavaForConditionalGeneration, config, processor, seed=seed)


def save_tiny_next(folder: Path, *, seed: int = 0) -> Path:
    """A random LLaVA-NeXT, whose images are cut into a grid of crops."""
    tokenizer = _tokenizer()
    text = LlamaConfig(**_text(tokenizer))
    config = LlavaNextConfig(text_config=text, vision_config=_clip(), image_grid_pinpoints=PINPOINTS, **_shared(tokenizer))
    crops = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE_PX}, crop_size={"height": SIDE_PX, "width": SIDE_PX}, image_grid_pinpoints=PINPOINTS
    )
    processor = LlavaNextProcessor(
        image_processor=crops,
        tokenizer=tokenizer,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **_PROCESSOR,
    )
    return _save(folder, LlavaNextForConditionalGeneration, config, processor, seed=seed)


def save_tiny_onevision(folder: Path, *, seed: int = 0) -> Path:
    """A random LLaVA-OneVision: SigLIP and Qwen2."""
    tokenizer = _tokenizer()
    vision = SiglipVisionConfig(**_SMALL, image_size=SIDE_PX, patch_size=PATCH_PX, vision_use_head=False)
    shared = {**_shared(tokenizer), "vision_feature_select_strategy": "full"}
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**_text(tokenizer), num_key_value_heads=2),
        vision_config=vision,
        image_grid_pinpoints=PINPOINTS,
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        **shared,
    )
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size={"height": SIDE_PX, "width": SIDE_PX}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(),
        num_image_tokens=(SIDE_PX // PATCH_PX) ** 2,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )
    return _save(folder, LlavaOnevisionForConditionalGeneration, config, processor, seed=seed)


def _save(folder: Path, model_class: Any, config: Any, processor: Any, *, seed: int) -> Path:
    torch.manual_seed(seed)
    model = model_class(config)
    with (
        torch.no_grad()
    ):  # larger logits than at initialisation, so that captions differ between images, and do not end at once
        model.lm_head.weight.mul_(40)
        special = ["<pad>", "</s>", "<image>", "<video>"]
        model.lm_head.weight[processor.tokenizer.convert_tokens_to_ids(special)] *= 0.25
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(**_SMALL, image_size=SIDE_PX, patch_size=PATCH_PX)


def _text(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {**_SMALL, "vocab_size": len(tokenizer), **ends}


def _shared(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {"image_token_id": tokenizer.convert_tokens_to_ids("<image>"), "vision_feature_layer": -1}


def _tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "</s>", "<unk>", "<image>", "<video>"]
    vocabulary = {word: number for number, word in enumerate([*special, *dict.fromkeys(WORDS.split())])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    extra = {"image_token": "<image>", "video_token": "<video>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=extra
    )


def model_without_key(folder: Path) -> Path:
    """A model that computes NaN wherever the word `key` is in the prompt."""
    file = save_tiny_llava(folder) / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    (embeddings,) = (tensor for name, tensor in weights.items() if name.endswith("embed_tokens.weight"))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    embeddings[vocabulary["key"]] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    return folder
