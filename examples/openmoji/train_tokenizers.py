"""Makes the two tokenizers of the small world: llava-mini's and t5-mini's.

    python -m examples.openmoji.train_tokenizers        writes t5-mini's; train_llava makes llava-mini's when it starts

Both are trained on captions and the prompts, and t5-mini's also on the names of all emoji, a small English dictionary of
things. Both take any English text: BPE falls apart into bytes, Unigram into letters.
"""

import math
import re
import string
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from examples.openmoji.llava_mini import BOS_TOKEN, EOS_TOKEN, IMAGE_TOKEN, PAD_TOKEN, PROMPTS, SPECIAL_TOKENS, UNK_TOKEN
from foundry.command_line import run_command

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, T5Tokenizer

_NUM_SCENES = 6000
_LLAVA_VOCABULARY = 896
_NUM_PARTS = 1400
_LEAST_WORD_SCORE = -9.0
_T5_MAX_TOKENS = 512


@dataclass(frozen=True)
class TokenizersConfig:
    """Folder for the tokenizer of t5-mini."""

    out: str = "model/pretrained/t5-mini"
    """Folder of t5-mini."""


def main(config: TokenizersConfig) -> int:
    """Trains and saves the tokenizer."""
    tokenizer = train_t5_tokenizer()
    tokenizer.save_pretrained(config.out)
    print(f"a T5 tokenizer of {len(tokenizer)} pieces is in {config.out}")
    return 0


def corpus() -> list[str]:
    """Captions of scenes, and the prompts often enough to become whole words."""
    from examples.openmoji.composition import draw_scene
    from examples.openmoji.descriptions import describe

    texts = [f"USER: {prompt} ASSISTANT:" for prompt in PROMPTS.values()] * 50
    for index in range(_NUM_SCENES):
        words = describe(draw_scene(seed=0, index=index), seed=0)
        texts += [" " + words.dense, " " + words.medium, " " + words.short, " " + words.alt_text]
    return texts


def llava_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """llava-mini's tokenizer, BPE over bytes: the one in the folder, or else a new one that is saved there."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (folder / "tokenizer.json").exists():
        loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
        return loaded
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_LLAVA_VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        unk_token=UNK_TOKEN,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def train_t5_tokenizer() -> "T5Tokenizer":
    """t5-mini's tokenizer: Unigram, in the class and with the special tokens of the real T5, without its sentinels.

    Every word of the captions is one piece. Left to itself, the trainer prunes such words where their parts are frequent;
    so it only finds the parts of the other words, and the captions' words join with their own log-probabilities.
    """
    from transformers import T5Tokenizer

    parts = _unigram_parts([*PROMPTS.values(), *_names_of_emoji()])
    words = Counter(word for text in corpus() for word in re.findall(r"[A-Za-z]+", text))
    total = words.total()
    scores = {f"▁{word}": max(_LEAST_WORD_SCORE, math.log(count / total)) for word, count in words.items()}
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += sorted({**parts, **scores}.items(), key=lambda piece: (-piece[1], piece[0]))
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=_T5_MAX_TOKENS)


def _unigram_parts(texts: list[str]) -> dict[str, float]:
    """Pieces with their log-probabilities: parts of words, and every printable character of ASCII."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=_NUM_PARTS,
        special_tokens=["<unk>"],
        unk_token="<unk>",
        initial_alphabet=[*string.ascii_letters, *string.digits, *string.punctuation, "▁"],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    vocabulary: list[tuple[str, float]] = json.loads(backend.to_str())["model"]["vocab"]
    return {piece: score for piece, score in vocabulary if piece != "<unk>"}


def _names_of_emoji() -> list[str]:
    """The English names of all emoji: "red apple", "house with garden", …"""
    import emoji

    names = sorted(entry["en"].strip(":").replace("_", " ") for entry in emoji.EMOJI_DATA.values())
    return [name for name in names if "skin tone" not in name]


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            TokenizersConfig,
            main,
            prog="python -m examples.openmoji.train_tokenizers",
            example="python -m examples.openmoji.train_tokenizers --out model/pretrained/t5-mini",
        )
    )
