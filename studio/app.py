"""Application of the studio: the page with its tabs, the routes of its pictures, and the guard in front of both."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Response

from studio.captions.gallery import CaptionsTab
from studio.captions.pictures import SIDES_PX, Pictures
from studio.drawing.history import History
from studio.drawing.page import DrawTab
from studio.guard import Guard
from studio.judging.page import JudgeTab
from studio.judging.verdicts import VerdictLog
from studio.recipes.page import RecipeTab
from studio.training.page import TrainingTab
from studio.training.runs import training_names

if TYPE_CHECKING:
    import gradio as gr

    from studio.workplace import Workplace

TITLE = "T2I Foundry studio"
_CONCURRENT = 8
"""Events that one handler answers at a time."""
_KEPT = {"Cache-Control": "private, max-age=3600"}


class _Tabs:
    """What the tabs show and do, without the components."""

    def __init__(self, place: "Workplace") -> None:
        self.captions = CaptionsTab(place.sources, place.sql)
        self.recipes = RecipeTab(place.sources, out=place.out)
        self.training = TrainingTab(training_names(place.trainings))
        self.draw = DrawTab(place.painter, History(place.out))
        self.judge = JudgeTab(place.painter, VerdictLog(place.out))


def studio_app(place: "Workplace", *, key: str | None) -> FastAPI:
    """The application over what a studio was opened with. Telemetry is off before Gradio is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio as gr

    tabs = _Tabs(place)
    tabs.captions.warm_up()
    app = FastAPI(title=TITLE, openapi_url=None, docs_url=None, redoc_url=None)
    _add_pictures(app, Pictures(place.sources))
    _add_images(app, tabs)
    blocks = _page(tabs)
    blocks.queue(default_concurrency_limit=_CONCURRENT, api_open=False)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=gr.themes.Default(primary_hue="blue", **fonts),
        css=(Path(__file__).parent / "studio.css").read_text(encoding="utf-8"),
        footer_links=["settings"],
        run_history=False,
        ssr_mode=False,
    )
    mounted.add_middleware(Guard, key=key)
    return mounted


def _page(tabs: _Tabs) -> "gr.Blocks":
    """The page; a tab that has nothing to show is left out."""
    import gradio as gr

    from studio.captions.tab import add_captions_tab
    from studio.drawing.tab import add_draw_tab
    from studio.judging.tab import add_judge_tab
    from studio.recipes.tab import add_recipe_tab
    from studio.training.tab import add_training_tab

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f"<h1>{TITLE}</h1>")
        with gr.Tabs():
            if tabs.captions.sources:
                with gr.Tab("Captions"):
                    add_captions_tab(tabs.captions, page)
            if tabs.recipes.runs:
                with gr.Tab("Data set"):
                    add_recipe_tab(tabs.recipes)
            if tabs.training.trainings:
                with gr.Tab("Training"):
                    add_training_tab(tabs.training, page)
            if tabs.draw.painter.checkpoints:
                with gr.Tab("Draw"):
                    add_draw_tab(tabs.draw, page)
            if len(tabs.judge.painter.checkpoints) > 1:
                with gr.Tab("Judge"):
                    add_judge_tab(tabs.judge, page)
    return page


def _add_pictures(app: FastAPI, pictures: Pictures) -> None:
    @app.get("/pictures/{source}/{version}/{number}/{size}")
    def picture(source: int, version: str, number: int, size: str) -> Response:
        found = pictures.get(source, version, number, size) if size in SIDES_PX else None
        if found is None:
            return _missing()
        return Response(
            found.data, media_type=found.media_type, headers={"Cache-Control": "no-store"} if found.problem else _KEPT
        )


def _add_images(app: FastAPI, tabs: _Tabs) -> None:
    """Grids of samples, drawings and pairs: each by a name that its tab knows, never by a path."""

    @app.get("/grids/{number}/{name}")
    def grid(number: int, name: str) -> Response:
        return _png(tabs.training.grid_file(number, name))

    @app.get("/drawings/{name}")
    def drawing(name: str) -> Response:
        return _png(tabs.draw.history.file(name))

    @app.get("/pairs/{token}/{side}.png")
    def pair(token: str, side: str) -> Response:
        data = tabs.judge.image(token, side)
        return _missing() if data is None else Response(data, media_type="image/png", headers={"Cache-Control": "no-store"})


def _png(path: Path | None) -> Response:
    return _missing() if path is None else Response(path.read_bytes(), media_type="image/png", headers=_KEPT)


def _missing() -> Response:
    return Response("there is no such picture\n", 404, media_type="text/plain")
