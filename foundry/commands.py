"""Commands by the names that `t2i` gives them: the module of each, the job that its help lists it under, the extra it needs.

A command is started as `python -m MODULE` or as `t2i NAME`; its words name whichever the user typed.
"""

import re
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain

STARTED_BY_T2I: ContextVar[bool] = ContextVar("started_by_t2i", default=False)
"""Whether this process was started as `t2i NAME`."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: a module that is run, never imported."""

    module: str
    purpose: str
    """Line of `t2i --help`."""
    extra: str = ""
    """Extra of the distribution that installs what it needs; the core of the package is enough where empty."""


JOBS: dict[str, dict[str, Command]] = {
    "Caption images": {
        "caption": Command(module="captioner.run", purpose="write dense captions for images, on Ray", extra="caption"),
        "status": Command(module="captioner.status", purpose="show how far a captioning run is"),
        "compare": Command(module="captioner.compare", purpose="compare the captioners of several runs"),
        "serve": Command(module="captioner.serve", purpose="serve a vision-language model over HTTP", extra="caption"),
    },
    "Explore captions": {
        "query": Command(module="dataset_builder.query", purpose="answer SQL about a run or a data set"),
        "density": Command(module="dataset_builder.density", purpose="print the concept density of captions and other texts"),
        "report": Command(module="dataset_builder.report", purpose="write a page about a run or a data set"),
        "export": Command(module="dataset_builder.export", purpose="write a database for DuckDB's own program"),
        "clean": Command(module="dataset_builder.clean", purpose="find and delete what killed jobs left over"),
    },
    "Build data sets": {
        "score": Command(
            module="dataset_builder.score", purpose="score images and captions (CLIP, aesthetics)", extra="caption"
        ),
        "build": Command(module="dataset_builder.build", purpose="choose images and captions by a recipe"),
        "convert": Command(
            module="dataset_builder.convert", purpose="import third-party captions, export WebDataset", extra="caption"
        ),
    },
    "Train": {
        "plan": Command(module="trainer.plan", purpose="compute time, money, memory and disk of a training", extra="train"),
        "precompute": Command(module="trainer.precompute", purpose="encode images and captions once", extra="train"),
        "fit": Command(module="trainer.fit", purpose="train a stage, or all of them", extra="train"),
        "dreambooth": Command(
            module="trainer.dreambooth", purpose="prepare the training of a subject from a handful of images", extra="train"
        ),
        "compare-techniques": Command(
            module="trainer.compare", purpose="measure what techniques are worth on your data", extra="train"
        ),
        "fit-rewriter": Command(module="trainer.fit_rewriter", purpose="train a rewriter of prompts", extra="train"),
        "tensorboard": Command(module="trainer.tensorboard", purpose="show trainings in TensorBoard", extra="train"),
    },
    "Use and evaluate a network": {
        "generate": Command(module="model.generate", purpose="draw images from prompts", extra="train"),
        "serve-model": Command(module="model.serve", purpose="serve a checkpoint over HTTP, as OpenAI's images", extra="train"),
        "rewrite": Command(module="model.rewrite", purpose="rewrite prompts into dense captions", extra="train"),
        "evaluate": Command(module="trainer.evaluate", purpose="score a checkpoint by a benchmark", extra="evaluate"),
        "import": Command(module="model.convert", purpose="convert checkpoints from and to other formats", extra="train"),
    },
    "Share": {
        "push": Command(
            module="publisher.push", purpose="publish a data set or a model on the Hugging Face hub", extra="train"
        ),
        "pull": Command(module="publisher.pull", purpose="fetch a data set or a model from there", extra="density"),
    },
}
COMMANDS: dict[str, Command] = dict(chain.from_iterable(commands.items() for commands in JOBS.values()))
_NAMES = {command.module: name for name, command in COMMANDS.items()}
_MENTIONED = re.compile(rf"(?<![\w./-])(?:python -m )?({'|'.join(map(re.escape, _NAMES))})(?![\w/-]|\.\w)")


def as_typed(text: str) -> str:
    """The text with each command named as the user names it: `python -m captioner.run` is `t2i caption` under t2i."""
    return _MENTIONED.sub(lambda found: f"t2i {_NAMES[found[1]]}", text) if STARTED_BY_T2I.get() else text


def extra_of(module: str) -> str:
    """The extra that a command's module needs; empty for the core and for what is no command of t2i."""
    return COMMANDS[_NAMES[module]].extra if module in _NAMES else ""
