"""The whole way on this machine, offline, on the small world: `make demo`.

Every step is a command that a user could type; it is printed before it runs. Run again, each step goes on where it stopped.
"""

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dataset_builder.command_line import UserError, run_command

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")

LONGEST_SQL = "SELECT key, num_words, num_nouns, caption FROM captions ORDER BY num_nouns DESC, key LIMIT 3"
NEW_SQL = """
SELECT noun, count(DISTINCT key) AS captions FROM nouns JOIN images USING (key)
WHERE NOT is_meta AND NOT contains(alt_text, noun) GROUP BY noun ORDER BY captions DESC, noun LIMIT 6
"""
UNSURE_SQL = "SELECT key, round(mean_logprob, 3) AS mean_logprob, caption FROM captions ORDER BY min_logprob LIMIT 3"
PHOTOS_SQL = "SELECT key, round(mean_logprob, 3) AS mean_logprob, round(min_logprob, 2) AS min_logprob, caption FROM captions"


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo."""

    out: str = "demo"
    """Folder for everything that the demo writes."""
    count: int = 2000
    """Scenes to render and caption."""


def main(config: DemoConfig) -> int:
    """Runs every step; returns 0, or the exit code of the step that failed."""
    out = Path(config.out)
    scenes, photographs = out / "scenes", out / "photographs"
    runs = {"scenes": out / "runs" / "scenes", "photographs": out / "runs" / "photographs"}
    started = time.perf_counter()
    _step("Render scenes with alt text, as JPEGs in tars", "examples.openmoji.scenes", "--count", str(config.count),
          "--seed", "1", "--out", str(scenes), "--format", "tar")  # fmt: skip
    _step("Caption them on Ray", "captioner.run", "--images", str(scenes), "--out", str(runs["scenes"]))
    _step("Concept density: alt text against dense captions (the paper's Table 1)", "dataset_builder.density",
          str(runs["scenes"]), "--column", "alt_text", "caption")  # fmt: skip
    for title, sql in [
        ("Ask SQL: the captions with the most nouns", LONGEST_SQL),
        ("Ask SQL: what the captions say that the alt text does not", NEW_SQL),
        ("Ask SQL: where the model was least sure", UNSURE_SQL),
    ]:
        _step(title, "dataset_builder.query", str(runs["scenes"]), sql)
    _copy_photographs(photographs)
    _step("Caption real photographs", "captioner.run", "--images", str(photographs), "--out", str(runs["photographs"]))
    _step("What it says of them", "dataset_builder.query", str(runs["photographs"]), PHOTOS_SQL)
    print(
        "\nllava-mini has seen nothing but drawn scenes, so it describes a photograph in the only words that it has. What the\n"
        "photographs show is that real files go through every step; captions for them come from a LLaVA that knows the world:\n"
        "    python -m captioner.run --images photos/ --out runs/photos --model llava-hf/llava-1.5-7b-hf"
    )
    print(f"\ndone in {time.perf_counter() - started:.0f} s; look around in {runs['scenes']} with\n"
          f"    .venv/bin/python -m dataset_builder.query {runs['scenes']}")  # fmt: skip
    return 0


def _step(title: str, module: str, *arguments: str) -> None:
    """Runs a command of the foundry and says how long it took. Raises UserError where it fails."""
    print(f"\n== {title}\n$ python -m {shlex.join([module, *(' '.join(word.split()) for word in arguments)])}", flush=True)
    started = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    if code:
        raise UserError(f"the step «{title}» ended with exit code {code}: mend what it says, then make demo again")
    print(f"-- {time.perf_counter() - started:.0f} s", flush=True)


def _copy_photographs(folder: Path) -> None:
    """Photographs that scikit-image ships."""
    import shutil

    import skimage

    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        if not (folder / name).exists():
            shutil.copyfile(Path(skimage.__file__).parent / "data" / name, folder / name)


if __name__ == "__main__":
    raise SystemExit(run_command(DemoConfig, main, prog="python -m examples.openmoji.demo", example="make demo"))
