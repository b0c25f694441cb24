"""CLIP scores: how well each sentence of a caption fits its image. The only file that imports open_clip.

CLIP reads 77 tokens, a dense caption has more: so each sentence is scored alone, and a sentence that is still too long is cut
into pieces. The score is the cosine of the embeddings, unscaled; about 0.2 to 0.35 for a fitting sentence under ViT-L/14.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError, one_line
from foundry.hardware import AutoDtype, Halving, own_device, resolve_dtype
from foundry.storage.model_files import files_fingerprint, folder_fingerprint, hub_file, unavailable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

DEFAULT_CLIP = "ViT-L-14-quickgelu:openai"
"""CLIP whose embeddings LAION's aesthetic predictor was trained on."""
NO_CLIP = "none"
_HUB = "hf-hub:"
_FOLDER = "local-dir:"
_CONFIG = "open_clip_config.json"
# Not after "Dr.", "St." or the letters of "U.S.", which are two letters at most.
# Simpler than the captioner's: a sentence that is cut at an abbreviation scores nearly the same. Another rule would be another
# SCORING_VERSION.
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!\b[A-Z][a-z])[.!?]+[\"')\]]*(?=\s)")
_GAP = re.compile(r"\s+")


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A CLIP that can be loaded: what open_clip calls it, what its images look like, and by which files it is known."""

    name: str
    model: str
    tag: str | None
    fingerprint: str
    width: int
    """Numbers in an embedding."""
    preprocess: str
    """JSON of open_clip's PreprocessCfg: side, mean, deviation, interpolation, how a side is cropped."""

    @property
    def side_px(self) -> int:
        """The side of the images that it sees; the longer one where they are not square."""
        size = json.loads(self.preprocess)["size"]
        return int(max(size)) if isinstance(size, list) else int(size)

    @property
    def is_folder(self) -> bool:
        """Whether it lies in a folder, which every node has to see."""
        return self.model.startswith(_FOLDER)


class ClipEncoder:
    """A loaded CLIP. Deterministic. It computes in `dtype`. Raises UserError for weights that are damaged or lack tensors."""

    def __init__(self, source: ClipSource, *, batch_size: int, device: str | None = None, dtype: AutoDtype = "auto") -> None:
        import torch

        self.batch_size = batch_size
        self._batches = Halving()
        self.device = torch.device(device or own_device())
        self.dtype = getattr(torch, resolve_dtype(dtype, self.device.type))
        self.model = _load(source).to(self.device).eval()
        config = json.loads(source.preprocess)
        self.mean, self.std = (torch.tensor(config[name], device=self.device).view(1, 3, 1, 1) for name in ("mean", "std"))

    def embed_images(self, pixels: "npt.NDArray[np.uint8]", *, batch_size: int | None = None) -> "torch.Tensor":
        """Embeddings of length 1, float32 (N, D), of what `image_pixels` gave, (N, 3, side, side)."""
        import torch

        return self._embed(self._embed_pixels, torch.from_numpy(pixels), batch_size)

    def embed_texts(self, tokens: "npt.NDArray[np.int64]", *, batch_size: int | None = None) -> "torch.Tensor":
        """Embeddings of length 1, float32 (T, D), of what `sentence_tokens` gave, (T, context)."""
        import torch

        return self._embed(self.model.encode_text, torch.from_numpy(tokens), batch_size)

    def _embed(self, encode: Any, inputs: Any, batch_size: int | None) -> "torch.Tensor":
        import torch
        from torch.nn.functional import normalize

        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):

            def embed(batch: Any) -> "torch.Tensor":
                return normalize(encode(batch.to(self.device)).float(), dim=-1)

            found = self._batches.run(inputs, embed, size=batch_size or self.batch_size)
            return torch.cat(found or [embed(inputs)])  # (N, D)

    def _embed_pixels(self, pixels: "torch.Tensor") -> "torch.Tensor":
        return self.model.encode_image((pixels.float() / 255 - self.mean) / self.std)  # type: ignore[no-any-return]


def resolve_clip(name: str) -> ClipSource:
    """Finds a CLIP by name: a folder with open_clip_config.json, `hf-hub:ORG/NAME`, or open_clip's own `MODEL:TAG`.

    Fetches what is not there yet. Raises UserError if it is unavailable or its weights are not safetensors.
    """
    if Path(name).is_dir():
        return _in_folder(Path(name).resolve(), name)
    try:
        return _on_hub(name) if name.startswith(_HUB) else _by_tag(name)
    except (OSError, RuntimeError) as error:
        raise unavailable(f"the CLIP {name}", one_line(error, limit=200)) from None


def image_pixels(pixels: "npt.NDArray[np.uint8]", source: ClipSource) -> "npt.NDArray[np.uint8]":
    """An upright image, (H, W, 3), resized and cropped as the model wants it: (3, side, side), still 8 bits."""
    import numpy as np
    from PIL import Image

    image: Image.Image = Image.fromarray(pixels)
    cropped: npt.NDArray[np.float32] = _transform(source.preprocess)(image).numpy()
    return np.rint(cropped * 255).astype(np.uint8)


def sentence_tokens(sentences: Sequence[str], source: ClipSource) -> "npt.NDArray[np.int64]":
    """Token ids, (T, context), padded."""
    import numpy as np

    tokens: npt.NDArray[np.int64] = _tokenizer(source.model)(list(sentences)).numpy().astype(np.int64)
    return tokens


def split_sentences(text: str, source: ClipSource) -> list[str]:
    """The sentences of a caption, each short enough for the model; a longer one is halved at a gap between words."""
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    sentences = [part for begin, end in pairwise([0, *ends, len(text)]) if (part := text[begin:end].strip())]
    return [piece for sentence in sentences for piece in _fitting(sentence, source)]


def _fitting(sentence: str, source: ClipSource) -> list[str]:
    gaps = [gap.start() for gap in _GAP.finditer(sentence)]
    if not gaps or not _overflows(sentence, source):
        return [sentence]
    middle = min(gaps, key=lambda gap: abs(gap - len(sentence) // 2))
    return _fitting(sentence[:middle].strip(), source) + _fitting(sentence[middle:].strip(), source)


def _overflows(sentence: str, source: ClipSource) -> bool:
    """Whether the last token is taken, which is padding in an empty text."""
    empty, full = sentence_tokens(["", sentence], source)
    return bool(empty[-1] != full[-1])


def _load(source: ClipSource) -> Any:
    import open_clip
    from safetensors import SafetensorError

    try:
        return open_clip.create_model(source.model, pretrained=source.tag, require_pretrained=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:  # it loads strictly, and names what lacks
        reason = one_line(error, limit=300)
        raise UserError(f"{source.name} cannot be read as a CLIP ({reason}): fetch it again, or give another one") from error


def _in_folder(folder: Path, name: str) -> ClipSource:
    config = folder / _CONFIG
    if not config.is_file() or not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder} is not a CLIP of open_clip: it needs {_CONFIG} and weights in safetensors")
    record = json.loads(config.read_text())
    return ClipSource(
        name=name,
        model=f"{_FOLDER}{folder}",
        tag=None,
        fingerprint=folder_fingerprint(folder),
        width=record["model_cfg"]["embed_dim"],
        preprocess=_preprocess(record["model_cfg"], record.get("preprocess_cfg", {})),
    )


def _on_hub(name: str) -> ClipSource:
    from open_clip.pretrained import download_pretrained_from_hf

    repository = name.removeprefix(_HUB)
    record = json.loads(hub_file(repository, _CONFIG).read_text())
    return ClipSource(
        name=name,
        model=name,
        tag=None,
        fingerprint=_weights_fingerprint(name, download_pretrained_from_hf(repository)),
        width=record["model_cfg"]["embed_dim"],
        preprocess=_preprocess(record["model_cfg"], record.get("preprocess_cfg", {})),
    )


def _by_tag(name: str) -> ClipSource:
    import difflib

    import open_clip
    from open_clip.pretrained import download_pretrained

    known = open_clip.list_pretrained(as_str=True)
    if name not in known:
        near = (
            " or ".join(difflib.get_close_matches(name, known, n=3)) or "a folder, hf-hub:ORG/NAME, or MODEL:TAG of open_clip"
        )
        raise UserError(f"there is no CLIP {name}: did you mean {near}?")
    model, tag = name.split(":")
    weights, config = open_clip.get_pretrained_cfg(model, tag), open_clip.get_model_config(model)
    return ClipSource(
        name=name,
        model=model,
        tag=tag,
        fingerprint=_weights_fingerprint(name, download_pretrained(weights)),
        width=config["embed_dim"],
        preprocess=_preprocess(config, weights),
    )


def _weights_fingerprint(name: str, path: str) -> str:
    if not path.endswith(".safetensors"):
        raise UserError(f"the weights of {name} are pickled ({Path(path).name}): give a CLIP whose weights are safetensors")
    return files_fingerprint([Path(path)])


def _preprocess(model: dict[str, Any], weights: dict[str, Any]) -> str:
    """open_clip's defaults, what the weights say, and the side of the model, as open_clip itself merges them."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    merged = merge_preprocess_dict(asdict(PreprocessCfg()), weights)
    return json.dumps(merged | {"size": model["vision_cfg"].get("image_size", merged["size"])}, sort_keys=True)


@lru_cache(maxsize=1)
def _transform(preprocess: str) -> Any:
    """open_clip's own transform without its last step, which the replica does: 8 bits travel in place of 32."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    unscaled = json.loads(preprocess) | {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return image_transform_v2(PreprocessCfg(**unscaled), is_train=False)


@lru_cache(maxsize=1)
def _tokenizer(model: str) -> Any:
    import open_clip

    return open_clip.get_tokenizer(model)
