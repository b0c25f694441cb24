"""Components of the drawing tab and what they call."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from foundry.errors import UserError
from studio.components import GUIDANCE_LIMITS, PICK, PRIVATE, announced, hint, number_box, read_number, read_whole
from studio.drawing.page import DrawTab
from studio.drawing.painter import DrawSettings
from studio.html import failure, quiet

_NONE = "none"
_EXAMPLE = "a red owl in the center on a yellow background"


def add_draw_tab(tab: DrawTab, page: gr.Blocks) -> None:
    """Adds the components to the tab that is open."""
    checkpoints = list(tab.painter.checkpoints)
    chosen = gr.CheckboxGroup(checkpoints, value=checkpoints[:1], label="Checkpoints, side by side", elem_id="checkpoints")
    settings = _components(tab.painter.loras)
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", elem_id="draw")
        stop = gr.Button("Stop drawing", elem_id="stop_drawing")
    drawn = gr.HTML(elem_id="drawn")
    hint(f"All drawings are kept in {tab.history.folder}; choose one below to take over its settings.")
    past = gr.HTML(quiet("…"), elem_id="past", js_on_load=PICK)
    last = gr.State("")
    more = gr.Button("Earlier drawings")
    said = gr.HTML(elem_id="draw_message")

    def draw_all(request: gr.Request, names: list[str], *values: Any) -> Iterator[str]:
        try:
            read = _settings(*values)
        except UserError as error:
            yield failure(str(error))
            return
        yield from tab.draw(names, read, person=request.session_hash or "")

    def stop_drawing(request: gr.Request) -> None:
        tab.stop(request.session_hash or "")

    def take_over(event: gr.EventData) -> list[Any]:
        try:
            one = tab.settings_of(event.pick)
        except UserError as error:
            return [*[gr.skip()] * (len(settings) + 1), failure(str(error))]
        names = [one.checkpoint] if one.checkpoint in checkpoints else gr.skip()
        line = announced(quiet(f"took over the settings of a drawing by {one.checkpoint}"))
        return [names, *_values(one.settings), line]

    for trigger in (draw.click, settings["prompt"].submit):
        event = trigger(draw_all, [chosen, *settings.values()], drawn, **PRIVATE)
        event.then(tab.past, None, [past, last], **PRIVATE)
    stop.click(stop_drawing, None, None, **PRIVATE)
    page.load(tab.past, None, [past, last], **PRIVATE)
    more.click(tab.past, [last], [past, last], **PRIVATE)
    past.select(take_over, None, [chosen, *settings.values(), said], **PRIVATE)


def _components(loras: tuple[str, ...]) -> dict[str, Any]:
    """The components of DrawSettings, in the order that `_settings` and `_values` have."""
    components: dict[str, Any] = {
        "prompt": gr.Textbox(label="Prompt", lines=2, placeholder=_EXAMPLE, elem_id="draw_prompt"),
    }
    with gr.Row():
        components["negative"] = gr.Textbox(label="Negative prompt")
        components["rewrites"] = gr.Checkbox(label="Rewrite the prompt first, and show what the network reads")
    with gr.Row():
        components["seed"] = gr.Number(0, label="Seed", precision=0, elem_id="seed")
        components["steps"] = number_box("Steps", empty="default", elem_id="steps")
        components["guidance"] = number_box("Guidance", empty="default")
        components["width"] = number_box("Width in pixels", empty="as trained")
        components["height"] = number_box("Height in pixels", empty="as trained")
    components["lora"] = gr.Dropdown([_NONE, *loras], value=_NONE, label="LoRA", visible=bool(loras))
    components["scale"] = gr.Slider(-2, 2, value=1, step=0.05, label="Scale of the LoRA", visible=bool(loras))
    return components


def _settings(*values: Any) -> DrawSettings:
    prompt, negative, rewrites, seed, steps, guidance, width, height, lora, scale = values
    return DrawSettings(
        prompt=(prompt or "").strip(),
        negative_prompt=(negative or "").strip(),
        seed=int(seed or 0),
        num_inference_steps=read_whole(steps, name="steps"),
        guidance_scale=read_number(guidance, name="guidance", limits=GUIDANCE_LIMITS),
        width=read_whole(width, name="width"),
        height=read_whole(height, name="height"),
        lora="" if lora == _NONE else lora,
        lora_scale=float(scale),
        rewrites=bool(rewrites),
    )


def _values(of: DrawSettings) -> list[Any]:
    numbers = (of.num_inference_steps, of.guidance_scale, of.width, of.height)
    shown = ("" if number is None else f"{number:g}" for number in numbers)
    return [of.prompt, of.negative_prompt, of.rewrites, of.seed, *shown, of.lora or _NONE, of.lora_scale]
