"""An evaluation from its benchmark to its page: images are drawn or found, judged and summed up."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from foundry.errors import UserError
from foundry.extras import missing_library
from foundry.hardware import keep_freed_memory
from foundry.reporting.lines import say
from model.generation.pipeline_parts import RuntimeConfig
from model.lora.settings import parse_choices
from trainer.evaluation.benchmark import Benchmark
from trainer.evaluation.config import BENCHMARKS, EvaluateConfig
from trainer.evaluation.images import claim_folder, drawing_settings, drawn_prompts, open_images, with_dtypes
from trainer.evaluation.judging import distances, judge_all, set_scores
from trainer.evaluation.page import write_page
from trainer.evaluation.summary import Summary, summarise, write_results
from trainer.monitoring.validation import ValidationLoss, validation_loss

if TYPE_CHECKING:
    from model.rewriting.rewriting import PromptRewriter

REWRITTEN = "rewritten"
"""Folder of rewritten prompts, where no other is given."""


class BenchmarkModule(Protocol):
    """A module of a benchmark."""

    def open_benchmark(self, config: EvaluateConfig) -> Benchmark:
        """The benchmark with these settings. Raises UserError."""
        ...


def evaluate(config: EvaluateConfig) -> Summary:
    """Evaluates what is not evaluated yet. Raises UserError."""
    keep_freed_memory()
    config = with_dtypes(config)
    out, benchmark = Path(config.out), open_benchmark(config)
    say(_headline(config, benchmark))
    rewriter = _rewriter(config)
    settings = drawing_settings(config, rewriter=rewriter.identity if rewriter else None)
    claim_folder(out, config, benchmark, settings)
    loss = _loss(config)  # features that do not fit are said before anything is drawn
    rewriting = None
    if rewriter is not None:
        texts = [prompt.text for prompt in benchmark.prompts]
        rewriting = rewriter.rewrite(texts, cache=config.rewrite.cache or str(out / REWRITTEN))
    del rewriter  # and its memory
    drawn = open_images(out, config, benchmark, settings, rewriting=rewriting)
    judged = judge_all(out, benchmark, drawn, batch_size=config.judge_batch_size)
    summary = summarise(
        benchmark,
        judged,
        set_scores=set_scores(benchmark, drawn),
        distances=distances(benchmark, drawn),
        loss=loss,
        prompts=drawn_prompts(drawn, rewriting, of_folder=config.images is not None),
    )
    write_results(out, judged, summary)
    write_page(out, benchmark, drawn=drawn, judged=judged, summary=summary, num_images=config.page_images)
    return summary


def open_benchmark(config: EvaluateConfig) -> Benchmark:
    """The benchmark that is asked for, with the judges and images that are. Raises UserError for a judge that it has not."""
    benchmark = _module_of(config.benchmark).open_benchmark(config)
    if unknown := [name for name in config.judges if name not in benchmark.judges]:
        raise UserError(f"{benchmark.name} has no judge {unknown[0]}: it has {', '.join(benchmark.judges)}", setting="judges")
    judges = {name: judge for name, judge in benchmark.judges.items() if name in (config.judges or benchmark.judges)}
    usual, num_images = benchmark.num_images_per_prompt, config.num_images_per_prompt or benchmark.num_images_per_prompt
    differences = [f"{num_images} images of a prompt in place of {usual}"] if num_images != usual else []
    if config.rewrite.model is not None:
        differences.append(f"prompts rewritten by {config.rewrite.model}")
    published = tuple(replace(one, differences=(*one.differences, *differences)) for one in benchmark.published)
    return replace(benchmark, judges=judges, num_images_per_prompt=num_images, published=published)


def _module_of(name: str) -> BenchmarkModule:
    """The module of a benchmark, by its name in BENCHMARKS or its path. Raises UserError if it cannot be imported."""
    try:
        module = import_module(BENCHMARKS.get(name, name))
    except ModuleNotFoundError as error:
        raise missing_library(error, preferred="evaluate") or UserError(
            f"the benchmark {name} needs {error.name}, which is not installed: modules of examples/ are in the repository, "
            f"not in "
            "the installed package, so run this in a checkout, after `make setup`; run your own benchmark in its folder"
        ) from error
    if not hasattr(module, "open_benchmark"):
        raise UserError(
            f"{name}: expected a module with the function open_benchmark, found one without it", setting="benchmark"
        )
    return cast("BenchmarkModule", module)


def _headline(config: EvaluateConfig, benchmark: Benchmark) -> str:
    drawn = (
        f"{' + '.join([config.checkpoint, *config.lora])} in {config.runtime.dtype}"
        if config.checkpoint
        else f"images of {config.images}"
    )
    return f"{benchmark.name}: {drawn}, judged in {benchmark.judge_dtype or config.judge_dtype}"


def _rewriter(config: EvaluateConfig) -> "PromptRewriter | None":
    if config.rewrite.model is None or config.checkpoint is None:
        return None
    from model.rewriting.rewriting import open_prompt_rewriter

    device = RuntimeConfig(device=config.runtime.device).resolved().device
    return open_prompt_rewriter(config.rewrite, checkpoint=config.checkpoint, text_encoder=config.text_encoder, device=device)


def _loss(config: EvaluateConfig) -> ValidationLoss | None:
    if config.features is None or config.checkpoint is None:
        return None
    return validation_loss(
        config.checkpoint,
        config.features,
        num_images=config.validation_images,
        runtime=config.runtime,
        lora=parse_choices(config.lora),
    )
