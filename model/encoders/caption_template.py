"""Template of captions: the text around a caption that a language model reads, and which of its tokens are features.

A template has `{caption}` once. Features are those of the caption and of all that follows it. The text before it, as an
instruction or the head of a chat, is read and left out: it is the same for every caption. Without such a text, a token that the
tokenizer itself puts before a caption, as Gemma's <bos>, is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundry.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACE = "{caption}"
_USER = "user"


@dataclass(frozen=True)
class CaptionTokens:
    """Tokens of a caption in its template."""

    ids: list[int]
    """All that the model reads."""
    num_left_out: int
    """The first of them, whose features are left out."""

    @property
    def num_kept(self) -> int:
        """Tokens whose features are kept."""
        return len(self.ids) - self.num_left_out


class CaptionTemplate:
    """A template with a tokenizer. `max_caption_tokens` bounds the tokens that are kept; a caption is cut at its end."""

    def __init__(self, text: str, tokenizer: "PreTrainedTokenizerBase", *, max_caption_tokens: int) -> None:
        self._prefix, self._suffix = text.split(PLACE)
        self._tokenizer = tokenizer
        self._max = max_caption_tokens
        self._end: list[int] = []
        if not self._of("").num_kept:  # as of Qwen, which puts no token around a text: the empty caption needs one
            assert tokenizer.eos_token_id is not None, "every tokenizer of these models has one"
            self._end = [int(tokenizer.eos_token_id)]
        shortest = self._of("")
        self.num_left_out = shortest.num_left_out
        """Tokens before a caption."""
        if shortest.num_kept >= max_caption_tokens > 1 or shortest.num_kept > max_caption_tokens:
            raise UserError(
                f"max_caption_tokens {max_caption_tokens} leaves no place for a caption: {shortest.num_kept} tokens of the "
                "template are kept with it",
                setting="text_encoder.max_caption_tokens",
            )

    def tokenize(self, captions: Sequence[str]) -> list[CaptionTokens]:
        """Tokens of captions, cut to the limit: of the caption, never of the template."""
        return [self._of(caption, most=self._max) for caption in captions]

    def count(self, captions: Sequence[str]) -> list[int]:
        """Tokens that would be kept of each caption if none were cut."""
        return [self._of(caption).num_kept for caption in captions]

    def _of(self, caption: str, *, most: int | None = None) -> CaptionTokens:
        text = f"{self._prefix}{caption}{self._suffix}"
        bos = self._tokenizer.bos_token
        special = not (isinstance(bos, str) and bos and text.startswith(bos))  # a chat template writes it itself
        found = self._tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(found.input_ids), list(found.offset_mapping)
        first, last = len(self._prefix), len(self._prefix) + len(caption)
        before = _count_leading([self._prefix != "" and end <= first for _, end in offsets])
        after = _count_leading([start >= last or end == 0 for start, end in offsets[before:][::-1]]) + len(self._end)
        ids += self._end
        if most is not None and len(ids) - before > most:
            ids = ids[: before + most - after] + ids[len(ids) - after :]
        return CaptionTokens(ids, before)


def render_chat(template: str, tokenizer: "PreTrainedTokenizerBase", *, name: str) -> str:
    """The tokenizer's chat template with this one as the user's message. Raises UserError if it has none."""
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {name} has no chat template: write one as the template", setting="text_encoder.chat")
    message = [{"role": _USER, "content": template}]
    # Qwen3 would think before it answers; other templates do not read the setting.
    text = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False))
    if text.count(PLACE) != 1:
        raise UserError(
            f"the chat template of {name} does not keep {PLACE}: write it as the template", setting="text_encoder.chat"
        )
    return text


def _count_leading(holds: Sequence[bool]) -> int:
    """Number of leading true values."""
    return next((index for index, one in enumerate(holds) if not one), len(holds))
