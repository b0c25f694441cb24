"""Components of the drawing tab and what they call."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from foundry.errors import UserError
from studio.components import PICK, PRIVATE, announced, hint, number_box, read_number, read_whole
from studio.drawing.page import DrawTab
from studio.drawing.painter import DrawSettings
from studio.html import failure, quiet

_NONE = "none"


def add_draw_tab(tab: DrawTab, page: gr.Blocks) -> None:
    """Adds the components to the tab that is open."""
    checkpoints = list(tab.painter.checkpoints)
    chosen = gr.CheckboxGroup(checkpoints, value=checkpoints[:1], label="Checkpoints, side by side", elem_id="checkpoints")
    prompt = gr.Textbox(
        label="Prompt", lines=2, placeholder="a red owl in the center on a yellow background", elem_id="draw_prompt"
    )
    with gr.Row():
        negative = gr.Textbox(label="Negative prompt")
        rewrites = gr.Checkbox(label="Rewrite the prompt first, and show what the network reads")
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
        steps = number_box("Steps", empty="the checkpoint's own", elem_id="steps")
        guidance = number_box("Guidance", empty="the checkpoint's own")
        width = number_box("Width in pixels", empty="as trained")
        height = number_box("Height in pixels", empty="as trained")
    lora = gr.Dropdown([_NONE, *tab.painter.loras], value=_NONE, label="LoRA", visible=bool(tab.painter.loras))
    scale = gr.Slider(-2, 2, value=1, step=0.05, label="Scale of the LoRA", visible=bool(tab.painter.loras))
    draw = gr.Button("Draw", variant="primary", elem_id="draw")
    drawn = gr.HTML(elem_id="drawn")
    hint(f"All drawings are kept in {tab.history.folder}; choose one below to take over its settings.")
    past = gr.HTML(quiet("…"), elem_id="past", js_on_load=PICK)
    last = gr.State("")
    more = gr.Button("Earlier drawings")
    said = gr.HTML(elem_id="draw_message")
    components = [prompt, negative, seed, steps, guidance, width, height, lora, scale, rewrites]

    def draw_all(names: list[str], *values: Any) -> Iterator[str]:
        try:
            settings = _settings(*values)
        except UserError as error:
            yield failure(str(error))
            return
        yield from tab.draw(names, settings)

    def take_over(event: gr.EventData) -> list[Any]:
        try:
            one = tab.settings_of(event.pick)
        except UserError as error:
            return [*[gr.skip()] * (len(components) + 1), failure(str(error))]
        of = one.settings
        names = [one.checkpoint] if one.checkpoint in checkpoints else gr.skip()
        numbers = (of.num_inference_steps, of.guidance_scale, of.width, of.height)
        values = [of.prompt, of.negative_prompt, of.seed, *("" if number is None else f"{number:g}" for number in numbers)]
        line = announced(quiet(f"took over the settings of a drawing by {one.checkpoint}"))
        return [names, *values, of.lora or _NONE, of.lora_scale, of.rewrites, line]

    event = draw.click(draw_all, [chosen, *components], drawn, **PRIVATE)
    event.then(tab.past, None, [past, last], **PRIVATE)
    prompt.submit(draw_all, [chosen, *components], drawn, **PRIVATE).then(tab.past, None, [past, last], **PRIVATE)
    page.load(tab.past, None, [past, last], **PRIVATE)
    more.click(tab.past, [last], [past, last], **PRIVATE)
    past.select(take_over, None, [chosen, *components, said], **PRIVATE)


def _settings(*values: Any) -> DrawSettings:
    prompt, negative, seed, steps, guidance, width, height, lora, scale, rewrites = values
    return DrawSettings(
        prompt=(prompt or "").strip(),
        negative_prompt=(negative or "").strip(),
        seed=int(seed or 0),
        num_inference_steps=read_whole(steps, name="steps"),
        guidance_scale=read_number(guidance, name="guidance"),
        width=read_whole(width, name="width"),
        height=read_whole(height, name="height"),
        lora="" if lora == _NONE else lora,
        lora_scale=float(scale),
        rewrites=bool(rewrites),
    )
