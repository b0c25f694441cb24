"""Random text encoders of a few thousand parameters, of the real classes, saved as whole models: T5Gemma, Gemma, Qwen3."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers

WIDTH, POSITIONS = 32, 64
KINDS = ("t5gemma", "gemma", "gemma2", "gemma3_text", "qwen3")
_LETTERS = "abcdefghijklmnopqrstuvwxyz.,:0123456789\n<>_"
_SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.5,
}
_CHAT = (
    "{start}{% for one in messages %}{open}{{ one.role }}\n{{ one.content | trim }}{close}\n{% endfor %}"
    "{% if add_generation_prompt %}{open}{model}\n{% endif %}"
)


def save_language_model(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """A model with its head, and its decoder in T5Gemma, as save_pretrained writes them; a tokenizer with a chat template."""
    tokenizer = _qwen_tokenizer() if kind == "qwen3" else _gemma_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = _SIZES | {"vocab_size": len(tokenizer)}
    if kind == "t5gemma":
        # The published ones end their windows at 4096; here one of 4 tokens shows that both kinds of layer are run.
        half = transformers.T5GemmaModuleConfig(**sizes, query_pre_attn_scalar=8, sliding_window=4)
        config = transformers.T5GemmaConfig(encoder=half, decoder=half, vocab_size=len(tokenizer))
        transformers.T5GemmaForConditionalGeneration(config).save_pretrained(folder)
        return folder
    names = {"gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3", "qwen3": "Qwen3"}
    config_class = transformers.Gemma3TextConfig if kind == "gemma3_text" else getattr(transformers, f"{names[kind]}Config")
    getattr(transformers, f"{names[kind]}ForCausalLM")(config_class(**sizes)).save_pretrained(folder)
    return folder


def _gemma_tokenizer() -> transformers.PreTrainedTokenizerBase:
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    vocabulary = {token: index for index, token in enumerate([*marks, "▁", *_LETTERS, "▁o", "wl"])}
    tokenizer = transformers.GemmaTokenizer(vocab=vocabulary, merges=[("▁", "o"), ("w", "l")], add_bos_token=True)
    tokenizer.add_special_tokens({"additional_special_tokens": marks[-2:]})
    tokenizer.chat_template = _chat(start="{{ bos_token }}", opening=marks[-2], closing=marks[-1], model="model")
    return tokenizer


def _qwen_tokenizer() -> transformers.PreTrainedTokenizerBase:
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {
        token: index for index, token in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġo", "wl"])
    }
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[("Ġ", "o"), ("w", "l")])
    tokenizer.add_special_tokens({"additional_special_tokens": marks[1:]})
    tokenizer.chat_template = _chat(start="", opening=marks[1], closing=marks[2], model="assistant")
    tokenizer.padding_side = "left"  # as Qwen's is for generation: the encoder pads on the right by itself
    return tokenizer


def _chat(*, start: str, opening: str, closing: str, model: str) -> str:
    parts = {"{start}": start, "{open}": opening, "{close}": closing, "{model}": model}
    text = _CHAT
    for place, part in parts.items():
        text = text.replace(place, part)
    return text
