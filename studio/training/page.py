"""Training tab as plain functions: curves as SVG, the newest figures as a table, a grid of samples with what it shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dataset_builder.reports.charts import Series, lines_svg
from foundry.errors import UserError
from studio.html import failure, quiet, table, text
from studio.training.runs import Grid, curves, grids, read_metrics, resume_command, status_row, stop

GRIDS = "/grids"


class TrainingTab:
    """Trainings by the names that tell them apart."""

    def __init__(self, trainings: Mapping[str, Path]) -> None:
        self.trainings = dict(trainings)

    def curves(self, chosen: Sequence[str]) -> str:
        """A chart for each figure, with a line for each chosen training; one that cannot be read says why."""
        if not chosen:
            return quiet("Choose a training.")
        sound, problems = {}, ""
        for name in chosen:
            try:
                read_metrics(self.trainings[name])
                sound[name] = self.trainings[name]
            except UserError as error:
                problems += failure(f"{name}: {error}")
        charts = curves(sound)
        drawn = [
            lines_svg(
                title, [Series(name=line.training, points=line.points) for line in lines], x_name="images", from_zero=False
            )
            for title, lines in charts.items()
        ]
        if not drawn:
            return problems or quiet("There are no metrics yet.")
        return f'{problems}<div class="charts">{"".join(f"<figure>{chart}</figure>" for chart in drawn)}</div>'

    def status(self) -> str:
        """The newest figures of all trainings."""
        rows = []
        for name, folder in self.trainings.items():
            try:
                rows.append(status_row(name, folder))
            except (UserError, OSError) as error:
                rows.append({"training": name, "state": str(error), **dict.fromkeys(status_columns())})
        return table(rows, caption="Newest figures of each training")

    def grids(self, name: str) -> list[Grid]:
        """The sample grids of a training."""
        return grids(self.trainings[name])

    def grid(self, name: str, position: int) -> str:
        """One of the sample grids, with its prompts. `position` counts from 1."""
        found = self.grids(name)
        if not found:
            return quiet(f"{name} has drawn no samples yet: trainings draw some every hour, or as `watch` says.")
        one = found[min(max(position, 1), len(found)) - 1]
        at = f"({found.index(one) + 1} of {len(found)})"
        if one.problem:
            return failure(f"{at} {one.problem}")
        number = list(self.trainings).index(name)
        prompts = "".join(f"<li>{text(prompt)}</li>" for prompt in one.texts)
        alt = f"Samples after {one.images_seen:,} images" + (f": {'; '.join(one.texts)}" if one.texts else "")
        return (
            f'<figure class="grid-of-samples"><img src="{GRIDS}/{number}/{one.path.name}" alt="{text(alt)}"><figcaption>'
            f"<b>{one.images_seen:,} images</b> {at}<ol>{prompts}</ol></figcaption>"
            "</figure>"
        )

    def grid_file(self, number: int, name: str) -> Path | None:
        """The file of a grid, by the number of its training and its name; None for whatever is no grid of it."""
        folders = list(self.trainings.values())
        if not 0 <= number < len(folders):
            return None
        return next((one.path for one in grids(folders[number]) if one.path.name == name), None)

    def stop(self, name: str) -> str:
        """Asks a training to stop; a line about it."""
        try:
            return quiet(stop(self.trainings[name]))
        except UserError as error:
            return failure(str(error))

    def resume(self, name: str) -> str:
        """The command that resumes a training."""
        try:
            command = resume_command(self.trainings[name])
        except UserError as error:
            return failure(str(error))
        where = "Run this:" if command.startswith("cd ") else "Run this in the folder in which the training was started:"
        return f"{quiet(where)}<pre><code>{text(command)}</code></pre>"


def status_columns() -> list[str]:
    """Columns of the table of newest figures that come after the first two."""
    return ["images seen", "px", "loss", "validation loss", "images/s", "data wait", "MFU", "memory", "left"]
