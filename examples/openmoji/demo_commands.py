"""Steps of `make demo`, from scratch to a report: 16 kinds of object, one in each scene, 64 pixels."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.openmoji.demo_steps import Step
from model.formats.checkpoint import MINI

RECIPE = "examples/openmoji/demo_recipe.yaml"
STYLE = "class_label IS NOT NULL AND hash(key) % 6 < CASE WHEN contains(caption, 'small') THEN 1 ELSE 3 END"
"""Data of the aesthetic stage, a style that one can see in images: half of the scenes whose object is large, by what the
caption says, and a sixth of the others."""
STAGES = ("pixel", "alignment", "aesthetic")
NUM_KINDS = 16
RESOLUTION = 64
SEED = 1
GUIDANCE = 2.5
"""Guidance of the samples; twice as much turns pink into orange and teal into blue: see docs/lab_log.md."""
_SAMPLING = ("--sampling.guidance_scale", str(GUIDANCE))
_LICENCE = (
    "drawings: OpenMoji (https://openmoji.org), CC BY-SA 4.0; photographs: samples of scikit-image, under their own terms"
)
_WORLD = ("--openmoji.single_objects", "true", "--openmoji.num_kinds", str(NUM_KINDS))

NEW_NOUNS = (
    "SELECT noun, count(DISTINCT key) AS captions FROM nouns JOIN images USING (key) WHERE NOT is_meta "
    "AND NOT contains(alt_text, noun) GROUP BY noun ORDER BY captions DESC, noun LIMIT 6"
)
PHOTOGRAPHS = (
    "SELECT key, round(mean_logprob, 3) AS mean_logprob, caption FROM captions JOIN images USING (key) "
    "WHERE class_label IS NULL ORDER BY key"
)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of the demo."""

    out: str = "demo"
    """Folder for everything that the demo writes."""
    count: int = 5000
    """Scenes to render, to caption and to train on."""
    training: str = "examples/openmoji/demo.yaml"
    """Settings of the three stages; with examples/openmoji/demo_quick.yaml they take seconds, and learn nothing."""
    prompts_per_category: int = 4
    """Prompts of each category that are drawn and judged after each stage, and as many of held-out combinations."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.prompts_per_category < 1:
            raise ValueError("count and prompts_per_category must be 1 or more")
        if not Path(self.training).is_file():
            raise ValueError(f"training: there is no file {self.training}: give settings that trainer.fit reads")


@dataclass(frozen=True)
class DemoFolder:
    """Paths in the demo's folder."""

    root: Path

    @property
    def scenes(self) -> Path:
        """Rendered, as JPEGs in tars."""
        return self.root / "scenes"

    @property
    def photographs(self) -> Path:
        """Five real ones."""
        return self.root / "photographs"

    @property
    def captions(self) -> Path:
        """The captioning run."""
        return self.root / "runs" / "scenes"

    def data(self, name: str) -> Path:
        """A data set: `all` scenes, or those of the chosen `style`."""
        return self.root / "data" / name

    @property
    def features(self) -> Path:
        """Of all stages."""
        return self.root / "features"

    @property
    def training(self) -> Path:
        """Of all stages."""
        return self.root / "training"

    @property
    def classes(self) -> Path:
        """What the pixel stage draws."""
        return self.root / "classes"

    def evaluation(self, name: str) -> Path:
        """Of the network of a stage, or of the shipped one."""
        return self.root / "evaluation" / name

    @property
    def report(self) -> Path:
        """The page at the end."""
        return self.root / "report.html"


def steps(config: DemoConfig) -> Iterator[Step]:
    """All steps, in order."""
    folder = DemoFolder(Path(config.out))
    yield from _captions(config, folder)
    yield from _data(folder)
    yield _training(config, folder)
    yield from _judgement(config, folder)
    arguments = ("--demo", str(folder.root), "--prompts_per_category", str(config.prompts_per_category))
    yield Step(title="The report", module="examples.openmoji.demo_report", arguments=arguments, output=folder.report)


def _captions(config: DemoConfig, folder: DemoFolder) -> Iterator[Step]:
    scenes = ("--count", str(config.count), "--seed", str(SEED), "--out", str(folder.scenes), "--format", "tar")
    yield Step(
        title="Render scenes with a sparse alt text, as JPEGs in tars",
        module="examples.openmoji.scenes",
        arguments=(*scenes, "--single_objects", "true", "--num_kinds", str(NUM_KINDS)),
        output=folder.scenes,
    )
    yield Step(
        title="Caption them on Ray with llava-mini, and five real photographs",
        module="captioner.run",
        arguments=(
            *("--images", str(folder.scenes), str(folder.photographs), "--out", str(folder.captions)),
            *("--model", MINI, "--licence", _LICENCE),
        ),
        output=folder.captions,
    )
    yield Step(
        title="Concept density: alt text compared with dense captions (the paper's Table 1)",
        module="dataset_builder.density",
        arguments=(str(folder.captions), "--column", "alt_text", "caption"),
    )
    for title, sql in [
        ("Ask SQL: what do the captions say that the alt text does not?", NEW_NOUNS),
        ("Ask SQL: what does llava-mini, which has only seen drawings, say about photographs?", PHOTOGRAPHS),
    ]:
        yield Step(title=title, module="dataset_builder.query", arguments=(str(folder.captions), sql))


def _data(folder: DemoFolder) -> Iterator[Step]:
    """Data sets, and what T5 and the VAE make of them."""
    titles = {"all": "Choose a data set by a recipe", "style": "Choose a style for the stage aesthetic: mostly large objects"}
    for name, title in titles.items():
        yield Step(
            title=title,
            module="dataset_builder.build",
            arguments=(
                *("--captions", str(folder.captions), "--out", str(folder.data(name)), "--config", RECIPE),
                *(("--where", STYLE) if name == "style" else ()),
            ),
            output=folder.data(name),
        )
    for stage, what in zip(STAGES, ("latents and class labels", "latents and captions", "the same of the style"), strict=True):
        data = folder.data("style" if stage == "aesthetic" else "all")
        yield Step(
            title=f"Features for the stage {stage}: {what}",
            module="trainer.precompute",
            arguments=(
                *("--dataset", str(data), "--out", str(folder.features), "--stage", stage),
                *("--resolution", str(RESOLUTION), "--vae.name", MINI),
                *(() if stage == "pixel" else ("--text_encoder.name", MINI)),
            ),
            output=folder.features / stage / str(RESOLUTION),
        )


def _training(config: DemoConfig, folder: DemoFolder) -> Step:
    places = ("--features", str(folder.features), "--run_dir", str(folder.training))
    return Step(
        title="Train the three stages from scratch",
        module="trainer.fit",
        arguments=("--stage", "all", "--config", config.training, *places),
        output=folder.training,
    )


def _judgement(config: DemoConfig, folder: DemoFolder) -> Iterator[Step]:
    """The same prompts after each stage, drawn and judged; and by the shipped network."""
    pixel, *others = STAGES
    labels = ("--features", str(folder.features / pixel / str(RESOLUTION)))
    number = ("--prompts_per_category", str(config.prompts_per_category))
    yield Step(
        title="Draw after the stage pixel: the classes of the prompts' objects, since it does not read words",
        module="examples.openmoji.demo_pixel",
        arguments=("--checkpoint", str(folder.training / pixel), *labels, "--out", str(folder.classes), *number),
        output=folder.classes,
    )
    yield _evaluation(config, folder, name=pixel, drawn=("--images", str(folder.classes)), title="Judge these")
    for stage in others:
        drawn = ("--checkpoint", str(folder.training / stage), *_SAMPLING)
        yield _evaluation(config, folder, name=stage, drawn=drawn, title=f"Draw and evaluate after the stage {stage}")
    title = "Draw and evaluate with dit-mini, which was trained for hours on a larger world"
    yield _evaluation(config, folder, name=MINI, drawn=("--checkpoint", MINI), title=title)


def _evaluation(config: DemoConfig, folder: DemoFolder, *, name: str, drawn: tuple[str, ...], title: str) -> Step:
    number = ("--openmoji.prompts_per_category", str(config.prompts_per_category))
    out = folder.evaluation(name)
    return Step(
        title=title,
        module="trainer.evaluate",
        arguments=(*drawn, "--benchmark", "examples.openmoji.benchmark", "--out", str(out), *_WORLD, *number),
        output=out,
    )
