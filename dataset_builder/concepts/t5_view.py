"""T5 view of a caption: the part that the text encoder reads, which takes a fixed number of tokens."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.errors import NotOnHub, UserError
from foundry.storage.model_files import hub_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AUTO = "auto"
_PIXART = "google/t5-v1_1-xxl"
# By path, since this package does not import `model`.
_SHIPPED = {"mini": Path(__file__).resolve().parents[2] / "model" / "pretrained" / "t5-mini"}


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """Tokenizer that cuts the captions, and its limit. Raises ValueError for fewer than 2 tokens."""

    tokenizer: str = _PIXART
    """Tokenizer of T5: a folder or hub id with tokenizer.json or spiece.model; default: PixArt-alpha's. `mini`: the small
    world's, whose counts are not those of T5; `auto`, for commands with --model: `mini` for `mini`, otherwise PixArt-
    alpha's."""
    max_tokens: int = 120
    """Number of tokens that the encoder reads, including the closing </s>. Source: PixArt-alpha, 120."""

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2 (a token and </s>), found {self.max_tokens}")

    def of_model(self, name: str) -> "T5Config":
        """The settings with the tokenizer that `auto` means for the captions of this model."""
        tokenizer = "mini" if name == "mini" else _PIXART
        return replace(self, tokenizer=tokenizer) if self.tokenizer == AUTO else self

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
        """Description that a figure has to be published with. Raises UserError if the tokenizer is unavailable."""
        fingerprint = hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()[:16]
        return {"tokenizer": self.config.tokenizer, "max_tokens": self.config.max_tokens, "fingerprint": fingerprint}

    def measure(self, texts: Sequence[str]) -> list[TextView]:
        """A view of each text, in order. Raises UserError if the tokenizer is unavailable."""
        views = []
        for text, encoding in zip(texts, self._tokenizer.encode_batch(list(texts)), strict=True):
            num_tokens = len(encoding.ids)
            cut = len(text)
            if num_tokens > self.config.max_tokens:
                cut = encoding.offsets[self.config.max_tokens - 2][1]  # the last position is for </s>
            views.append(TextView(num_tokens, cut))
        return views

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        name = self.config.tokenizer
        try:
            folder = _SHIPPED.get(name) or Path(name)
            tokenizer = _from_folder(folder if folder.is_dir() else _hub_folder(name))
        except (NotOnHub, ValueError) as error:
            reason = error.reason if isinstance(error, NotOnHub) else error
            raise UserError(
                f"the T5 tokenizer {name} cannot be loaded ({reason}): fetch it first, or give a folder that holds its "
                "tokenizer.json or spiece.model, or `mini` for that of the small world, whose token counts are not those of T5",
                setting="t5.tokenizer",
            ) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def _hub_folder(name: str) -> Path:
    """The folder of a hub tokenizer in the cache; some repositories have one kind, some the other. Raises NotOnHub."""
    try:
        return hub_file(name, "tokenizer.json").parent
    except NotOnHub:
        return hub_file(name, "spiece.model").parent


def _from_folder(folder: Path) -> "Tokenizer":
    """A fast tokenizer, which knows offsets. Raises ValueError if there is none in the folder."""
    if (folder / "tokenizer.json").is_file():
        return _fast(folder / "tokenizer.json")
    if (folder / "spiece.model").is_file():
        return _converted(folder)
    raise ValueError("it has neither tokenizer.json nor spiece.model")


def _fast(path: Path) -> "Tokenizer":
    """The tokenizer that save_pretrained wrote, without the seconds that transformers takes to import."""
    from tokenizers import Tokenizer

    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    return tokenizer


def _converted(folder: Path) -> "Tokenizer":
    """The tokenizer converted from SentencePiece, which is how google/t5-v1_1-xxl and PixArt's pipelines come."""
    from sentencepiece import SentencePieceProcessor
    from transformers import T5Tokenizer

    path = folder / "spiece.model"
    try:
        SentencePieceProcessor(model_file=str(path))  # else transformers takes a damaged file for one of tiktoken
    except (OSError, RuntimeError):
        raise ValueError(f"{path} is damaged") from None
    tokenizer: Tokenizer = T5Tokenizer.from_pretrained(folder).backend_tokenizer
    return tokenizer
