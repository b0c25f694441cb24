"""The server that knows the truth recognises its scenes and refuses any other image."""

import json
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from captioner.engines.endpoint_engine import EndpointEngine, find_served_model
from captioner.engines.endpoint_settings import EndpointSettings
from captioner.engines.generation import GenerationSettings
from examples.openmoji.composition import draw_scene
from examples.openmoji.scene_files import SceneSet, write_scenes
from examples.openmoji.structured import structured_caption
from examples.openmoji.true_captioner import NAME, _Handler, true_captions
from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits, decode_image


def test_scenes_are_known_by_their_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    wanted = SceneSet(count=3, seed=4, split="train", single_objects=False, num_kinds=None, format="jpeg")
    write_scenes(wanted, tmp_path / "scenes")
    truths = true_captions(tmp_path / "scenes")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, truths)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        settings = EndpointSettings(url=f"http://127.0.0.1:{server.server_port}/v1", tries=1)
        engine = EndpointEngine(find_served_model(NAME, settings, GenerationSettings()), GenerationSettings())
        files = sorted((tmp_path / "scenes").rglob("*.jpg"))
        images = [decode_image(path.read_bytes(), limits=DecodeLimits()).pixels for path in files]
        said = engine.caption(images, ["What?"] * 3, ["a", "b", "c"])
        (unknown,) = engine.caption([np.eye(64, dtype=np.uint8)[:, :, None].repeat(3, axis=2)], ["What?"], ["d"])
        assert "none of the scenes" in unknown.failure
        server.shutdown()
        thread.join()
    expected = [structured_caption(draw_scene(seed=4, index=index), seed=4) for index in range(3)]
    assert [json.loads(one.text) for one in said] == expected


def test_a_folder_without_scenes_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no scenes .*: give the --out of"):
        true_captions(tmp_path)
