"""Random models of the classes that people caption with: real classes and processors of a few thousand parameters, in folders
that save_pretrained wrote. LLaVA's are in tiny_llava.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tests.captioner.tiny_llava import WORDS

SIDE_PX, PATCH_PX, NUM_LAYERS = 32, 8, 2
TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
_WIDE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 2}


def save_tiny_qwen2_5_vl(folder: Path, *, seed: int = 0) -> Path:
    """A random Qwen2.5-VL: any size and aspect ratio, window attention."""
    tokenizer, ids = _qwen_tokenizer()
    vision = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "num_heads": 2, "depth": NUM_LAYERS}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = hf.Qwen2_5_VLConfig(
        text_config={**_text(tokenizer), "num_key_value_heads": 2, "rope_parameters": rope},
        vision_config={**vision, "patch_size": PATCH_PX, "window_size": 32, "fullatt_block_indexes": [1]},
        **ids,
    )
    images = hf.Qwen2VLImageProcessor(patch_size=PATCH_PX, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64})
    processor = hf.Qwen2_5_VLProcessor(
        images, tokenizer, hf.Qwen2VLVideoProcessor(), chat_template=_template("<|vision_start|><|image_pad|><|vision_end|>")
    )
    return _save(folder, hf.Qwen2_5_VLForConditionalGeneration, config, processor, seed=seed)


def save_tiny_qwen3_vl(folder: Path, *, seed: int = 0) -> Path:
    """A random Qwen3-VL: any size and aspect ratio, features of inner layers of the vision tower (DeepStack)."""
    tokenizer, ids = _qwen_tokenizer()
    vision = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "num_heads": 2, "depth": NUM_LAYERS}
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 1e4}
    config = hf.Qwen3VLConfig(
        text_config={**_text(tokenizer), "num_key_value_heads": 2, "head_dim": 16, "rope_parameters": rope},
        vision_config={
            **vision,
            "patch_size": PATCH_PX,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **ids,
    )
    images = hf.Qwen2VLImageProcessor(patch_size=PATCH_PX, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64})
    processor = hf.Qwen3VLProcessor(
        images, tokenizer, hf.Qwen3VLVideoProcessor(), chat_template=_template("<|vision_start|><|image_pad|><|vision_end|>")
    )
    return _save(folder, hf.Qwen3VLForConditionalGeneration, config, processor, seed=seed)


def save_tiny_internvl(folder: Path, *, seed: int = 0) -> Path:
    """A random InternVL: up to four tiles and a thumbnail of each image."""
    extra = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = tiny_tokenizer(extra)
    size = {"image_size": [SIDE_PX, SIDE_PX], "patch_size": [PATCH_PX, PATCH_PX]}
    config = hf.InternVLConfig(
        text_config={"model_type": "qwen2", **_text(tokenizer), "num_key_value_heads": 2},
        vision_config={**_WIDE, **size},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    images = hf.GotOcr2ImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}, max_patches=4)
    processor = hf.InternVLProcessor(
        images, tokenizer, hf.InternVLVideoProcessor(), image_seq_length=4, chat_template=_template("<IMG_CONTEXT>\n")
    )
    return _save(folder, hf.InternVLForConditionalGeneration, config, processor, seed=seed)


def save_tiny_idefics3(folder: Path, *, seed: int = 0) -> Path:
    """A random Idefics3: an image of 32 px tiles, padded to the most tiles of the batch."""
    tokenizer = tiny_tokenizer(_IDEFICS_TOKENS, more=_IDEFICS_PLACES)
    images = hf.Idefics3ImageProcessor(size={"longest_edge": 2 * SIDE_PX}, max_image_size={"longest_edge": SIDE_PX})
    processor = hf.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=_template("<image>"))
    return _save(folder, hf.Idefics3ForConditionalGeneration, hf.Idefics3Config(**_idefics(tokenizer)), processor, seed=seed)


def save_tiny_smolvlm(folder: Path, *, seed: int = 0) -> Path:
    """A random SmolVLM. Its processor needs num2words."""
    tokenizer = tiny_tokenizer(_IDEFICS_TOKENS, more=_IDEFICS_PLACES)
    images = hf.SmolVLMImageProcessor(size={"longest_edge": 2 * SIDE_PX}, max_image_size={"longest_edge": SIDE_PX})
    processor = hf.SmolVLMProcessor(
        images, tokenizer, hf.SmolVLMVideoProcessor(), image_seq_len=4, chat_template=_template("<image>")
    )
    return _save(folder, hf.SmolVLMForConditionalGeneration, hf.SmolVLMConfig(**_idefics(tokenizer)), processor, seed=seed)


def save_tiny_gemma3(folder: Path, *, seed: int = 0) -> Path:
    """A random Gemma 3: sliding windows, attention in both directions over an image, a template that writes <bos> itself."""
    extra = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = tiny_tokenizer(extra, adds_bos=True)
    text = {**_text(tokenizer), "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16}
    config = hf.Gemma3Config(
        text_config={**text, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config={**_WIDE, "image_size": SIDE_PX, "patch_size": PATCH_PX, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}),
        tokenizer,
        chat_template="{{ bos_token }}" + _template("<start_of_image>"),
        image_seq_length=4,
    )
    return _save(folder, hf.Gemma3ForConditionalGeneration, config, processor, seed=seed)


def save_tiny_florence2(folder: Path, *, seed: int = 0) -> Path:
    """A random Florence-2: an encoder and a decoder, and no chat template."""
    tokenizer = tiny_tokenizer({"image_token": "<image>"})
    stages = {"depths": [1, 1], "embed_dim": [16, 32], "num_heads": [1, 2], "num_groups": [1, 2]}
    shapes = {"patch_size": [3, 3], "patch_stride": [4, 2], "patch_padding": [1, 1], "patch_prenorm": [False, True]}
    text = {"d_model": 32, "encoder_layers": NUM_LAYERS, "decoder_layers": NUM_LAYERS, "max_position_embeddings": 256}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "forced_eos_token_id": None}
    start = {"decoder_start_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = hf.Florence2Config(
        text_config={"model_type": "bart", "vocab_size": len(tokenizer), **text, **heads, **ends, **start},
        vision_config={**stages, **shapes, "window_size": 4, "projection_dim": 32, "max_position_embeddings": 8},
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    num_tokens = (SIDE_PX // 8) ** 2 + 1  # of the places, and of their mean
    images = hf.CLIPImageProcessor(
        size={"height": SIDE_PX, "width": SIDE_PX}, do_center_crop=False, image_seq_length=num_tokens
    )
    images.image_seq_length = num_tokens
    processor = hf.Florence2Processor(images, tokenizer)
    return _save(folder, hf.Florence2ForConditionalGeneration, config, processor, seed=seed)


_IDEFICS_TOKENS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "end_of_utterance_token": "<end_of_utterance>",
    "global_image_token": "<global-img>",
}
_IDEFICS_PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


def tiny_tokenizer(extra: dict[str, str], *, more: Sequence[str] = (), adds_bos: bool = False) -> hf.PreTrainedTokenizerFast:
    """A tokenizer of words with these special tokens, which writes <bos> before each text where it `adds_bos`."""
    special = ["<pad>", "</s>", "<unk>", "<bos>", *extra.values(), *more]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*special, *WORDS.split()]))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )
    tokenizer.add_special_tokens([one for one in more if one.startswith("<")])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<bos>",
        extra_special_tokens=extra,
    )


def _template(image: str) -> str:
    return TEMPLATE.replace("IMAGE", image)


def _qwen_tokenizer() -> tuple[hf.PreTrainedTokenizerFast, dict[str, int]]:
    """The tokenizer and the ids of its special tokens, as Qwen's configs name them."""
    names = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    tokenizer = tiny_tokenizer(names)
    return tokenizer, {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def _text(tokenizer: hf.PreTrainedTokenizerFast) -> dict[str, Any]:
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {**_WIDE, "vocab_size": len(tokenizer), **ends}


def _idefics(tokenizer: hf.PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "text_config": {"model_type": "llama", **_text(tokenizer)},
        "vision_config": {**_WIDE, "image_size": SIDE_PX, "patch_size": PATCH_PX},
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.pad_token_id,
        "scale_factor": 2,
    }


def _save(folder: Path, model_class: Any, config: Any, processor: Any, *, seed: int) -> Path:
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():  # larger than at initialisation, so that captions differ between images, and do not end at once
        weights = model.get_output_embeddings().weight
        weights.mul_(40)
        weights[processor.tokenizer.all_special_ids] *= 0.25
        for name, weights in model.named_parameters():
            if "mm_input_projection" in name:  # Gemma 3's is zero at the start: it would see nothing
                weights.normal_(std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
