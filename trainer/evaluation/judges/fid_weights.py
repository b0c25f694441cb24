"""The weights of the network that FID is defined with: the published file, known by its hash, or another one's.

Deviation: the published file is pickled. It is read as tensors alone, and only where its hash is the published one's.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.errors import UserError
from foundry.storage.fingerprint import files_fingerprint

if TYPE_CHECKING:
    import torch

_PUBLISHED = "6726825d"
"""The SHA-256 of weights-inception-2015-12-05-6726825d.pth begins so; pt_inception-2015-12-05-6726825d.pth is the same file."""


@dataclass(frozen=True, kw_only=True)
class InceptionWeights:
    """Weights that can be read."""

    path: Path | None
    """None: fetched, or found in torch.hub's folder."""
    name: str
    is_published: bool
    fingerprint: str

    def read(self) -> "dict[str, torch.Tensor]":
        """The state dict. Raises UserError where it cannot be had."""
        import torch

        if self.path is None:
            return _fetched()
        if self.is_published:
            published: dict[str, torch.Tensor] = torch.load(self.path, weights_only=True, map_location="cpu")
            return published
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.path)
        except SafetensorError as error:
            raise UserError(
                f"{self.path} is not safetensors ({error}), nor the published file, whose SHA-256 begins with {_PUBLISHED}"
            ) from None


def find_weights(path: str | None) -> InceptionWeights:
    """Those of a file, or the published ones. Raises UserError for a file that is not there."""
    if path is None:
        return InceptionWeights(path=None, name="the published network", is_published=True, fingerprint=_PUBLISHED)
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"--prompts.fid.weights: there is no file {file}: give the published .pth or safetensors")
    with file.open("rb") as opened:
        is_published = hashlib.file_digest(opened, "sha256").hexdigest().startswith(_PUBLISHED)
    fingerprint = _PUBLISHED if is_published else files_fingerprint([file])
    return InceptionWeights(path=file, name=file.stem, is_published=is_published, fingerprint=fingerprint)


def _fetched() -> "dict[str, torch.Tensor]":
    from torch.hub import load_state_dict_from_url
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        weights: dict[str, torch.Tensor] = load_state_dict_from_url(
            URL_INCEPTION_V3, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the Inception network cannot be fetched ({' '.join(str(error).split())[:200]}): fetch {URL_INCEPTION_V3} "
            "elsewhere, and give it as --prompts.fid.weights"
        ) from None
    return weights
