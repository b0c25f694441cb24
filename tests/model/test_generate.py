"""The command: files where they are expected, PNGs that say what they are, nothing drawn twice, one line for what is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from foundry.command_line import run_command
from foundry.errors import NotFiniteOutput, UserError
from model.dit_config import RoutedBlocks
from model.formats.checkpoint import read_pipeline_config, save_checkpoint
from model.generate import GenerateConfig, main
from model.generation.image_files import image_names, is_drawn, save_png
from model.generation.pipeline import open_pipeline
from model.generation.prompt_files import read_prompts
from model.generation.request import GenerationRequest
from model.sampling import SamplingConfig
from tests.model.tiny_networks import random_network
from tests.model.tiny_parts import (
    SIDE_PX,
    pipeline_config,
    poison_captions,
    poison_vae,
    save_tiny_checkpoint,
    save_tiny_t5,
    save_tiny_vae,
    tiny_dit,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("generate"), objective="rectified_flow"))


def run(*arguments: str, checkpoint: str = "mini") -> int:
    argv = [f"--checkpoint={checkpoint}", *arguments]
    return run_command(GenerateConfig, main, prog="python -m model.generate", example="…", argv=argv)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_one_image_is_that_of_the_pipeline_and_says_what_it_is(checkpoint: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "owl.png"
    assert (
        run("--prompt", "Ä red owl 鳥", "--seed", "3", "--num_inference_steps", "4", "--out", str(out), checkpoint=checkpoint)
        == 0
    )
    with Image.open(out) as image:
        image.load()
        text = dict(image.text)  # type: ignore[attr-defined]
        assert image.size == (SIDE_PX, SIDE_PX)
    assert (text["prompt"], text["seed"], text["negative_prompt"]) == ("Ä red owl 鳥", "3", "")
    settings = json.loads(text["settings"])
    assert (settings["sampler"], settings["num_inference_steps"], settings["guidance_scale"]) == ("dpm-solver++", 4, 4.5)
    assert len(settings["checkpoint_fingerprint"]) == 16
    config = GenerateConfig(out="", checkpoint="mini", prompt="Ä red owl 鳥", seed=3, num_inference_steps=4)
    expected = open_pipeline(checkpoint)(config.request())[0].image
    assert np.array_equal(pixels(out), np.asarray(expected))


def test_a_network_with_an_adapter_draws_with_another_shift_and_with_guidance_by_routing(tmp_path: Path) -> None:
    t5, vae = save_tiny_t5(tmp_path / "t5"), save_tiny_vae(tmp_path / "vae")
    pipeline = pipeline_config(objective="rectified_flow", text_encoder=t5, vae=vae)
    network = random_network(tiny_dit(learned_variance=False).config, depth=5, text_adapter_blocks=1)
    routed = RoutedBlocks(share=0.25, before=1, after=3)
    checkpoints = [
        str(save_checkpoint(tmp_path / name, network, replace(pipeline, routed=blocks)))
        for name, blocks in (("plain", None), ("routed", routed))
    ]
    assert "routed" not in (tmp_path / "plain" / "pipeline.json").read_text()
    assert read_pipeline_config(tmp_path / "routed").routed == routed
    basic = ["--prompt", "key", "--num_inference_steps", "2", "--dtype", "float32", "--out"]
    shown = {}
    for name, options in {"plain": [], "shift": ["--shift", "4"], "routing": ["--guidance_by", "routing"]}.items():
        out = tmp_path / f"{name}.png"
        assert run(*basic, str(out), *options, checkpoint=checkpoints[1]) == 0
        with Image.open(out) as image:
            image.load()
            settings = json.loads(image.text["settings"])  # type: ignore[attr-defined]
        shown[name] = {key: settings[key] for key in ("shift", "guidance_by") if key in settings}
    assert shown == {"plain": {}, "shift": {"shift": 4.0}, "routing": {"guidance_by": "routing"}}
    drawn = [pixels(tmp_path / f"{name}.png") for name in shown]
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    with pytest.raises(UserError, match="guidance by routing is for networks that TREAD trained") as error:
        open_pipeline(checkpoints[0])(GenerationRequest(prompts=("key",), sampling=SamplingConfig(guidance_by="routing")))
    assert error.value.setting == "guidance_by"


def test_a_file_of_prompts_fills_a_folder_and_a_grid_once(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "images"
    prompts.write_text('{"text": "a red owl"}\n\n{"text": "key"}\n{"text": "a red owl"}\n')
    arguments = ["--prompts_file", str(prompts), "--prompt_column", "text", "--num_images_per_prompt", "2", "--grid",
                 "--scale", "1", "--num_inference_steps", "2", "--dtype", "float32", "--out", str(out)]  # fmt: skip
    assert run(*arguments, checkpoint=checkpoint) == 0
    names = ["a-red-owl-s0.png", "a-red-owl-s1.png", "grid.png", "key-s0.png", "key-s1.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    grid = pixels(out / "grid.png")
    assert grid.shape == (2 * SIDE_PX + 4, 2 * SIDE_PX + 4, 3)
    assert np.array_equal(grid[:SIDE_PX, -SIDE_PX:], pixels(out / "a-red-owl-s1.png"))  # a row for each prompt
    assert np.array_equal(grid[-SIDE_PX:, :SIDE_PX], pixels(out / "key-s0.png"))
    assert "4 images drawn" in capsys.readouterr().out
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*-s*.png")}
    (out / "key-s0.png").write_bytes((out / "key-s0.png").read_bytes()[:200])  # a copy that broke off
    assert run(*arguments, checkpoint=checkpoint) == 0
    assert "1 image drawn" in capsys.readouterr().out
    assert {name for name, time in kept.items() if (out / name).stat().st_mtime_ns != time} == {"key-s0.png"}
    again, before = (one.astype(int) for one in (pixels(out / "key-s0.png"), grid[-SIDE_PX:, :SIDE_PX]))
    assert np.abs(again - before).max() <= 1  # drawn alone in place of four together: another rounding
    assert run(*arguments, "--guidance_scale", "2", checkpoint=checkpoint) == 0  # other settings are other images
    assert "4 images drawn" in capsys.readouterr().out


def test_only_a_grid_goes_to_a_png(checkpoint: str, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    options = ["--num_images_per_prompt", "3", "--num_inference_steps", "1", "--out", str(out)]
    assert run("--prompt", "owl", "--grid", "--scale", "1", *options, checkpoint=checkpoint) == 0
    assert pixels(out).shape == (2 * SIDE_PX + 4, 2 * SIDE_PX + 4, 3)  # three on two rows, the last place white
    assert (pixels(out)[-SIDE_PX:, -SIDE_PX:] == 255).all()


def test_what_was_started_on_another_machine_is_finished_in_its_format(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--prompt", "owl", "--num_inference_steps", "1", "--out", str(tmp_path / "images")]
    for here, number, drawn in (("float32", "2", "2 images drawn"), ("bfloat16", "3", "1 image drawn")):
        monkeypatch.setenv("T2I_AUTO_DTYPE", here)
        assert run(*arguments, "--num_images_per_prompt", number, checkpoint=checkpoint) == 0
        output = capsys.readouterr().out
        assert "on cpu in float32" in output and drawn in output
    assert run(*arguments, "--num_images_per_prompt", "3", "--dtype", "bfloat16", checkpoint=checkpoint) == 0
    assert "on cpu in bfloat16" in capsys.readouterr().out


def test_small_images_are_enlarged_in_a_grid(checkpoint: str, tmp_path: Path) -> None:
    grids = {}
    for scale in ("1", "3", "0"):
        options = ["--num_inference_steps", "1", "--scale", scale, "--out", str(tmp_path / f"{scale}.png")]
        assert run("--prompt", "owl", "--grid", *options, checkpoint=checkpoint) == 0
        grids[scale] = pixels(tmp_path / f"{scale}.png")
    assert grids["1"].shape == (SIDE_PX, SIDE_PX, 3) and grids["0"].shape == (256, 256, 3)
    assert np.array_equal(grids["3"], grids["1"].repeat(3, axis=0).repeat(3, axis=1))  # whole pixels, not smoothed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_a_number_is_no_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, value: float
) -> None:
    broken = save_tiny_checkpoint(tmp_path / "broken", objective="rectified_flow")
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["final_layer.linear.bias"][0] = value
    save_file(tensors, weights)
    out = tmp_path / "images"
    assert run("--prompt", "a red owl", "--num_inference_steps", "2", "--out", str(out), checkpoint=str(broken)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        "1 of 1 images cannot be drawn, the first for the prompt 'a red owl' with seed 0: the network's output is NaN" in error
    )
    assert not list(out.glob("*.png")) if out.exists() else True


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_vae_that_computes_nan_gives_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str], *, dtype: str) -> None:
    t5, vae = save_tiny_t5(tmp_path / "t5"), poison_vae(save_tiny_vae(tmp_path / "vae"))
    parts = pipeline_config(objective="rectified_flow", text_encoder=t5, vae=vae)
    broken = str(save_checkpoint(tmp_path / "checkpoint", tiny_dit(learned_variance=False), parts))
    options = ["--num_inference_steps", "1", "--dtype", dtype, "--out", str(tmp_path / "owl.png")]
    assert run("--prompt", "a red owl", *options, checkpoint=broken) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"the VAE {vae} decodes finite latents to NaN or infinity in {dtype}: its weights are damaged" in error
    assert ("bfloat16 overflows; try dtype float32" in error) == (dtype == "bfloat16")
    assert not (tmp_path / "owl.png").exists()


def test_an_image_that_is_not_finite_holds_no_other_up(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_captions(monkeypatch, prompt="a bad owl")
    (tmp_path / "prompts.txt").write_text("owl\na bad owl\nkey\n")
    out = tmp_path / "images"
    options = ["--prompts_file", str(tmp_path / "prompts.txt"), "--num_inference_steps", "1", "--dtype", "float32"]
    for staged in ("false", "true"):
        assert run(*options, "--staged", staged, "--seed", "5", "--out", str(out), checkpoint=checkpoint) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "images cannot be drawn, the first for the prompt 'a bad owl' with seed 5: the text encoder's output is" in error
        assert sorted(path.name for path in out.iterdir()) == ["key-s5.png", "owl-s5.png"]
    alone = tmp_path / "key.png"
    assert run("--prompt", "key", *options[2:], "--seed", "5", "--out", str(alone), checkpoint=checkpoint) == 0
    assert np.abs(pixels(out / "key-s5.png").astype(int) - pixels(alone)).max() <= 1  # the image of its own prompt


def test_a_negative_prompt_that_is_not_finite_is_the_text_encoders_fault(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_captions(monkeypatch, prompt="")
    request = GenerationRequest(prompts=("owl",) * 20, sampling=SamplingConfig(num_inference_steps=1))
    images = open_pipeline(checkpoint).stream(request)
    with pytest.raises(NotFiniteOutput, match="16 of 20 images cannot be drawn.*the text encoder's output"):
        next(images)


def test_an_image_is_edited_and_its_file_says_from_what(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, white = Image.new("RGB", (SIDE_PX, SIDE_PX), "navy"), Image.new("L", (SIDE_PX, SIDE_PX))
    white.paste(255, (SIDE_PX // 2, 0, SIDE_PX, SIDE_PX))
    image.save(tmp_path / "image.png")
    white.save(tmp_path / "mask.png")
    files = ["--image", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png")]
    options = ["--prompt", "key", *files, "--paste_kept", "--num_inference_steps", "4", "--out", str(tmp_path / "out.png")]
    assert run(*options, "--strength", "0.5", checkpoint=checkpoint) == 0
    drawn = pixels(tmp_path / "out.png")
    assert np.array_equal(drawn[:, : SIDE_PX // 2], np.asarray(image)[:, : SIDE_PX // 2])
    assert not np.array_equal(drawn[:, SIDE_PX // 2 :], np.asarray(image)[:, SIDE_PX // 2 :])
    with Image.open(tmp_path / "out.png") as stored:
        settings = json.loads(stored.text["settings"])  # type: ignore[attr-defined]
    assert settings["strength"] == 0.5 and settings["paste_kept"] is True and settings["image"] != settings["mask_image"]
    assert run(*options, "--strength", "0.5", checkpoint=checkpoint) == 0
    white.paste(255, (0, 0, SIDE_PX, SIDE_PX))
    white.save(tmp_path / "mask.png")
    assert run(*options, "--strength", "0.5", checkpoint=checkpoint) == 0  # another mask is another image
    said = capsys.readouterr().out
    assert said.count("1 image drawn") == 2 and said.count("0 images drawn") == 1


def test_a_long_prompt_is_reported(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--prompt", "owl " * 40, "--num_inference_steps", "1", "--out", str(tmp_path / "a.png"), checkpoint=checkpoint)
    assert "1 prompt has more than 20 tokens, of which the rest is not read; the first: owl owl" in capsys.readouterr().out


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a file of prompts that holds none."""
    monkeypatch.chdir(tmp_path)
    Path("EMPTY.txt").write_text("\n \n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.png"], "expected either --prompt or --prompts_file"),
        (["--prompt", "a", "--prompts_file", "b.txt", "--out", "x"], "found both"),
        (["--prompts_file", "EMPTY.txt", "--out", "x"], "EMPTY.txt is empty: expected a prompt at least"),
        (["--prompts_file", "nowhere.txt", "--out", "x"], "nowhere.txt cannot be read: No such file"),
        (["--prompt", "a", "--height", "30", "--out", "x.png"], "multiples of 4 px, found 30 x 32"),
        (["--prompt", "a", "--num_inference_steps", "0", "--out", "x.png"], "num_inference_steps must be 1 to 1000"),
        (["--prompt", "a", "--sampler", "ddim", "--eta", "1", "--out", "x.png"], "eta: expected 0 for the objective"),
        (
            ["--prompt", "a", "--num_images_per_prompt", "2", "--out", "x.png"],
            "one image, not for 2: give a folder, or draw a grid (--out)",
        ),
        (["--prompt", "a", "--out", "x.jpg"], "expected a .png or a folder"),
        (["--prompt", "a", "--checkpoint", "nowhere", "--out", "x.png"], "expected a checkpoint"),
        (["--prompt", "a", "--device", "cuda:99", "--out", "x.png"], "device cuda:99"),
        (["--prompt", "a", "--text_encoder", "./none", "--out", "x.png"], "there is no text_encoder in none"),
        (["--prompt", "a", "--step", "3", "--out", "x.png"], "unknown option step"),
        (["--prompt", "a", "--mask", "m.png", "--out", "x.png"], "expected --mask with --image"),
        (["--prompt", "a", "--strength", "2", "--out", "x.png"], "strength must be 0 to 1, found 2"),
        (["--prompt", "a", "--image", "none.png", "--out", "x.png"], "give an image file (--image)"),
        (["--prompt", "a", "--image", "EMPTY.txt", "--out", "x.png"], "found not_an_image"),
    ],
)
def test_bad_input_is_one_line(
    checkpoint: str, elsewhere: Path, capsys: pytest.CaptureFixture[str], *, arguments: list[str], message: str
) -> None:
    assert run(*arguments, checkpoint=checkpoint) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")
    assert [path.name for path in elsewhere.iterdir()] == ["EMPTY.txt"]


def test_without_a_shipped_checkpoint_mini_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.formats.checkpoint.PRETRAINED", tmp_path)
    assert run("--prompt", "a", "--out", str(tmp_path / "x.png")) == 2
    assert "this copy has no mini" in capsys.readouterr().err


@given(st.lists(st.text(max_size=90), min_size=2, max_size=6, unique=True))
def test_names_are_unique_short_and_safe_and_do_not_depend_on_the_list(prompts: list[str]) -> None:
    names = image_names(prompts * 2, [1] * len(prompts) + [2] * len(prompts))
    assert len(set(names)) == 2 * len(prompts)
    assert all("/" not in name and not name.startswith((".", "-")) and len(name.encode()) < 255 for name in names)
    assert image_names(prompts[1:2], [2]) == [names[len(prompts) + 1]]


def test_a_png_with_a_long_text_is_none_that_was_drawn_from_the_values(tmp_path: Path) -> None:
    path, image = tmp_path / "owl.png", Image.new("RGB", (8, 8))
    save_png(image, path, {"prompt": "an owl"})
    assert is_drawn(path, {"prompt": "an owl"})
    info = PngInfo()
    info.add_text("prompt", "an owl" * (1 << 20), zip=True)  # Pillow reads no more than 1 MiB
    image.save(path, pnginfo=info)
    assert not is_drawn(path, {"prompt": "an owl"})


def test_prompts_come_from_text_json_lines_and_csv(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("\ufeffa red owl\n\n  key \na red owl\n", encoding="utf-8")
    assert read_prompts(tmp_path / "a.txt") == ("a red owl", "key")
    (tmp_path / "a.jsonl").write_text('{"prompt": "one\u2028line", "id": 3}\n', encoding="utf-8")
    assert read_prompts(tmp_path / "a.jsonl") == ("one\u2028line",)
    (tmp_path / "a.csv").write_text('id,caption\n1,"a, red\nowl"\n2,key\n')
    assert read_prompts(tmp_path / "a.csv", column="caption") == ("a, red\nowl", "key")
    (tmp_path / "c.csv").write_text('id,caption\n1,"a, red\nbig, old\nowl"\n2,"a, key\nand, a tree"\n')
    assert read_prompts(tmp_path / "c.csv", column="caption") == ("a, red\nbig, old\nowl", "a, key\nand, a tree")
    assert "2 rows of prompts take several lines each" in caplog.text
    assert f"the row that ends in line 4 of {tmp_path / 'c.csv'}" in caplog.text
    (tmp_path / "b.tsv").write_text('prompt\tid\n"an owl\t1\na "big" key\t2\na bat"\t3\n')
    assert read_prompts(tmp_path / "b.tsv") == ('"an owl', 'a "big" key', 'a bat"')  # lone quotes swallow no rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,caption\n1,x\n", "no column 'prompt', it has id, caption: choose one"),
        ("a.csv", b"prompt,id\nx,1\n,2\n", "row 2: expected text in 'prompt', found none"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"prompt\nan owl,1\n", "line 2 of .* has more fields than the header"),
        ("a.csv", b'prompt,k\nx,a\n"an owl,a\na key,b\na tree",a\n', "double quote in line 3 makes one row of lines 3 to 5"),
        ("a.tsv", b'prompt\tk\n"an owl\ta\na tree"\ta\n', "double quote in line 2 makes one row of lines 2 to 3"),
        ("a.csv", b'prompt\n"an owl\na key\na tree"\n', "double quote in line 2 makes one row of lines 2 to 4"),
        ("a.csv", b'id,prompt\n1,"an owl\na key, a tree"\n', "lines 2 to 3, each of which may be a row by itself"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": 3}\n', "line 2: expected an object with text in 'prompt', found"),
        ("a.jsonl", b"{\n", "line 1: not JSON"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.doc", b"x", "expected .txt, .jsonl, .csv or .tsv, found .doc"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused_with_the_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / name)


def test_the_settings_of_the_command_reach_the_request() -> None:
    config = GenerateConfig(
        out="x",
        checkpoint="mini",
        prompt="a",
        negative_prompt="b",
        num_images_per_prompt=2,
        seed=4,
        sampler="ddim",
        eta=0.5,
        guidance_scale=3.0,
        num_inference_steps=7,
        height=64,
        width=32,
        resolution_binning=False,
    )
    assert config.request() == GenerationRequest(
        prompts=("a",),
        negative_prompt="b",
        num_images_per_prompt=2,
        seed=4,
        height=64,
        width=32,
        resolution_binning=False,
        sampling=SamplingConfig(sampler="ddim", eta=0.5, guidance_scale=3.0, num_inference_steps=7),
    )
