"""From the name of a model to where its files are: `mini`, a folder, or a hub id with its revision.

Everything here happens in the driver, before Ray starts, so that a model that cannot be had is one line and not a stack of
worker logs. transformers is not imported.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from dataset_builder.command_line import UserError
from dataset_builder.fingerprint import folder_fingerprint

MINI = Path(__file__).parent / "pretrained" / "llava-mini"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that can be loaded. `revision` is the hub's commit, or a fingerprint of a folder's files."""

    name: str
    location: str
    revision: str
    on_hub: bool
    image_side_px: int

    @property
    def path_or_id(self) -> str:
        """What from_pretrained takes, on whichever node this is: the shipped model lies beside the code of that node."""
        return str(MINI) if self.name == "mini" else self.location


def resolve_model(name: str, *, revision: str | None = None) -> ModelSource:
    """Finds a model by name. Raises UserError where it cannot be had, or is not a model that reads images."""
    folder = MINI if name == "mini" else Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is not a model: it has no config.json; give a folder that save_pretrained wrote")
        config = json.loads((folder / "config.json").read_text())
        found = folder_fingerprint(folder)
        location = str(folder.resolve())
    elif name == "mini" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no model folder {folder}: give a folder, a hub id or `mini`")
    else:
        config, found = _from_hub(name, revision)
        location = name
    if "vision_config" not in config:
        raise UserError(
            f"{name} is a {config.get('model_type', 'nameless')} model, which reads no images: give a LLaVA checkpoint"
        )
    return ModelSource(
        name=name, location=location, revision=found, on_hub=not folder.is_dir(), image_side_px=_image_side(config)
    )


def _from_hub(name: str, revision: str | None) -> tuple[dict[str, object], str]:
    """The config of a hub model and the commit that the revision stands for, from the cache where there is no network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(name, "config.json", revision=revision))
    except HFValidationError:
        raise UserError(f"{name} is neither a folder nor a hub id: give a folder, a hub id or `mini`") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(f"{name} cannot be had from the hub ({reason}): fetch it first, give a folder, or use `mini`") from None
    return json.loads(path.read_text()), path.parent.name


def _image_side(config: dict[str, object]) -> int:
    """The longest side in pixels that the model can use: of its grid of crops where it has one, else of its vision tower."""
    grid = config.get("image_grid_pinpoints")
    if isinstance(grid, list) and grid:
        return max(int(side) for pair in grid for side in pair)
    vision = config["vision_config"]
    assert isinstance(vision, dict)
    return int(vision.get("image_size", 336))
