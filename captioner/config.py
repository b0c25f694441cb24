"""Configuration of a captioning run."""

from dataclasses import dataclass, field

from captioner.engines.endpoint_settings import EndpointSettings
from captioner.engines.generation import GenerationSettings
from captioner.engines.vllm_settings import VllmSettings
from dataset_builder.concepts.t5_view import AUTO, T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits
from foundry.images.web.settings import WebSettings
from foundry.units.cluster import RaySettings
from foundry.units.rejection import REJECTION_REASONS, max_rejected_problems, retry_problems
from foundry.wording import CHOICE, ModelChoice

ENGINES = ("transformers", "vllm", "endpoint")
REAL_MODEL = "llava-hf/llava-1.5-7b-hf"
"""Model that errors and warnings recommend for real images."""
REJECTED_FOR = tuple(
    reason for reason in REJECTION_REASONS if reason not in ("changed", "no_caption", "no_class_label", "out_of_range")
)
"""Reasons for which captioning rejects an image; the others are those of what is done with captions later."""
UNIT_SIZE = 512
UNIT_BYTES = 1 << 30
"""Maximum size of the decoded images of a unit, since a few units per replica are in memory at one time."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """All settings of `python -m captioner.run`."""

    images: list[str] = field(default_factory=list)
    """Images to caption: folders, tars, Parquet files, lists or image files; local paths or fsspec URLs."""
    out: str
    """Folder of the run, local or on object storage. The same command resumes it."""
    model: str = field(metadata={CHOICE: ModelChoice(real=REAL_MODEL)})
    """Vision-language model: a hub id, a folder written by save_pretrained, or `mini`: the bundled toy, for emoji scenes only.
    With the engine endpoint: the model's name on the server."""
    captions_from: str | None = None
    """Captioning run whose images are captioned, instead of images. Prompts can use its captions."""
    only: str | None = None
    """SQL query on the run of captions_from that returns a column key: the images to caption; default: all images with
    captions."""
    revision: str | None = None
    """Commit or tag of a hub model; default: the newest commit, which the run records."""
    engine: str = "transformers"
    """Engine that runs the model: transformers, vllm (in the environment of ray.replica_python), or endpoint (a server with
    OpenAI's protocol)."""
    prompts: str = "paper"
    """Name of a prompt set (paper, ladder, alt_text, long_short, structured, and with captions_from refine, merge, translate,
    shorten) or a YAML file."""
    limit: int | None = None
    """Stop after the first units that together hold at least this many images; default: caption all images."""
    unit_size: int | None = None
    """Number of images in a unit of work, which is committed as a whole; default: 512, or fewer if those decode to
    more than 1 GiB."""
    ignore: tuple[str, ...] = ("*.mask.png",)
    """Name patterns of files that a search of folders skips, such as masks next to images."""
    licence: str = ""
    """Licence and terms of the images, recorded with the run and copied to data set and model cards."""
    max_rejected: float | None = None
    """Share of the images (0 to 1) that may be rejected before the run stops; default: 0.01, but at least 100 images."""
    retry_rejected: list[str] | None = None
    """Try rejected images again: those with the given reasons; without a reason, all of them."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    """Decoding settings of the captions."""
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)
    """Settings of the engine endpoint."""
    vllm: VllmSettings = field(default_factory=VllmSettings)
    """Settings of the engine vllm."""
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    """Limits beyond which an image is rejected."""
    web: WebSettings = field(default_factory=WebSettings)
    """Settings of fetching images from web addresses."""
    tagger: TaggerConfig = field(default_factory=TaggerConfig)
    """Tagger settings: what counts as a noun."""
    t5: T5Config = field(default_factory=lambda: T5Config(tokenizer=AUTO))
    """Text encoder for which captions are measured."""
    ray: RaySettings = field(default_factory=RaySettings)
    """Ray settings: where the work runs."""

    def __post_init__(self) -> None:
        is_served = self.engine == "endpoint"
        found = [
            (name, f"{name} {fault}")
            for name, fault, holds in [
                (
                    "images",
                    "must name one source or more, unless captions_from names a run",
                    self.images or self.captions_from is not None,
                ),
                (
                    "images",
                    "must be left out with captions_from: the images are those of that run",
                    not self.images or not self.captions_from,
                ),
                ("only", "needs captions_from, the run that it queries", not self.only or self.captions_from),
                ("engine", f"must be one of {', '.join(ENGINES)}, not {self.engine!r}", self.engine in ENGINES),
                (
                    "generation.dtype",
                    "must be left out: the server decides",
                    not is_served or self.generation.dtype == "auto",
                ),
                (
                    "generation.image_side_px",
                    "must be left out: endpoint.image_side_px is that of images that are sent",
                    not is_served or self.generation.image_side_px is None,
                ),
                (
                    "ray.gpus_per_replica",
                    (
                        f"{self.ray.gpus_per_replica:g} needs a model that is split among the GPUs of a replica: give engine "
                        f"vllm with vllm.tensor_parallel_size {self.ray.gpus_per_replica:g}, or gpus_per_replica 1"
                    ),
                    is_served or self.ray.gpus_per_replica <= 1 or self.ray.gpus_per_replica == self._gpus_of_model,
                ),
                ("limit", f"must be 1 or more, not {self.limit}", self.limit is None or self.limit >= 1),
                ("unit_size", f"must be 1 or more, not {self.unit_size}", self.unit_size is None or self.unit_size >= 1),
            ]
            if not holds
        ]
        found += [("max_rejected", problem) for problem in max_rejected_problems(self.max_rejected)]
        retry = _retry_problems(set(self.retry_rejected or ()), run=self.out)
        found += [("", problem) for problem in retry]  # they begin with the setting's name, and end in a command
        if found:
            raise UserError("; ".join(problem for _, problem in found), setting=found[0][0] if len(found) == 1 else "")

    @property
    def _gpus_of_model(self) -> int:
        """Number of GPUs that a replica's model is split among."""
        return self.vllm.num_gpus if self.engine == "vllm" else 1


def _retry_problems(asked: set[str], *, run: str) -> list[str]:
    """What is wrong with the reasons for which rejected images are tried again; reasons of captions come with advice."""
    if not asked:
        return []
    from dataset_builder.runs.status import ASKED_ANEW, caption_anew

    problems = [
        f"retry_rejected: {status} is a status of captions, not of images: {caption_anew(status, run=run)}"
        for status in sorted(asked.intersection(ASKED_ANEW))
    ]
    return problems + retry_problems(asked.difference(ASKED_ANEW), reasons=REJECTED_FOR)


def default_unit_size(image_side_px: int) -> int:
    """Number of images of 3:2, decoded to this shorter side, that fit into a unit."""
    return max(1, min(UNIT_SIZE, UNIT_BYTES // (image_side_px * image_side_px * 3 * 3 // 2)))
