"""How much of a caption the text encoder reads: T5 takes a fixed number of tokens, and dense captions overflow it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_builder.command_line import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# By path, since this package does not import `model`.
_SHIPPED = {"mini": Path(__file__).resolve().parents[1] / "model" / "pretrained" / "t5-mini"}


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """Which tokenizer cuts the captions, and where. Raises ValueError for fewer than 2 tokens."""

    tokenizer: str = "mini"
    """A folder or hub id with a fast T5 tokenizer, or "mini" for the one of the small world."""
    max_tokens: int = 120
    """Tokens that the encoder reads, the closing </s> among them. Source: PixArt-alpha, 120."""

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2 (a token and </s>), found {self.max_tokens}")

    @classmethod
    def as_described(cls, description: Mapping[str, Any] | None, *, default: "T5Config") -> "T5Config":
        """The settings behind a T5View.describe(); what it does not say is taken from `default`."""
        found = description or {}
        return cls(tokenizer=found.get("tokenizer", default.tokenizer), max_tokens=found.get("max_tokens", default.max_tokens))


@dataclass(frozen=True, slots=True)
class TextView:
    """`num_t5_tokens`: of the whole text, with </s>. `cut_char`: where the text ends that the encoder reads, in characters."""

    num_t5_tokens: int
    cut_char: int


class T5View:
    """Measures texts as the text encoder sees them. The tokenizer is loaded when it is first needed. Deterministic."""

    def __init__(self, config: T5Config | None = None) -> None:
        self.config = config or T5Config()

    def describe(self) -> dict[str, Any]:
        """What a figure has to be published with. Raises UserError where the tokenizer cannot be had."""
        fingerprint = hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:16]
        return {"tokenizer": self.config.tokenizer, "max_tokens": self.config.max_tokens, "fingerprint": fingerprint}

    def measure(self, texts: Sequence[str]) -> list[TextView]:
        """A view of each text, in order. Raises UserError where the tokenizer cannot be had."""
        views = []
        for text, encoding in zip(texts, self._tokenizer.encode_batch(list(texts)), strict=True):
            num_tokens = len(encoding.ids)
            cut = len(text)
            if num_tokens > self.config.max_tokens:
                cut = encoding.offsets[self.config.max_tokens - 2][1]  # the last place is for </s>
            views.append(TextView(num_tokens, cut))
        return views

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        name = str(_SHIPPED.get(self.config.tokenizer, self.config.tokenizer))
        tokenizer = _from_file(Path(name) / "tokenizer.json") if Path(name).is_dir() else _from_hub(name)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def _from_file(path: Path) -> "Tokenizer":
    """What save_pretrained of a fast tokenizer wrote, without the seconds that transformers takes to import."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise UserError(
            f"the tokenizer {path.parent} cannot be loaded: it has no tokenizer.json; save a fast one with save_pretrained"
        )
    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    return tokenizer


def _from_hub(name: str) -> "Tokenizer":
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise UserError(
            f"the tokenizer {name} cannot be loaded ({reason}): give a folder or hub id with a T5 tokenizer"
        ) from None
    if not loaded.is_fast:
        raise UserError(f"the tokenizer {name} has no fast version, so no offsets: give one that has")
    tokenizer: Tokenizer = loaded.backend_tokenizer
    return tokenizer
