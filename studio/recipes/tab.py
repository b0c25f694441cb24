"""Components of the data set tab and what they call."""

from typing import Any

import gradio as gr

from foundry.errors import UserError
from studio.components import PRIVATE, hint
from studio.html import failure, quiet
from studio.recipes.page import LEAST, LEAST_SCORES, RecipeTab, Sliders

_MOST = {"num_words": 300, "num_nouns": 100, "num_distinct_nouns": 60}


def add_recipe_tab(tab: RecipeTab) -> None:
    """Adds the components to the tab that is open."""
    hint("A recipe chooses images and captions. The funnel is a dry run on the whole runs: nothing is written until you save.")
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            runs = gr.CheckboxGroup(list(tab.runs), value=list(tab.runs)[:1], label="Runs", elem_id="recipe_runs")
            values = _values(tab)
        with gr.Column(scale=3, min_width=380):
            count = gr.Button("Count again", variant="primary", elem_id="count")
            funnel = gr.HTML(quiet("Move a slider, or count."), elem_id="funnel")
            with gr.Row():
                name = gr.Textbox("recipe", label="Name of the recipe", elem_id="recipe_name")
                save = gr.Button("Save as YAML", elem_id="save_recipe")
            said = gr.HTML(elem_id="recipe_message")
    inputs = [runs, *values.values()]

    def show(chosen: list[str], *given: Any) -> str:
        return tab.funnel(chosen, _sliders(dict(zip(values, given, strict=True))))

    def keep(called: str, chosen: list[str], *given: Any) -> str:
        try:
            return tab.save(called or "", chosen, _sliders(dict(zip(values, given, strict=True))))
        except UserError as error:
            return failure(str(error))

    count.click(show, inputs, funnel, **PRIVATE)
    for component in inputs:
        event = component.release if isinstance(component, gr.Slider) else component.change
        if isinstance(component, gr.Textbox):
            event = component.submit
        event(show, inputs, funnel, trigger_mode="always_last", **PRIVATE)
    save.click(keep, [name, *inputs], said, **PRIVATE)


def _values(tab: RecipeTab) -> dict[str, Any]:
    """The components of a recipe, by the names that `_sliders` reads."""
    prompts, statuses = tab.prompts(), tab.statuses()
    values: dict[str, Any] = {
        "prompts": gr.CheckboxGroup(prompts, value=prompts, label="Captions of these prompts"),
        "statuses": gr.CheckboxGroup(statuses, value=["ok"], label="States of captions"),
    }
    for figure, label in LEAST.items():
        values[figure] = gr.Slider(0, _MOST[figure], value=0, step=1, label=label, elem_id=f"least_{figure}")
    values["clip_mean"] = gr.Slider(0, 0.5, value=0, step=0.01, label=f"{LEAST_SCORES['clip_mean']} (needs scores)")
    values["aesthetic"] = gr.Slider(0, 10, value=0, step=0.1, label=f"{LEAST_SCORES['aesthetic']} (needs scores)")
    values["min_side_px"] = gr.Slider(0, 2048, value=0, step=16, label="Shorter side at least, in pixels")
    values["max_aspect"] = gr.Slider(0, 8, value=0, step=0.1, label="Longer side at most this many times the shorter (0: any)")
    values["max_per_noun"] = gr.Slider(0, 100_000, value=0, step=100, label="About this many images per noun at most (0: any)")
    values["exact_duplicates"] = gr.Checkbox(label="Drop images with the same bytes as another")
    values["min_cosine"] = gr.Slider(
        0, 1, value=0, step=0.01, label="Drop images this similar (CLIP cosine; 0: none; needs scores)"
    )
    values["without_bad"] = gr.Checkbox(label="Drop captions that are flagged as bad")
    values["where"] = gr.Textbox(
        label="SQL condition; Enter counts", placeholder="list_contains(nouns, 'owl')", elem_id="where"
    )
    values["validation_share"] = gr.Slider(0, 0.5, value=0.01, step=0.005, label="Share of the images for validation")
    values["seed"] = gr.Number(0, label="Seed of the hashes that choose", precision=0)
    return values


def _sliders(given: dict[str, Any]) -> Sliders:
    figures = [*LEAST, *LEAST_SCORES]
    numbers = {name: given[name] or 0 for name in ("min_side_px", "max_aspect", "max_per_noun", "min_cosine", "seed")}
    return Sliders(
        prompts=tuple(given["prompts"]),
        statuses=tuple(given["statuses"]),
        least={name: given[name] for name in figures},
        without_bad=bool(given["without_bad"]),
        where=(given["where"] or "").strip(),
        exact_duplicates=bool(given["exact_duplicates"]),
        validation_share=float(given["validation_share"] or 0),
        **{**numbers, "min_side_px": int(numbers["min_side_px"]), "max_per_noun": int(numbers["max_per_noun"])},
    )
