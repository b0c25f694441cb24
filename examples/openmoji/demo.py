"""The whole pipeline on this machine, offline, on the small world, from scratch to a network that draws: `make demo`.

Every step prints the command that it runs, so that users can copy it. Run again, the demo resumes.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

from examples.openmoji.demo_commands import DemoConfig, DemoFolder, steps
from examples.openmoji.demo_steps import duration, read_times, run_steps
from foundry.command_line import run_command

_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


def main(config: DemoConfig) -> int:
    """Runs every step and prints how long each took; returns 0. Raises UserError as run_steps does."""
    folder = DemoFolder(Path(config.out))
    copy_photographs(folder.photographs)
    run_steps(folder.root, list(steps(config)))
    times = read_times(folder.root)
    width = max(len(duration(one.seconds)) for one in times)
    print("\n" + "\n".join(f"{duration(one.seconds):>{width}}  {one.title}" for one in times))
    print(f"{duration(sum(one.seconds for one in times)):>{width}}  in all\n\nopen in a browser: {folder.report}")
    return 0


def copy_photographs(folder: Path) -> None:
    """Photographs that scikit-image ships."""
    package = find_spec("skimage")
    assert package is not None and package.origin is not None, "scikit-image is in requirements.lock"
    folder.mkdir(parents=True, exist_ok=True)
    for name in _PHOTOGRAPHS:
        if not (folder / name).exists():
            shutil.copyfile(Path(package.origin).parent / "data" / name, folder / name)


if __name__ == "__main__":
    raise SystemExit(run_command(DemoConfig, main, prog="python -m examples.openmoji.demo", example="make demo"))
