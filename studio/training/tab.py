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
    grid = gr.HTML(tab.grid(names[0], len(tab.grids(names[0]))), elem_id="grid")
    with gr.Row():
        stop = gr.Button("Stop this training", variant="stop", elem_id="stop")
        resume = gr.Button("How to resume it", elem_id="resume")
    hint("Stopping saves a checkpoint. It works on any machine that shares the training's folder.")
    said = gr.HTML(elem_id="training_message")

    def refresh(is_live: bool, shown: list[str]) -> list[Any]:
        return [tab.status(), tab.curves(shown)] if is_live else [gr.skip(), gr.skip()]

    def choose(name: str) -> list[Any]:
        return [gr.Slider(**_span(tab, name)), tab.grid(name, len(tab.grids(name)))]

    timer = gr.Timer(_EVERY_S)
    timer.tick(refresh, [live, chosen], [status, charts], show_progress="hidden", **PRIVATE)
    page.load(lambda shown: [tab.status(), tab.curves(shown)], [chosen], [status, charts], **PRIVATE)
    chosen.change(tab.curves, [chosen], charts, **PRIVATE)
    one.change(choose, [one], [position, grid], **PRIVATE)
    position.change(tab.grid, [one, position], grid, show_progress="hidden", **PRIVATE)
    stop.click(lambda name: announced(tab.stop(name)), [one], said, **PRIVATE)
    resume.click(lambda name: announced(tab.resume(name)), [one], said, **PRIVATE)


def _span(tab: TrainingTab, name: str) -> dict[str, Any]:
    """The end of the slider, its position there, and whether there is anything to slide through."""
    number = len(tab.grids(name))
    return {"maximum": max(number, 2), "value": max(number, 1), "visible": number > 1}
