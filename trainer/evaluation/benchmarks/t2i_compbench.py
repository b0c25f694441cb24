"""The benchmark `t2i_compbench` of `trainer.evaluate`: attributes, relations and both together.

Source: Huang et al. 2023 (arXiv 2307.06350) and the authors' code; the prompts are not ours to ship, see
t2i_compbench_prompts.py. Deviation: the spatial score is by a detector of transformers in place of UniDet, and is named so.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dataset_builder.concepts.tagger import ParsedText, parse
from trainer.evaluation.benchmark import Benchmark, JudgeSource, Prompt, Published
from trainer.evaluation.benchmarks.t2i_compbench_judges import (
    JUDGE_OF,
    METRICS,
    THREE_IN_ONE,
    AttributeJudge,
    SimilarityJudge,
    SpatialJudge,
    relation_of,
    three_in_one,
)
from trainer.evaluation.benchmarks.t2i_compbench_prompts import (
    ATTRIBUTES,
    BLIP,
    CATEGORIES,
    CLIP,
    COMPLEX,
    DETECTOR,
    NON_SPATIAL,
    NUM_PROMPTS,
    SPATIAL,
    our_prompts,
    read_prompts,
)
from trainer.evaluation.config import EvaluateConfig, T2ICompBenchConfig
from trainer.evaluation.judges.models import Placement, find_model, wanted_judges

VERSION = 1
"""Version of the judges' rules; changes when verdicts may."""
_PIXART = {"color": 0.6886, "shape": 0.5582, "texture": 0.7044, SPATIAL: 0.2082, NON_SPATIAL: 0.3179, COMPLEX: 0.4117}
_BLIP_RESERVATIONS = ("transformers' BLIP has a resampled table of positions", "noun chunks by another version of spaCy")
_SOURCE = "PixArt-α (arXiv 2310.00426)"


def open_benchmark(config: EvaluateConfig) -> Benchmark:
    """Raises UserError for an incomplete folder, or a judge's model that is unavailable."""
    settings = config.t2i_compbench
    prompts = read_prompts(Path(settings.folder).expanduser()) if settings.folder else our_prompts()
    makers = {BLIP: _attributes, DETECTOR: _relations, CLIP: _similarity}
    return Benchmark(
        name="t2i_compbench",
        prompts=prompts,
        num_images_per_prompt=10,
        judges=wanted_judges(config, {name: partial(make, config, prompts) for name, make in makers.items()}),
        derived={THREE_IN_ONE: three_in_one},
        metric_of={category: METRICS[JUDGE_OF[category]] for category in CATEGORIES},
        published=tuple(_published(category, prompts, config) for category in CATEGORIES),
    )


def _attributes(config: EvaluateConfig, prompts: Sequence[Prompt]) -> JudgeSource:
    settings = config.t2i_compbench
    model = find_model(settings.blip, setting="t2i_compbench.blip")

    def load() -> AttributeJudge:
        from trainer.evaluation.judges.blip import load_blip

        blip = load_blip(model, Placement.of(config), image_px=settings.blip_image_px)
        return AttributeJudge(blip, _parsed(prompts, settings))

    version = _version(config, model.revision, settings.blip_image_px)
    return JudgeSource(version=version, load=load, categories=frozenset((*ATTRIBUTES, COMPLEX)))


def _relations(config: EvaluateConfig, prompts: Sequence[Prompt]) -> JudgeSource:
    settings = config.t2i_compbench
    model = find_model(settings.detector, setting="t2i_compbench.detector")

    def load() -> SpatialJudge:
        from trainer.evaluation.judges.detector import load_detector

        detect = load_detector(model, Placement.of(config), threshold=settings.detector_threshold)
        parsed = _parsed(prompts, settings)
        own = [one for one in prompts if one.category in (SPATIAL, COMPLEX)]
        is_complex = {(one.category, one.text): one.category == COMPLEX for one in own}
        return SpatialJudge(
            detect,
            {key: relation_of(key[1], parsed[key[1]], is_complex=complex_one) for key, complex_one in is_complex.items()},
        )

    version = _version(config, model.revision, settings.detector_threshold)
    return JudgeSource(version=version, load=load, categories=frozenset((SPATIAL, COMPLEX)))


def _similarity(config: EvaluateConfig, prompts: Sequence[Prompt]) -> JudgeSource:
    from dataset_builder.scores.clip import resolve_clip

    settings = config.t2i_compbench
    source = resolve_clip(settings.clip)

    def load() -> SimilarityJudge:
        from trainer.evaluation.judges.clip import Clip

        return SimilarityJudge(Clip(source, Placement.of(config)), _parsed(prompts, settings))

    return JudgeSource(version=_version(config, source.fingerprint), load=load, categories=frozenset((NON_SPATIAL, COMPLEX)))


def _parsed(prompts: Sequence[Prompt], settings: T2ICompBenchConfig) -> dict[str, ParsedText]:
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    return dict(zip(texts, parse(texts, spacy_model=settings.spacy_model), strict=True))


def _version(config: EvaluateConfig, *parts: object) -> str:
    return " ".join(map(str, (VERSION, config.judge_dtype, config.t2i_compbench.spacy_model, *parts)))


def _published(category: str, prompts: Sequence[Prompt], config: EvaluateConfig) -> Published:
    """PixArt-α's figure, and its differences from ours."""
    settings, usual = config.t2i_compbench, T2ICompBenchConfig()
    count = sum(prompt.category == category for prompt in prompts)
    by_blip, by_clip = category in (*ATTRIBUTES, COMPLEX), category in (NON_SPATIAL, COMPLEX)
    differences = {
        "our own prompts": settings.folder is None,
        f"{count} prompts in place of {NUM_PROMPTS}": settings.folder is not None and count != NUM_PROMPTS,
        f"detector {settings.detector} in place of UniDet": category in (SPATIAL, COMPLEX),
        f"{settings.blip} in place of {usual.blip}": by_blip and settings.blip != usual.blip,
        f"{settings.clip} in place of {usual.clip}": by_clip and settings.clip != usual.clip,
        f"{settings.blip_image_px} px for BLIP in place of {usual.blip_image_px}": (
            by_blip and settings.blip_image_px != usual.blip_image_px
        ),
        f"{settings.spacy_model} in place of {usual.spacy_model}": (
            category != NON_SPATIAL and settings.spacy_model != usual.spacy_model
        ),
    }
    judged_in = () if config.judge_dtype == "float32" else (f"judged in {config.judge_dtype}",)
    return Published(
        category=category,
        metric=METRICS[JUDGE_OF[category]],
        value=_PIXART[category],
        source=_SOURCE,
        differences=tuple(text for text, holds in differences.items() if holds),
        reservations=(*(_BLIP_RESERVATIONS if by_blip else ()), *judged_in),
    )
