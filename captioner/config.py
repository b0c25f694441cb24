"""The configuration of a captioning run, and the part of it that makes a run what it is."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from captioner.cleaning import CLEANING_VERSION
from captioner.engines.model_source import ModelSource
from captioner.engines.transformers_engine import GenerationSettings
from captioner.prompts import PromptSet
from dataset_builder.concepts.t5_view import AUTO, T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from foundry.command_line import CHOICE, ModelChoice
from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits
from foundry.storage.folder import Folder
from foundry.units.cluster import RaySettings

ENGINES = ("llava",)
REAL_MODEL = "llava-hf/llava-1.5-7b-hf"
"""What errors and warnings tell to give for real images."""
UNIT_SIZE = 512
UNIT_BYTES = 1 << 30
"""What the decoded images of a unit may come to, since a few units per replica are in memory at one time."""


@dataclass(frozen=True)
class CaptionConfig:
    """All settings of `python -m captioner.run`."""

    images: list[str]
    """Folders, tars, Parquet files, lists or images; local paths or fsspec URLs."""
    out: str
    """Folder of the run, local or on object storage. The same command again resumes it."""
    model: str = field(metadata={CHOICE: ModelChoice(real=REAL_MODEL)})
    """Hub id of a LLaVA checkpoint, a folder that save_pretrained wrote, or `mini`: the shipped toy, for emoji scenes alone."""
    revision: str | None = None
    """Commit or tag of a hub model; default: the newest, which is then recorded."""
    engine: str = "llava"
    """What runs the model: `llava`, through transformers."""
    prompts: str = "paper"
    """Name of a prompt set (paper, ladder, alt_text) or a YAML file."""
    limit: int | None = None
    """Caption the first units of the plan that hold at least this many images."""
    unit_size: int | None = None
    """Images per unit of work, which is committed as a whole; default: 512, or as many as decode into 1 GiB of photographs."""
    licence: str = ""
    """Licence and terms of the images, recorded with the run and passed on to data set and model cards."""
    max_rejected: float | None = None
    """Share of the planned images that may be rejected before the run stops; default: 1 %, but at least 100."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    """How captions are decoded."""
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    """Which images are refused."""
    tagger: TaggerConfig = field(default_factory=TaggerConfig)
    """What counts as a noun."""
    t5: T5Config = field(default_factory=lambda: T5Config(tokenizer=AUTO))
    """The text encoder that will read the captions."""
    ray: RaySettings = field(default_factory=RaySettings)
    """Where the work runs."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {bound}"
            for name, bound, holds in [
                ("images", "one source or more", bool(self.images)),
                ("engine", f"one of {', '.join(ENGINES)}", self.engine in ENGINES),
                ("limit", "1 or more", self.limit is None or self.limit >= 1),
                ("unit_size", "1 or more", self.unit_size is None or self.unit_size >= 1),
                ("max_rejected", "between 0 and 1", self.max_rejected is None or 0 <= self.max_rejected <= 1),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))


def run_settings(
    config: CaptionConfig, *, model: ModelSource, prompts: PromptSet, tagger: dict[str, str], t5: dict[str, str]
) -> dict[str, Any]:
    """All that decides what a caption of this run is; two runs are the same run where this is equal."""
    from foundry.storage.schema import SCHEMA_VERSION

    return {
        "schema_version": SCHEMA_VERSION,
        "engine": config.engine,
        "model": {"name": model.name, "revision": model.revision, "image_side_px": model.image_side_px},
        "prompts": asdict(prompts),
        "generation": asdict(config.generation),
        "limits": asdict(config.limits),
        "cleaning_version": CLEANING_VERSION,
        "tagger": tagger,
        "t5": t5,
        "unit_size": config.unit_size or default_unit_size(model.image_side_px),
    }


def default_unit_size(image_side_px: int) -> int:
    """How many images of 3:2, decoded to this shorter side, fit into a unit."""
    return max(1, min(UNIT_SIZE, UNIT_BYTES // (image_side_px * image_side_px * 3 * 3 // 2)))


def read_record(run: Folder) -> dict[str, Any] | None:
    """The run.json of a captioning run; None where there is none. Raises UserError where it is damaged or of something else."""
    from foundry.storage.folder import store_errors
    from foundry.storage.schema import SCHEMA_VERSION

    with store_errors(run):
        data = run.read("run.json") if run.exists("run.json") else None
    if data is None:
        return None
    where, advice = f"{run.url}/run.json", "give another --out, or the folder of a captioning run"
    try:
        record = json.loads(data)
        found = {name: type(record[name]) for name in ("run_id", "settings", "images", "carried")}
        version, unit_size = record["settings"]["schema_version"], record["settings"]["unit_size"]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{where} is damaged or of something else ({len(data)} bytes): {advice}") from None
    if [*found.values(), type(unit_size)] != [str, dict, list, dict, int]:
        raise UserError(f"{where} is not the record of a captioning run: {advice}")
    if version != SCHEMA_VERSION:
        raise UserError(f"{where} has schema version {version}, this program writes {SCHEMA_VERSION}: {advice}")
    assert isinstance(record, dict)
    return record


def run_id(settings: dict[str, Any]) -> str:
    """A short hash of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
