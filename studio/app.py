"""Application of the studio: the page with its tabs, the routes of its pictures, and the guard in front of both."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Response

from studio.captions.gallery import CaptionsTab
from studio.captions.pictures import SIDES_PX, Pictures
from studio.guard import Guard

if TYPE_CHECKING:
    import gradio as gr

    from studio.captions.source import CaptionSource
    from studio.workplace import Workplace

TITLE = "T2I Foundry studio"
_CONCURRENT = 8
"""Events that one handler answers at a time."""


def studio_app(place: "Workplace", *, key: str | None) -> FastAPI:
    """The application over what a studio was opened with. Telemetry is off before Gradio is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio as gr

    app = FastAPI(title=TITLE, openapi_url=None, docs_url=None, redoc_url=None)
    _add_pictures(app, place.sources)
    blocks = _page(place)
    blocks.queue(default_concurrency_limit=_CONCURRENT, api_open=False)
    mounted = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=(Path(__file__).parent / "studio.css").read_text(encoding="utf-8"),
        footer_links=["settings"],
        run_history=False,
        ssr_mode=False,
        allowed_paths=[],
        show_error=True,
    )
    mounted.add_middleware(Guard, key=key)
    return mounted


def _page(place: "Workplace") -> "gr.Blocks":
    import gradio as gr

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f"<h1>{TITLE}</h1>")
        with gr.Tabs():
            if place.sources:
                from studio.captions.tab import add_captions_tab

                with gr.Tab("Captions", id="captions"):
                    add_captions_tab(CaptionsTab(place.sources), page)
    return page


def _add_pictures(app: FastAPI, sources: "list[CaptionSource]") -> None:
    pictures = Pictures(sources)

    @app.get("/pictures/{source}/{version}/{number}/{size}")
    def picture(source: int, version: str, number: int, size: str) -> Response:
        found = pictures.get(source, version, number, size) if size in SIDES_PX else None  # type: ignore[arg-type]
        if found is None:
            return Response("there is no such picture\n", 404, media_type="text/plain")
        caching = "no-store" if found.problem else "private, max-age=3600"
        return Response(found.data, media_type=found.media_type, headers={"Cache-Control": caching})
