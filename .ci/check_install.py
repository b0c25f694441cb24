"""Installs the wheel with each extra in a fresh environment and runs that extra's commands. Run by `make check-install`.

`make check-install ARGS="core density"` checks some. caption, train and evaluate fetch torch (6 GB each); an environment is
deleted before the next one is made. It needs a package index and no model hub. Versions are those of requirements.lock.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("captioner", "dataset_builder", "foundry", "model", "publisher", "studio", "trainer")
CORE = "core"
CORE_BYTES = 400_000_000
"""Maximum size of the core, without pip and setuptools, which every environment has."""
_COMMANDS = "from foundry.commands import COMMANDS; print(*(f'{n}:{c.extra}' for n, c in COMMANDS.items()))"
_SCENES = """
from pathlib import Path
from PIL import Image
for number in range(4):
    Path("images").mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), (60 * number, 120, 200)).save(f"images/scene_{number}.png")
    Path(f"images/scene_{number}.txt").write_text("A red owl is left of a green key on a blue background.")
"""


@dataclass(frozen=True)
class Environment:
    """A fresh environment in a folder, in which the wheel is installed with an extra."""

    folder: Path

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return next((self.folder / "lib").glob("python3*")) / "site-packages"

    def run(self, program: str, *arguments: str, cwd: Path, expected: int = 0, said: str = "") -> str:
        """Output of a program of the environment, both streams. Raises SystemExit for another exit code or text."""
        ended = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=cwd,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if ended.returncode != expected or said not in ended.stdout:
            wanted = f"exit code {expected}{f' and {said!r}' if said else ''}"
            raise SystemExit(
                f"error: {program} {' '.join(arguments)}: expected {wanted}, found {ended.returncode}:\n{ended.stdout}"
            )
        return ended.stdout


def _check_core(env: Environment, work: Path) -> None:
    own = {"pip", "setuptools", "pkg_resources", "_distutils_hack"}
    tops = [path for path in env.packages.iterdir() if path.name.partition("-")[0] not in own]
    files = [file for top in tops for file in ([top] if top.is_file() else top.rglob("*")) if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    print(f"  the core takes {size / 1e6:.0f} MB")
    if size > CORE_BYTES:
        raise SystemExit(f"error: the core takes {size:,} bytes, more than {CORE_BYTES:,}: see which package has grown")
    if untyped := [name for name in OURS if not (env.packages / name / "py.typed").is_file()]:
        raise SystemExit(f"error: the wheel has no py.typed in {', '.join(untyped)}: see package-data in pyproject.toml")
    env.run("t2i", "query", "nowhere", "SELECT 1", cwd=work, expected=2, said="neither a run nor a data set")
    for name, *rest in (
        ["caption", "--images", "images", "--out", "run", "--model", "mini"],
        ["generate", "--checkpoint", "mini", "--prompt", "an owl", "--out", "owl.png"],
    ):
        env.run("t2i", name, *rest, cwd=work, expected=2, said='pip install "t2i-foundry[')


def _check_density(env: Environment, work: Path) -> None:
    table = "pa.table({'caption': ['An owl and a key.'] * 3})"
    env.run("python", "-c", f"import pyarrow as pa, pyarrow.parquet as pq; pq.write_table({table}, 'a.parquet')", cwd=work)
    env.run("t2i", "density", "a.parquet", "--t5.tokenizer", "mini", cwd=work, said="0 / 2")


def _check_caption(env: Environment, work: Path) -> None:
    env.run("t2i", "caption", "--images", "images", "--out", "run", "--model", "mini", cwd=work, said="4")
    env.run("t2i", "score", "run", "--clip", "none", cwd=work)
    env.run("t2i", "build", "--captions", "run", "--out", "dataset", "--dedup.exact", "true", cwd=work)
    env.run("t2i", "convert", "--source", "image-txt", "--target", "run", "images", "texts", "--t5.tokenizer", "mini", cwd=work)
    env.run("t2i", "query", "run", "SELECT count(*) AS n FROM captions", "--format", "csv", cwd=work, said="n\n4")
    env.run("t2i", "export", "run", "run.duckdb", cwd=work)


def _check_train(env: Environment, work: Path) -> None:
    env.run("t2i", "plan", "--stage", "all", "--gpu", "h100", "--num_gpus", "8", cwd=work)
    prompt = ["--prompt", "a red owl on a blue background", "--num_inference_steps", "2"]
    env.run("t2i", "generate", "--checkpoint", "mini", *prompt, "--out", "owl.png", cwd=work)
    env.run("t2i", "import", "--source", "native", "--target", "diffusers", "mini", "mini-diffusers", cwd=work)


def _check_evaluate(env: Environment, work: Path) -> None:
    (work / "prompts.txt").write_text("a red owl on a blue background\n")
    env.run(
        "python", "-c", "import open_clip, scipy, spacy, torch_fidelity", cwd=work
    )  # the judges' own weights are on the hub
    settings = ["--prompts.file", "prompts.txt", "--prompts.clip", "null", "--sampling.num_inference_steps", "2"]
    env.run("t2i", "evaluate", "--checkpoint", "mini", "--benchmark", "prompts", *settings, "--out", "scores", cwd=work)
    of_a_checkout = ["--benchmark", "examples.openmoji.benchmark", "--out", "more"]
    env.run("t2i", "evaluate", "--checkpoint", "mini", *of_a_checkout, cwd=work, expected=2, said="in the repository")


def _check_s3(env: Environment, work: Path) -> None:
    env.run("python", "-c", "import fsspec; fsspec.filesystem('s3')", cwd=work)


def _check_studio(env: Environment, work: Path) -> None:
    env.run("python", "-c", "import gradio, studio.app", cwd=work)
    env.run("t2i", "studio", "nowhere", "--port", "0", cwd=work, expected=2, said="no captioning run")


def _check_notebooks(env: Environment, work: Path) -> None:
    env.run("python", "-c", "import datasets, ipykernel, matplotlib, nbclient, nbformat, pandas, polars", cwd=work)


CHECKS = {
    CORE: _check_core,
    "density": _check_density,
    "s3": _check_s3,
    "notebooks": _check_notebooks,
    "studio": _check_studio,
    "caption": _check_caption,
    "train": _check_train,
    "evaluate": _check_evaluate,
}


def _constraints(folder: Path) -> Path:
    """requirements.lock without its hashes: the wheel has none."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    path = folder / "constraints.txt"
    path.write_text("\n".join(line.removesuffix(" \\") for line in lines if "==" in line and line[0] not in " #"))
    return path


def _check(extra: str, wheel: Path, folder: Path) -> None:
    env, work = Environment(folder / "environment"), folder / "work"
    subprocess.run([sys.executable, "-m", "venv", "--clear", env.folder], check=True)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    what = str(wheel) if extra == CORE else f"{wheel}[{extra}]"
    env.run("pip", "install", "--quiet", "--constraint", str(_constraints(folder)), what, cwd=work)
    if extra == "caption":
        env.run("python", "-c", _SCENES, cwd=work)
    commands = [one.split(":") for one in env.run("python", "-c", _COMMANDS, cwd=work).split()]
    for name in [name for name, needed in commands if extra in (CORE, needed)]:
        env.run("t2i", name, "--help", cwd=work, said=f"usage: t2i {name}")
    CHECKS[extra](env, work)
    print(f"  {extra}: ok", flush=True)


def main(extras: Sequence[str]) -> None:
    """Checks the extras, all of them by default. Raises SystemExit for what fails."""
    if unknown := set(extras) - CHECKS.keys():
        raise SystemExit(f"error: expected {', '.join(CHECKS)}, found {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="t2i-install-") as name:
        folder = Path(name)
        build = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            folder,
            ROOT,
        ]
        subprocess.run(build, check=True)
        (wheel,) = folder.glob("*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.0f} MB", flush=True)
        for extra in extras or CHECKS:
            _check(extra, wheel, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
