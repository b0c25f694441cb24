"""Captioning of one unit: its images are read and decoded, captioned, captions cleaned, nouns counted, all committed.

The methods run on different workers (foundry/units/ray_driver.py); the same class runs in a plain loop too, which is
how the cost of the distribution is measured.
"""

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from captioner.cleaning import CLEANING_VERSION
from captioner.config import CaptionConfig, default_unit_size
from captioner.engines.generation import NOT_FINITE, CaptionModel, Engine, Generation, GenerationSettings
from captioner.engines.model_source import LLAVA_PROMPT, ModelSource, resolve_model
from captioner.engines.vllm_settings import VllmSettings
from captioner.prompt_sets import load_prompts
from captioner.prompts import PromptSet
from captioner.runs.asking import ask, check_engine, check_lengths
from captioner.runs.caption_rows import RENDERED, caption_rows
from captioner.runs.questions import NO_EARLIER_CAPTION, EarlierCaptions, check_caption_fields, questions_about
from captioner.structured.answers import STRUCTURED_VERSION
from dataset_builder.concepts.noun_counts import CaptionNouns, count_nouns, load_t5_view, load_tagger
from dataset_builder.concepts.t5_view import T5Config, T5View
from dataset_builder.concepts.tagger import NounTagger, TaggerConfig
from dataset_builder.runs.source_run import ALL_CAPTIONED
from dataset_builder.schema import CAPTIONS
from foundry.images.decoding import DecodeLimits
from foundry.images.index import IMAGES
from foundry.images.loading import all_rejected, read_images, rejected_row
from foundry.images.reader import reference_of
from foundry.images.web.settings import WebSettings
from foundry.storage.folder import Folder
from foundry.storage.run_record import RunRecord, as_stored, run_id
from foundry.storage.schema import SCHEMA_VERSION
from foundry.units.commits import Commit, Unit, check_not_all, commit_unit, read_unit
from foundry.units.rejection import Failure

_RECORDED = {"transformers": "llava"}
"""Names of engines in run.json, where they are not today's: a run that was started under the old one resumes."""
_TAKEN = 1.3  # of the weights' size: with activations and the key-value cache


@dataclass(frozen=True)
class Payload:
    """Input of a replica: pixels, uint8 (H, W, 3) each, or web addresses; keys; prompts by name; all in one order."""

    images: list[np.ndarray | str]
    keys: list[str]
    prompts: dict[str, list[str]]


@dataclass(frozen=True)
class Facts:
    """Images that were read: rows of index.IMAGES in the order of the payload, and rows of index.REJECTED."""

    images: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class Output:
    """The generations by prompt name, in the order of the payload."""

    generations: dict[str, list[Generation]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CaptionJob:
    """Settings of the work on a unit; see foundry.units.workers.UnitJob for the calls."""

    run: str
    run_id: str
    settings: dict[str, Any]
    model: CaptionModel
    prompts: PromptSet
    generation: GenerationSettings
    limits: DecodeLimits
    tagger: TaggerConfig
    t5: T5Config
    web: WebSettings = field(default_factory=WebSettings)
    """Settings of fetching images, on which no caption depends."""
    earlier: EarlierCaptions | None = None
    """The run that prompts take captions from."""

    def with_dtype(self, dtype: str) -> "CaptionJob":
        """The same work in that dtype, which is part of what a run is."""
        settings = self.settings | {"generation": self.settings["generation"] | {"dtype": dtype}}
        return replace(self, generation=replace(self.generation, dtype=dtype), settings=settings, run_id=run_id(settings))

    @property
    def replica_bytes(self) -> float:
        """Memory in bytes that a replica on a CPU takes, roughly; 0 if the model's size is not known."""
        return _TAKEN * self.model.num_parameters * (4 if self.generation.dtype == "float32" else 2)

    def prepare(self, unit: Unit, positions: Sequence[int]) -> tuple[Payload, Facts]:
        """Reads and decodes the images at these positions; one that cannot be used becomes a rejected row."""
        started = time.perf_counter()
        unit_rows = read_unit(Folder(self.run), unit)
        rows = [unit_rows[position] for position in positions]
        read = read_images(rows, limits=self.limits, target_side_px=self.model.image_side_px, web=self.web)
        found = [one.facts for one in read.images]
        questions = questions_about(found, rows, prompts=self.prompts, earlier=self.earlier)
        lacking = {key for key, asked in questions.items() if None in asked}
        images = [image for image in found if image["key"] not in lacking]
        texts = {
            prompt.name: [questions[image["key"]][number] or "" for image in images]
            for number, prompt in enumerate(self.prompts.prompts)
        }
        kept = [one for one in read.images if one.facts["key"] not in lacking]
        urls = [reference_of(one.facts).web_address if self.model.sends_urls else None for one in kept]
        shown = [url or one.image.pixels for url, one in zip(urls, kept, strict=True)]
        rejected = read.rejected + [rejected_row(image, NO_EARLIER_CAPTION) for image in found if image["key"] in lacking]
        payload = Payload(images=shown, keys=[image["key"] for image in images], prompts=texts)
        return payload, Facts(images=images, rejected=rejected, seconds=time.perf_counter() - started)

    def warm_up(self) -> None:
        """Loads the tagger and the tokenizer."""
        load_tagger(self.tagger).tag(["an owl"])
        load_t5_view(self.t5).measure(["an owl"])

    def load_engine(self) -> Engine:
        """The model, on this replica's device."""
        return self.model.load(self.generation)

    def check(self, engine: Engine) -> None:
        """One token about a grey image as large as they come, for the first prompt and for each with a schema."""
        first, *others = self.prompts.prompts
        for prompt in (first, *(prompt for prompt in others if prompt.schema)):
            check_engine(engine, prompt, side_px=self.model.image_side_px)

    def process(self, engine: Engine, payload: Payload, *, one_by_one: bool) -> Output:
        """Captions each image with each prompt."""
        started = time.perf_counter()
        said = {
            prompt.name: ask(
                engine, payload.images, payload.prompts[prompt.name], payload.keys, prompt=prompt, one_by_one=one_by_one
            )
            for prompt in self.prompts.prompts
        }
        return Output(generations=said, seconds=time.perf_counter() - started)

    def finish(self, unit: Unit, *, facts: Facts, output: Output, excluded: dict[int, Failure]) -> Commit | None:
        """Cleans, counts and commits."""
        started = time.perf_counter()
        folder = Folder(self.run)
        unanswered = self._unanswered(facts, output)
        num_not_finite = sum(failure.reason == "not_finite" for failure in unanswered.values())
        check_not_all(folder, num_not_finite=num_not_finite, num_images=len(facts.images), advice=NOT_FINITE)
        failed = {facts.images[index]["key"]: failure for index, failure in unanswered.items()}
        rejected = all_rejected(facts.rejected, partial(read_unit, folder, unit), failed=failed, excluded=excluded)
        paid = [said for generations in output.generations.values() for said in generations]  # rejected images' too
        facts, output = _without(facts, output, unanswered)
        tables = self.tables(facts, output)
        return commit_unit(
            folder,
            run_id=self.run_id,
            unit=unit,
            tables=tables | {"rejected": rejected},
            statuses=_statuses(tables["captions"]),
            num_tokens=sum(said.num_tokens for said in paid),
            num_input_tokens=sum(said.num_input_tokens for said in paid),
            seconds={"prepare": facts.seconds, "process": output.seconds, "finish": time.perf_counter() - started},
        )

    def _unanswered(self, facts: Facts, output: Output) -> dict[int, Failure]:
        """The images, by their index, that a prompt has no answer about, or for which the model computed NaN or infinity."""
        found: dict[int, Failure] = {}
        for prompt, generations in output.generations.items():
            for index, _ in enumerate(facts.images):
                if generations[index].failure:
                    found.setdefault(index, Failure(reason="model_error", message=generations[index].failure))
                elif not generations[index].is_finite:
                    message = f"NaN or infinity in {self.generation.dtype} under the prompt {prompt}: {NOT_FINITE}"
                    found.setdefault(index, Failure(reason="not_finite", message=message))
        return found

    def tables(self, facts: Facts, output: Output) -> dict[str, pa.Table]:
        """The tables `images`, `captions` and `noun_counts` of a unit."""
        keys = [image["key"] for image in facts.images]
        captions: list[dict[str, Any]] = []
        nouns: list[CaptionNouns] = []
        for prompt in self.prompts.prompts:
            said = output.generations.get(prompt.name, [])
            rows, found = caption_rows(prompt, keys, said, seed=self.generation.seed, tagger=self.tagger, t5=self.t5)
            captions += rows
            nouns += found
        return {
            "images": pa.Table.from_pylist(facts.images, schema=IMAGES),
            "captions": pa.Table.from_pylist(captions, schema=CAPTIONS),
            "noun_counts": count_nouns(nouns),
        }


def caption_job(config: CaptionConfig, *, before: dict[str, Any] | None = None, source: RunRecord | None = None) -> CaptionJob:
    """The work on a unit, with everything resolved that can be resolved without Ray (not the dtype). Raises UserError.

    `before`: settings of what the run has committed, which stay where nothing else is asked for. `source`: the record of the
    run that captions are taken from.
    """
    prompts = load_prompts(config.prompts)
    check_caption_fields(prompts, source)
    model = find_model(config, before=before)
    if isinstance(model, ModelSource):
        given = config.vllm.max_model_len if config.engine == "vllm" else None
        check_lengths(prompts, model, context=given or model.context)
    config = replace(config, generation=_settled(config.generation, model, before))
    t5 = config.t5.of_model(config.model)
    settings = run_settings(
        config, model=model, prompts=prompts, tagger=NounTagger(config.tagger).describe(), t5=T5View(t5).describe()
    )
    if before is not None and model.prompt_format == LLAVA_PROMPT and "prompt_format" not in before.get("model", {}):
        del settings["model"]["prompt_format"]  # runs before it was recorded assumed the same prompt
    if before is not None and (was := before.get("model", {}).get("listed")) and config.engine == "endpoint":
        from captioner.engines.endpoint_engine import identity_of

        # Runs before recorded all that the server's list said: what names no model stays as it was.
        passing = {name: value for name, value in was.items() if name not in identity_of(was)}
        settings["model"]["listed"] = passing | settings["model"]["listed"]
    for name in ("engine_version", "listed"):
        if before is not None and name not in before.get("model", {}):
            settings["model"].pop(name, None)  # runs before it was recorded
    earlier = None
    if source is not None and config.captions_from is not None:
        settings["captions_from"] = {"run_id": source.run_id, "only": query_of(config)}
        structured = tuple(source.structured_prompts)
        earlier = EarlierCaptions(url=config.captions_from, prompts=tuple(source.prompt_names), structured=structured)
    return CaptionJob(
        run=config.out,
        run_id=run_id(settings),
        settings=settings,
        model=model,
        prompts=prompts,
        generation=config.generation,
        limits=config.limits,
        web=config.web,
        tagger=config.tagger,
        t5=t5,
        earlier=earlier,
    )


def query_of(config: CaptionConfig) -> str:
    """The query that names the images of a source run to caption."""
    return config.only or ALL_CAPTIONED


def run_settings(
    config: CaptionConfig, *, model: CaptionModel, prompts: PromptSet, tagger: dict[str, Any], t5: dict[str, Any]
) -> dict[str, Any]:
    """All that decides what a caption of this run is; two runs are the same run where this is equal."""
    generation = asdict(config.generation)
    del generation["image_side_px"]  # it is the model's
    if model.image_fit(generation["image_fit"]) == "processor":  # recorded only where it is not that of runs before it was
        del generation["image_fit"]
    settings = {
        "schema_version": SCHEMA_VERSION,
        "engine": _RECORDED.get(config.engine, config.engine),
        "model": model.describe(),
        "prompts": prompts.describe(),
        "generation": generation,
        "limits": asdict(config.limits),
        "cleaning_version": CLEANING_VERSION,
        "tagger": tagger,
        "t5": t5,
        "unit_size": config.unit_size or default_unit_size(model.image_side_px),
    }
    if any(prompt.schema for prompt in prompts.prompts):
        settings["structured_version"] = STRUCTURED_VERSION
    return as_stored(settings)


def find_model(config: CaptionConfig, *, before: dict[str, Any] | None = None) -> CaptionModel:
    """The model for the engine that is asked for. Raises UserError if one of them is unavailable.

    `before`: settings of what the run has committed; images stay as large as they were, unless something else is asked for.
    """
    if config.engine == "endpoint":
        from captioner.engines.endpoint_engine import find_served_model

        return find_served_model(config.model, config.endpoint, config.generation)
    image_side_px = config.generation.image_side_px or (before or {}).get("model", {}).get("image_side_px")
    source = resolve_model(config.model, revision=config.revision, image_side_px=image_side_px)
    if config.engine == "vllm":
        from captioner.engines.vllm_engine import find_vllm_model

        return find_vllm_model(source, vllm_settings(config), python=config.ray.replica_python)
    from captioner.engines.transformers_engine import TransformersModel

    return TransformersModel(**vars(source))


def vllm_settings(config: CaptionConfig) -> VllmSettings:
    """Settings of vLLM, of which replicas on one GPU divide the memory."""
    share = min(1.0, config.ray.gpus_per_replica) or 1.0
    return replace(config.vllm, gpu_memory_utilization=config.vllm.gpu_memory_utilization * share)


def _settled(asked: GenerationSettings, model: CaptionModel, before: dict[str, Any] | None) -> GenerationSettings:
    """The settings with `auto` resolved, except the dtype of a run without commits: the replicas' hardware decides that."""
    if before is None:
        return replace(asked, image_fit=model.image_fit(asked.image_fit))
    was = before.get("generation", {})
    dtype = was.get("dtype", "auto") if asked.dtype == "auto" else asked.dtype
    fit = was.get("image_fit", "processor") if asked.image_fit == "auto" else asked.image_fit
    return replace(asked, dtype=dtype, image_fit=fit)


def _without(facts: Facts, output: Output, excluded: Collection[int]) -> tuple[Facts, Output]:
    """Both without the images of these indices."""
    kept = [index for index, _ in enumerate(facts.images) if index not in excluded]
    generations = {prompt: [said[index] for index in kept] for prompt, said in output.generations.items()}
    return replace(facts, images=[facts.images[index] for index in kept]), replace(output, generations=generations)


def _statuses(captions: pa.Table) -> dict[str, int]:
    """Answers of the model by their status, where it is not ok; a rendering is no answer."""
    rows = zip(captions["status"].to_pylist(), captions["finish_reason"].to_pylist(), strict=True)
    return dict(Counter(status for status, reason in rows if status != "ok" and reason != RENDERED))
