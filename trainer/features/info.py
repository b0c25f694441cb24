"""The description of a feature store, features.json: encoders with their fingerprints, buckets, settings.

A trainer that expects something else refuses it, with the command that remakes it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from foundry.errors import UserError
from foundry.storage.folder import Folder
from model.encoders.caption_template import PLACE
from model.encoders.text_encoder import Cleaning
from model.encoders.vae import LatentScale
from model.formats.checkpoint import PartConfig, PipelineConfig
from trainer.features.buckets import Size

FEATURES_VERSION = 2
_READABLE_VERSIONS = (1, 2)
"""Version 1 has no `latent_dtype`: its latents are bfloat16."""
FEATURES_FILE = "features.json"
NULL_CAPTION_FILE = "null_caption.safetensors"
NULL_CAPTION_NAME = "tokens"
_DTYPE_IN_FINGERPRINTS = "bfloat16"  # in place of T5's: that of the first stores, whose fingerprints stay as they are

LatentDtype = Literal["bfloat16", "float16"]
"""Number format of stored latents: two bytes either way, but float16 rounds latents of unit variance eight times less."""
LatentScaling = Literal["vae", "measured"]
"""Origin of the scale of latents: the VAE's config, or mean and deviation of each channel of the stored latents."""
_ADDED_LATER = ("latent_variance", "caption_template", "caption_hidden_state", "control")
"""Fields that a fingerprint covers where they differ from their defaults: stores of before keep their fingerprints."""
Storage = Literal["none", "bfloat16", "int8"]
"""Storage of the features of captions; none: only the texts are stored, for training that encodes them itself."""


@dataclass(frozen=True, kw_only=True)
class FeaturesInfo:
    """The content of features.json. A fingerprint covers all that another store must share to be the same."""

    stage: str
    """pixel, alignment or aesthetic."""
    resolution: int
    """Side of a square image in pixels."""
    buckets: tuple[Size, ...]
    """Height and width in pixels of all buckets there can be."""
    latent_channels: int
    """Latent channels of the VAE."""
    downsampling: int
    """Pixels per latent, along a side."""
    scaling_factor: float | tuple[float, ...]
    """Scaling factor of the VAE's config, for all channels or for each; stored latents are not scaled."""
    shift_factor: float | tuple[float, ...]
    """Shift factor of the VAE's config likewise."""
    vae: PartConfig
    """The VAE, with its fingerprint."""
    text_encoder: PartConfig | None = None
    """The T5, with its fingerprint, also where training is to encode with it; none if there are class labels."""
    text_encoder_dtype: str = ""
    """Number format that T5 computed in; `/` and the library where its weights were quantised."""
    vae_dtype: str = ""
    """Number format that the VAE computed in; empty: not recorded."""
    latent_dtype: LatentDtype = "float16"
    """Number format of the stored latents."""
    latent_variance: bool = True
    """Whether the log-variance of the latents is stored next to their mean; false for a deterministic VAE."""
    control: str = ""
    """Control images whose latents are stored too, and the version of what computed them, as edges/1; empty: none."""
    latent_scale: LatentScaling = "vae"
    """Origin of the scale of the latents."""
    latent_scaling: tuple[float, ...] = ()
    """Scaling factor of each channel, measured once all units were made; empty: not measured."""
    latent_shift: tuple[float, ...] = ()
    """Shift of each channel likewise."""
    caption_storage: Storage = "none"
    """Storage of the features of captions."""
    caption_cleaning: Cleaning = "lower"
    """Cleaning of captions before T5 read them."""
    caption_template: str = PLACE
    """Text around a caption when the text encoder read it, that of a chat template included."""
    caption_hidden_state: int = -1
    """Hidden state of the text encoder, counted from the end."""
    caption_width: int = 0
    """Channels of a token's features."""
    max_caption_tokens: int = 0
    """Longer captions are cut."""
    class_names: tuple[str, ...] = ()
    """The classes, by label; empty if there are captions."""
    seed: int = 0
    """Random seed of the shuffle and the validation split."""
    unit_size: int = 0
    """Samples of a unit, at most."""
    source: str = ""
    """The source that the features were made of."""
    licence: str = ""
    """Licence and terms of the images."""
    settings: dict[str, Any] = field(default_factory=dict)
    """All settings of the command, for reference."""

    @property
    def own_scale(self) -> LatentScale:
        """Scale from the VAE's samples to the network's latents, by the VAE's config."""
        return LatentScale(self.scaling_factor, self.shift_factor)

    @property
    def measured_scale(self) -> LatentScale | None:
        """The same as measured on these features; none if it was not."""
        return LatentScale(self.latent_scaling, self.latent_shift) if self.latent_scaling else None

    @property
    def scale(self) -> LatentScale:
        """The scale of a network that starts from scratch."""
        return self.measured_scale or self.own_scale

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over all that changes features beyond rounding, so neither wordings nor number formats."""
        _, slash, library = self.text_encoder_dtype.partition("/")
        dtype = f"{_DTYPE_IN_FINGERPRINTS}{slash}{library}" if self.text_encoder_dtype else ""
        return _fingerprint(asdict(self) | {"text_encoder_dtype": dtype})

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The fingerprint, and the one that was written when T5's number format was part of it."""
        return (self.fingerprint, _fingerprint(asdict(self)))

    @property
    def command(self) -> str:
        """The command that makes such a store, with all resolutions that it was made with in one pass."""
        parts = {"vae": self.vae} | ({} if self.class_names else {"text_encoder": self.text_encoder})
        resolution = " ".join(str(one) for one in self.settings.get("resolution", [self.resolution]))
        control = f"--control.kind {self.control.partition('/')[0]}" if self.control else ""
        return precompute_command(
            parts, dataset=self.source or "DATASET", out="FEATURES", stage=self.stage, resolution=resolution, more=control
        )

    def to_json(self) -> bytes:
        """The content of the file."""
        record = {"schema_version": FEATURES_VERSION, "fingerprint": self.fingerprint, **asdict(self)}
        return json.dumps(record, indent=1).encode()


_DEFAULTS = {one.name: one.default for one in fields(FeaturesInfo)}


def _fingerprint(values: dict[str, Any]) -> str:
    # The scale is applied when latents are read, so that it can be measured after they were stored.
    scales = ("latent_scale", "latent_scaling", "latent_shift")
    for name in ("source", "licence", "settings", "vae_dtype", "latent_dtype", *scales):
        del values[name]
    for name in _ADDED_LATER:
        if values[name] == _DEFAULTS[name]:
            del values[name]
    for part in ("vae", "text_encoder"):  # the same weights by another name are the same
        values[part] = values[part] and values[part]["fingerprint"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def precompute_command(
    parts: Mapping[str, PartConfig | None], *, dataset: str, out: str, stage: str, resolution: str, more: str = ""
) -> str:
    """The command that makes features with these parts, `vae` and `text_encoder`; a capital word for one that is not known."""
    words = ["python -m trainer.precompute", f"--dataset {dataset} --out {out} --stage {stage} --resolution {resolution}"]
    for kind, part in parts.items():
        words.append(f"--{kind}.name {(part and part.name) or kind.upper()}")
        words += [f"--{kind}.revision {part.revision}"] if part and part.revision else []
    return " ".join([*words, *([more] if more else [])])


def check_reading(pipeline: PipelineConfig, info: FeaturesInfo, *, where: str, trained: str) -> None:
    """Raises UserError if captions were read otherwise than those that a checkpoint learned from: no other network's."""
    for name in ("caption_template", "caption_hidden_state"):
        then, now = getattr(pipeline, name), getattr(info, name)
        if then != now:
            setting = f"text_encoder.{name.removeprefix('caption_')}"
            raise UserError(
                f"{trained} learned from captions with {setting} {then!r}, the features in {where} have {now!r}: make them in "
                "another folder with that of the checkpoint"
            )


def read_info(folder: Folder) -> FeaturesInfo:
    """The features.json of a store. Raises UserError if there is none, or it is of another version or damaged."""
    unknown = precompute_command(
        {"vae": None, "text_encoder": None}, dataset="DATASET", out="FEATURES", stage="STAGE", resolution="PX"
    )
    make = f"make features with {unknown}"
    try:
        record = json.loads(folder.read(FEATURES_FILE))
    except FileNotFoundError:
        raise UserError(f"there are no features in {folder.url}: {make}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.url}/{FEATURES_FILE} cannot be read ({error}): {make}") from None
    version = record.get("schema_version")
    if version not in _READABLE_VERSIONS:
        readable = " and ".join(map(str, _READABLE_VERSIONS))
        raise UserError(f"{folder.url} has features of version {version}, this program reads {readable}: {make}")
    names = {one.name for one in fields(FeaturesInfo)}
    later = ("latent_scale", "latent_scaling", "latent_shift", *_ADDED_LATER)
    record = {**{name: _DEFAULTS[name] for name in later}, "vae_dtype": "", "latent_dtype": "bfloat16", **record}
    if missing := sorted(names - record.keys()):
        raise UserError(f"{folder.url}/{FEATURES_FILE} says nothing of {', '.join(missing)}: {make}")
    if record["latent_dtype"] not in get_args(LatentDtype):
        readable = " and ".join(get_args(LatentDtype))
        raise UserError(f"{folder.url} has latents in {record['latent_dtype']}, this program reads {readable}: {make}")
    values = {name: record[name] for name in names}
    values["buckets"] = tuple((height, width) for height, width in values["buckets"])
    for name in ("class_names", "latent_scaling", "latent_shift", "scaling_factor", "shift_factor"):
        values[name] = tuple(values[name]) if isinstance(values[name], list) else values[name]
    for part in ("vae", "text_encoder"):
        values[part] = values[part] and PartConfig(**values[part])
    info = FeaturesInfo(**values)
    if record["fingerprint"] not in info.fingerprints:
        raise UserError(f"{folder.url}/{FEATURES_FILE} was changed by hand (its fingerprint does not fit): {make}")
    return info
