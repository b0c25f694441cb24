"""An OpenAI-compatible server that knows the scenes of a folder and answers with their true structured captions.

    python -m examples.openmoji.true_captioner --scenes ./scenes --port 8000

shows what structured captions are good for without a model that can write them: it recognises an image by its pixels and sees
nothing else; of an image of one colour it knows the beginning of an answer. It answers on loopback until it is stopped.
"""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from foundry.command_line import run_command
from foundry.errors import UserError

NAME = "truth"
"""The model's name in /v1/models."""


@dataclass(frozen=True, kw_only=True)
class TrueCaptionerConfig:
    """Settings of `python -m examples.openmoji.true_captioner`."""

    scenes: str
    """Folder that `python -m examples.openmoji.scenes` wrote."""
    port: int = 8000
    """Port on 127.0.0.1."""


@dataclass(frozen=True, kw_only=True)
class TrueCaption:
    """A scene that the server knows."""

    key: str
    text: str
    """Its true description, as JSON."""


def main(config: TrueCaptionerConfig) -> int:
    """Serves until it is stopped."""
    truths = true_captions(Path(config.scenes))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", config.port), partial(_Handler, truths))
    except OSError as error:
        raise UserError(f"port {config.port} is not free ({error.strerror}): give another --port") from error
    print(f"{len(truths)} scenes known: http://127.0.0.1:{server.server_port}/v1", flush=True)
    with server:
        server.serve_forever()
    return 0


def true_captions(scenes: Path) -> dict[bytes, TrueCaption]:
    """The scenes of a folder by their pixels. Raises UserError if it holds none."""
    import pyarrow.parquet as pq
    from PIL import Image

    from examples.openmoji.composition import render
    from examples.openmoji.scene_files import TRUTH_FILE, SceneSet, jpeg_bytes, sample
    from examples.openmoji.structured import structured_caption

    try:
        settings = (pq.read_schema(scenes / TRUTH_FILE).metadata or {})[b"settings"]
    except (OSError, KeyError) as error:
        raise UserError(f"{scenes} holds no scenes ({error}): give the --out of python -m examples.openmoji.scenes") from None
    wanted = SceneSet(**json.loads(settings))
    found = {}
    for one in (sample(wanted, index) for index in range(wanted.count)):
        text = json.dumps(structured_caption(one.scene, seed=wanted.seed))
        pixels = Image.open(io.BytesIO(jpeg_bytes(render(one.scene)))).convert("RGB").tobytes()
        found[pixels] = TrueCaption(key=one.key, text=text)
    return found


def pixels_of(body: Mapping[str, Any]) -> bytes:
    """The pixels of the image in a request."""
    from PIL import Image

    url = next(part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url")
    return Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))).convert("RGB").tobytes()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, truths: Mapping[bytes, TrueCaption], *arguments: Any) -> None:
        self._truths = truths
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """The list of models."""
        self._send({"data": [{"id": NAME}]})

    def do_POST(self) -> None:
        """A chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        pixels = pixels_of(body)
        known = self._truths.get(pixels)
        if known is None and pixels != pixels[:3] * (len(pixels) // 3):  # a run asks first about a grey image
            self._send({"error": {"message": "this image is none of the scenes"}}, status=422)
            return
        text = known.text if known else "{"
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 0, "completion_tokens": len(text) // 4}
        self._send({"model": NAME, "choices": [choice], "usage": usage})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Is silent."""

    def _send(self, content: Mapping[str, Any], *, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            TrueCaptionerConfig,
            main,
            prog="python -m examples.openmoji.true_captioner",
            example="python -m examples.openmoji.true_captioner --scenes ./scenes --port 8000",
        )
    )
