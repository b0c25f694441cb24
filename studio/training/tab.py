"""Components of the training tab and what they call."""

from typing import Any

import gradio as gr

from studio.components import PRIVATE, announced, hint
from studio.training.page import TrainingTab

_EVERY_S = 5


def add_training_tab(tab: TrainingTab, page: gr.Blocks) -> None:
    """Adds the components to the tab that is open."""
    names = list(tab.trainings)
    status = gr.HTML(tab.status(), elem_id="status")
    chosen = gr.CheckboxGroup(names, value=names, label="Trainings in the charts", elem_id="trainings")
    live = gr.Checkbox(True, label=f"Read the metrics again every {_EVERY_S} seconds")
    charts = gr.HTML(tab.curves(names), elem_id="charts")
    with gr.Row():
        one = gr.Dropdown(names, value=names[0], label="Training", elem_id="training")
        position = gr.Slider(1, **_span(tab, names[0]), step=1, label="Sample grid, from first to last", elem_id="grid_at")
    known = gr.State(len(tab.grids(names[0])))
    grid = gr.HTML(tab.grid(names[0], len(tab.grids(names[0]))), elem_id="grid")
    with gr.Row():
        stop = gr.Button("Stop this training", variant="stop", elem_id="stop")
        resume = gr.Button("How to resume it", elem_id="resume")
    hint("Stopping saves a checkpoint. It works on any machine that shares the training's folder.")
    said = gr.HTML(elem_id="training_message")

    def load(shown: list[str], name: str, at: float, count: int) -> list[Any]:
        return refreshed(tab, shown, name, at, known=count)

    def refresh(is_live: bool, *given: Any) -> list[Any]:
        return load(*given) if is_live else [gr.skip()] * 5

    def choose(name: str) -> list[Any]:
        number = len(tab.grids(name))
        return [gr.Slider(**_span(tab, name)), tab.grid(name, number), number]

    timer = gr.Timer(_EVERY_S)
    now, outputs = [chosen, one, position, known], [status, charts, position, grid, known]
    timer.tick(refresh, [live, *now], outputs, show_progress="hidden", **PRIVATE)
    page.load(load, now, outputs, **PRIVATE)
    chosen.change(tab.curves, [chosen], charts, **PRIVATE)
    one.change(choose, [one], [position, grid, known], **PRIVATE)
    position.change(tab.grid, [one, position], grid, show_progress="hidden", **PRIVATE)
    stop.click(lambda name: announced(tab.stop(name)), [one], said, **PRIVATE)
    resume.click(lambda name: announced(tab.resume(name)), [one], said, **PRIVATE)


def refreshed(tab: TrainingTab, chosen: list[str], name: str, position: float, *, known: int) -> list[Any]:
    """What status, charts, slider and grid show now. A slider that was at the end of the `known` grids follows the newest."""
    figures = [tab.status(), tab.curves(chosen)]
    number = len(tab.grids(name))
    if number == known:
        return [*figures, gr.skip(), gr.skip(), number]
    if position >= known:
        return [*figures, gr.Slider(**_span(tab, name)), tab.grid(name, number), number]
    return [*figures, gr.Slider(**{**_span(tab, name), "value": min(position, max(number, 1))}), gr.skip(), number]


def _span(tab: TrainingTab, name: str) -> dict[str, Any]:
    """The end of the slider, its position there, and whether there is anything to slide through."""
    number = len(tab.grids(name))
    return {"maximum": max(number, 2), "value": max(number, 1), "visible": number > 1}
