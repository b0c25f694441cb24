"""Settings of trainer.precompute, and those among them that identify a store."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from foundry.hardware import AutoDtype
from foundry.images.decoding import DecodeLimits
from foundry.images.web.settings import WebSettings
from foundry.storage.locations import normalise
from foundry.units.cluster import RaySettings
from foundry.units.rejection import max_rejected_problems
from foundry.wording import say_missing
from model.control.settings import ControlKind
from model.encoders.frozen_parts import UNNAMED
from model.encoders.text_encoder import TextEncoderConfig
from model.encoders.vae import VAEConfig
from trainer.features.info import Storage

StageName = Literal["pixel", "alignment", "aesthetic"]


@dataclass(frozen=True)
class StageFeatures:
    """The features that a stage trains on."""

    labels: bool
    """Whether they have class labels; else captions."""
    square: bool
    """Whether images are cropped square; else sorted into aspect buckets."""


STAGES: Mapping[StageName, StageFeatures] = {
    "pixel": StageFeatures(labels=True, square=True),
    "alignment": StageFeatures(labels=False, square=False),
    "aesthetic": StageFeatures(labels=False, square=False),
}


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A vision tower whose features are stored too, for REPA (trainer.fit with `repa.teacher` stored)."""

    name: str | None = None
    """Vision tower, which enables this: a hub id or folder (DINOv2, CLIP, SigLIP, a model with a tower), or `mini`."""
    revision: str | None = None
    """Commit or tag of a tower on the hub."""
    dtype: AutoDtype = "auto"
    """Number format of the tower; auto: bfloat16 if the hardware supports it, otherwise float32."""
    patch_px: int = 16
    """Side in pixels of the image area per vector: the VAE's downsampling times the network's patch_size, 8 x 2 for PixArt."""


@dataclass(frozen=True, kw_only=True)
class ControlImagesConfig:
    """Control images of the samples, whose latents are stored too, for trainer.fit with `control.kind`."""

    kind: ControlKind = "none"
    """Kind of the control images, which enables this: edges (computed from each image as it is cropped), or none."""


@dataclass(frozen=True)
class PrecomputeConfig:
    """All settings of `python -m trainer.precompute`."""

    dataset: str
    """Data set, captioning run, or images with class labels (pixel stage): a path or an fsspec URL."""
    out: str
    """Folder of all features; this command writes OUT/<stage>/<resolution>/."""
    stage: StageName
    """Stage: pixel (class labels, square images), alignment or aesthetic (captions, aspect buckets)."""
    resolution: list[int] = field(default_factory=lambda: [256])
    """Resolutions, as the side of a square image in pixels; several are made in one pass."""
    square: bool = False
    """Crop all images square, even in a stage with aspect buckets."""
    captions: Storage = "bfloat16"
    """Storage of T5's features: bfloat16, int8 (with a scale per token), or none, for trainer.fit --online."""
    vae: VAEConfig = field(default_factory=lambda: VAEConfig(name=UNNAMED, sliced=False))
    """Autoencoder; its name is required."""
    text_encoder: TextEncoderConfig = field(default_factory=lambda: TextEncoderConfig(name=UNNAMED))
    """Encoder of captions; its name is required except in the pixel stage, which reads no captions."""
    latent_scale: Literal["auto", "vae", "measured"] = "auto"
    """Scale of the latents: vae (from its config); measured (mean and standard deviation of each channel of these features);
    auto: vae if its config has one, otherwise measured. A network that starts from a checkpoint keeps that checkpoint's."""
    patch_size: int = 0
    """Side of the network's patches, in latents: buckets are multiples of it. 0: 1 for 32 pixels per latent or more, otherwise
    2."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """Vision tower whose features are stored too; also works for existing features."""
    control: ControlImagesConfig = field(default_factory=ControlImagesConfig)
    """Control images whose latents are stored too, for trainer.fit with the same control.kind."""
    batch_px: int = 1 << 22
    """Pixels that the VAE encodes at once; the default is 64 images of 256 x 256."""
    unit_size: int = 0
    """Images per unit; 0: 256, fewer above 512 px. The order of training shuffles whole units."""
    validation_share: float = 0.01
    """Share of the images in the validation split, chosen by a hash of the key; unused if the data set has splits."""
    min_validation: int = 64
    """Minimum number of validation images, approximately; never more than a tenth of all."""
    seed: int = 0
    """Random seed for the shuffle."""
    shuffle_gb: float = 16.0
    """Disk of each node in GB, at most, for images of Parquet files and remote tars until all units that share them have read
    them; at most half of what is free. 0: units read each image alone."""
    shuffle_folder: str = ""
    """Folder on the disk of each node for these images; empty: the system's folder for temporary files."""
    ignore: tuple[str, ...] = ("*.mask.png",)
    """Name patterns of files that a search of folders skips, such as masks next to images."""
    max_rejected: float | None = None
    """Share of the samples that may be rejected before the run stops; default: 1 %, but at least 100."""
    web: WebSettings = field(default_factory=WebSettings)
    """Settings of fetching images from web addresses."""
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    """Limits beyond which images are rejected before they are decoded."""
    ray: RaySettings = field(default_factory=RaySettings)
    """Ray cluster and replicas; a replica holds a VAE and a T5."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {bound}, not {getattr(self, name)}"
            for name, bound, holds in [
                (
                    "resolution",
                    "different numbers above 0",
                    min(self.resolution, default=0) > 0 and len(set(self.resolution)) == len(self.resolution),
                ),
                ("patch_size", "0 or more", self.patch_size >= 0),
                ("batch_px", "1 or more", self.batch_px >= 1),
                ("teacher", "a name, and patch_px of 1 or more", self.teacher.name != "" and self.teacher.patch_px >= 1),
                ("unit_size", "0 or more", self.unit_size >= 0),
                ("shuffle_gb", "0 or more", self.shuffle_gb >= 0),
                ("validation_share", "from 0 to 0.5", 0 <= self.validation_share <= 0.5),
                ("min_validation", "0 or more", self.min_validation >= 0),
            ]
            if not holds
        ] + max_rejected_problems(self.max_rejected)
        if problems:
            raise ValueError("; ".join(problems))
        parts = {"vae.name": self.vae.name} | ({} if self.features.labels else {"text_encoder.name": self.text_encoder.name})
        if unnamed := [name for name, value in parts.items() if value == UNNAMED]:
            raise ValueError(say_missing(type(self), unnamed))

    @property
    def features(self) -> StageFeatures:
        """The features that the stage trains on."""
        chosen = STAGES[self.stage]
        return replace(chosen, square=chosen.square or self.square)

    @property
    def storage(self) -> Storage:
        """The storage of captions; none if there are labels."""
        return "none" if self.features.labels else self.captions

    @property
    def samples_per_unit(self) -> int:
        """`unit_size`, or about 200 MB of pixels."""
        return self.unit_size or max(16, min(256, (1 << 26) // max(self.resolution) ** 2))

    def recorded(self) -> dict[str, Any]:
        """The settings that features.json keeps."""
        kept = ["dataset", "stage", "square", "captions", "vae", "seed", "limits", "validation_share", "min_validation"]
        kept += [] if self.features.labels else ["text_encoder"]
        values = {name: value for name, value in asdict(self).items() if name in kept}
        values |= {"patch_size": self.patch_size} if self.patch_size else {}
        values |= {"control": self.control.kind} if self.control.kind != "none" else {}
        return values | {"unit_size": self.samples_per_unit, "resolution": sorted(self.resolution)}


def identity(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded settings that identify a store.

    Encoders' number formats only round, and a data set may be named by a relative or an absolute path: neither counts.
    """
    parts = {name: recorded[name] for name in ("vae", "text_encoder") if isinstance(recorded.get(name), dict)}
    configs = {"vae": VAEConfig, "text_encoder": TextEncoderConfig}
    # Settings that were added since a store was started had their defaults then.
    added = {name: {one.name: one.default for one in fields(config)} for name, config in configs.items()}
    encoders = {name: {**added[name], **part, "dtype": None} for name, part in parts.items()}
    return {**recorded, "dataset": normalise(recorded["dataset"]), **encoders}
