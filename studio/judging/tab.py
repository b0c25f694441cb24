"""Components of the judging tab and what they call."""

import getpass
from collections.abc import Callable
from typing import Any

import gradio as gr

from foundry.errors import UserError
from studio.components import GUIDANCE_LIMITS, PRIVATE, announced, hint, number_box, read_number, read_whole
from studio.html import failure, quiet, reason
from studio.judging.page import JudgeTab, no_pair

_PROMPTS = "\n".join(
    [
        "a red owl in the center on a yellow background",
        "a key on the left side on a striped gray background",
        "a frog at the bottom right on a plain pink background",
    ]
)
_SIDES = {"left": "Left is better", "tie": "Both alike", "right": "Right is better"}


def add_judge_tab(tab: JudgeTab, page: gr.Blocks) -> None:
    """Adds the components to the tab that is open."""
    checkpoints = list(tab.painter.checkpoints)
    hint("Two checkpoints draw the same prompt at the same seed. You judge without knowing which is which.")
    with gr.Row():
        first = gr.Dropdown(checkpoints, value=checkpoints[0], label="One checkpoint", elem_id="judge_first")
        second = gr.Dropdown(checkpoints, value=checkpoints[-1], label="The other checkpoint", elem_id="judge_second")
        by = gr.Textbox(getpass.getuser(), label="Your name, saved with the verdict")
    prompts = gr.Textbox(_PROMPTS, label="Prompts, one to a line", lines=4)
    with gr.Row():
        steps = number_box("Steps", empty="default", elem_id="judge_steps")
        guidance = number_box("Guidance", empty="default")
    token = gr.State("")
    new = gr.Button("Draw a pair", variant="primary", elem_id="new_pair")
    pair = gr.HTML(no_pair(), elem_id="pair")
    with gr.Row():
        buttons = {side: gr.Button(label, elem_id=f"judge_{side}", interactive=False) for side, label in _SIDES.items()}
    said = gr.HTML(elem_id="judge_message")
    tally = gr.HTML(tab.tally(), elem_id="tally")

    def draw(*values: Any) -> list[Any]:
        one, other, lines, num_steps, scale = values
        try:
            steps_given = read_whole(num_steps, name="steps")
            scale_given = read_number(scale, name="guidance", limits=GUIDANCE_LIMITS)
            found, html = tab.new_pair([one, other], lines or "", steps=steps_given, guidance=scale_given)
        except (UserError, ModuleNotFoundError) as error:
            return [gr.skip(), gr.skip(), failure(reason(error)), *[gr.skip()] * len(buttons)]
        return [found, html, "", *_enabled(True)]

    def judge(side: str) -> Callable[[str, str], list[Any]]:
        def handler(waiting: str, name: str) -> list[Any]:
            if tab.is_judged(waiting):
                return [gr.skip()] * (3 + len(buttons))
            try:
                line = tab.judge(waiting, side, by=name or "")
            except UserError as error:
                return [waiting, failure(str(error)), gr.skip(), *_enabled(bool(waiting))]
            return ["", announced(quiet(line)), tab.tally(), *_enabled(False)]

        return handler

    new.click(draw, [first, second, prompts, steps, guidance], [token, pair, said, *buttons.values()], **PRIVATE)
    for side, button in buttons.items():
        button.click(judge(side), [token, by], [token, said, tally, *buttons.values()], **PRIVATE)
    page.load(tab.tally, None, tally, **PRIVATE)


def _enabled(is_on: bool) -> list[Any]:
    """The state of the buttons: a verdict is for a pair that waits, once."""
    return [gr.Button(interactive=is_on) for _ in _SIDES]
