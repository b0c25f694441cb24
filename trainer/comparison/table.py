"""Tables of a comparison: losses, scores and costs of each arm with spread and paired difference to base, and notes on them."""

from collections.abc import Iterator, Sequence

from foundry.wording import counted
from trainer.comparison.arms import BASE
from trainer.comparison.results import ALL, Compared, Figure
from trainer.comparison.statistics import Difference, Estimate, what_seeds_tell
from trainer.evaluation.benchmark import ALL as ALL_PROMPTS
from trainer.evaluation.benchmark import OVERALL

Cells = tuple[Sequence[str], list[list[str]]]
"""Columns and rows."""

_EQUAL = {
    "flops": "equal FLOPs (by the planner, with teacher, projectors and optimiser)",
    "seconds": "equal seconds of the training loop (timed at the start)",
    "images": "equal images",
}
_DIGITS = {"loss": 4, "score": 3}


def markdown(compared: Compared) -> str:
    """The whole answer as Markdown, with columns that are aligned."""
    parts = [headline(compared), _table("Validation loss at the end", loss_rows(compared))]
    parts += [_table("By band of timesteps", band_rows(compared)), _table("Cost of a training", cost_rows(compared))]
    if compared.scores:
        parts.insert(3, _table("Prompt scores at the end", score_rows(compared, every=False)))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes(compared))]) + "\n"


def headline(compared: Compared) -> str:
    """The comparison in a line."""
    seeds = counted(len(compared.seeds), "seed")
    return f"{BASE} and {counted(len(compared.plans) - 1, 'arm')}, {seeds}, {_EQUAL[compared.equal]}"


def loss_rows(compared: Compared) -> Cells:
    """A row for each arm: the loss over all timesteps, and its difference to base."""
    figure = next((one for one in compared.figures if one.kind == "loss" and one.name == ALL), None)
    columns = ("arm", "seeds", "loss", "spread", "difference", "95 % interval", "beyond noise")
    return columns, [] if figure is None else [[arm, *_cells(figure, found)] for arm, found in figure.estimates.items()]


def score_rows(compared: Compared, *, every: bool) -> Cells:
    """A row for each score and arm; unless `every`, scores over all prompts alone, where there are any."""
    over_all = {one.name for one in compared.scores if one.category in (ALL_PROMPTS, OVERALL)}
    figures = [one for one in compared.figures if one.kind == "score" and (every or not over_all or one.name in over_all)]
    columns = ("score", "arm", "seeds", "mean", "spread", "difference", "95 % interval", "beyond noise")
    return columns, [[one.name, arm, *_cells(one, found)] for one in figures for arm, found in one.estimates.items()]


def band_rows(compared: Compared) -> Cells:
    """A row for each arm: base's losses with their spread, and the other arms' differences with half of their interval."""
    figures = [one for one in compared.figures if one.kind == "loss" and one.name != ALL]
    rows = [[plan.arm.name, *(_band_cell(one, plan.arm.name) for one in figures)] for plan in compared.plans]
    return ("arm", *(one.name for one in figures)), rows


def cost_rows(compared: Compared) -> Cells:
    """A row for each arm: means over its seeds."""
    costs = {one.name: one.estimates for one in compared.figures if one.kind == "cost"}
    columns = ("arm", "images", "FLOPs", "seconds", "images/s", "peak GB", "parameters")
    rows = []
    for arm, seconds in costs["seconds"].items():
        images, memory = costs["images"][arm].mean, costs["memory_bytes"].get(arm)
        rows.append(
            [
                arm,
                f"{images:,.0f}",
                f"{costs['flops'][arm].mean:.3g}",
                f"{seconds.mean:,.1f}",
                f"{images / seconds.mean:.4g}",
                "" if memory is None else f"{memory.mean / 1e9:.2f}",
                f"{costs['parameters'][arm].mean:,.0f}",
            ]
        )
    return columns, rows


def notes(compared: Compared) -> Iterator[str]:
    """Notes on what the figures mean, and what they cannot tell."""
    yield (
        "Losses are of the average of the weights, on the same images, captions, noise and timesteps in all arms. Spread: "
        "standard deviation over seeds. Difference: the arm minus base, seed by seed; beyond noise where its interval "
        "(Student's t) does not hold zero."
    )
    yield what_seeds_tell(len(compared.seeds))
    for plan in compared.plans[1:]:
        if plan.arm.config.objective != compared.plans[0].arm.config.objective:
            yield f"{plan.arm.name} has another objective, whose loss over all timesteps is another figure: compare its scores."
        if plan.arm.config.data.caption_weights != compared.plans[0].arm.config.data.caption_weights:
            yield f"{plan.arm.name} is validated on the captions that it weighs most, which are other ones than base's."
        if plan.opened.same_start < 1:
            yield f"{plan.arm.name} starts with {plan.opened.same_start:.0%} of base's weights; its others have another shape."
    for (arm, seed), reason in compared.diverged.items():
        yield f"{arm} with seed {seed} has no result: {reason}"
    if not compared.is_done:
        yield "The comparison is not finished: the same command resumes it."


def verdict(difference: Difference | None) -> str:
    """Whether the difference is beyond noise, and to which side."""
    if difference is None:
        return ""
    if difference.half_width is None:
        return "not known"
    if not difference.is_beyond_noise:
        return "no"
    return "yes, lower" if difference.mean < 0 else "yes, higher"


def _cells(figure: Figure, found: Estimate) -> list[str]:
    """Seeds, mean, spread, difference, interval, verdict."""
    digits, difference = _DIGITS[figure.kind], found.difference
    cells = [str(len(found.values)), f"{found.mean:.{digits}f}", "" if found.spread is None else f"{found.spread:.{digits}f}"]
    if difference is None:
        return [*cells, "", "", ""]
    middle, half = difference.mean, difference.half_width
    interval = "" if half is None else f"{middle - half:+.{digits}f} to {middle + half:+.{digits}f}"
    return [*cells, f"{middle:+.{digits}f}", interval, verdict(difference)]


def _band_cell(figure: Figure, arm: str) -> str:
    found, digits = figure.estimates.get(arm), _DIGITS[figure.kind]
    if found is None or (found.difference is None and arm != BASE):
        return ""
    if found.difference is None:
        return f"{found.mean:.{digits}f}" + ("" if found.spread is None else f" ± {found.spread:.{digits}f}")
    half = found.difference.half_width
    star = " *" if found.difference.is_beyond_noise else ""
    return f"{found.difference.mean:+.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}") + star


def _table(title: str, cells: Cells) -> str:
    """A Markdown table; texts to the left, numbers to the right."""
    columns, rows = cells
    if not rows:
        return f"{title}: nothing yet"
    shown = [[cell.replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    names = {0} | {index for index, name in enumerate(columns) if name in ("arm", "beyond noise")}

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if index in names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = (f"{'-' * width}" if index in names else f"{'-' * (width - 1)}:" for index, width in enumerate(widths))
    return "\n".join([f"{title}:", "", line(shown[0]), f"| {' | '.join(rule)} |", *map(line, shown[1:])])
