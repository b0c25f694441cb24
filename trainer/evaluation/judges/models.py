"""Files of a judge's model by its name: a folder that save_pretrained wrote, or a hub id with its commit."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from foundry.errors import NotOnHub, UserError, one_line
from foundry.hardware import AutoDtype
from foundry.storage.model_files import folder_fingerprint, hub_file, load_network, unavailable
from model.generation.pipeline_parts import RuntimeConfig
from trainer.evaluation.benchmark import JudgeSource

if TYPE_CHECKING:
    import torch

    from trainer.evaluation.config import EvaluateConfig

LoadedT = TypeVar("LoadedT")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Device and number format of judges."""

    device: str
    dtype: AutoDtype

    @classmethod
    def of(cls, config: "EvaluateConfig") -> "Placement":
        """Placement from judge_device and judge_dtype. Raises foundry.command_line.UserError for a missing device."""
        runtime = RuntimeConfig(device=config.judge_device, dtype=config.judge_dtype).resolved()
        return cls(device=runtime.device, dtype=runtime.dtype)


@dataclass(frozen=True, kw_only=True)
class JudgeModel:
    """A model of transformers that can be loaded."""

    name: str
    """Name as the user gave it: a folder or a hub id."""
    revision: str
    """The hub's commit, or a fingerprint of the folder's files."""
    model_type: str
    """Architecture as transformers names it."""
    on_hub: bool

    def load(self, load: Callable[..., LoadedT]) -> LoadedT:
        """Loads a processor by its from_pretrained, `load`. Raises UserError if that fails."""
        try:
            return load(self.name, **self._revision)
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.name} cannot be loaded ({one_line(error, limit=200)}): fetch it again") from error

    def load_network(self, load: Callable[..., Any], placement: Placement) -> Any:
        """The network that from_pretrained `load` makes of its safetensors. Raises UserError for weights of another kind."""
        import torch

        options = {"dtype": getattr(torch, placement.dtype), **self._revision}
        return load_network(load, self.name, what=f"a model of type {self.model_type}", **options).to(placement.device).eval()

    @property
    def _revision(self) -> dict[str, str]:
        return {"revision": self.revision} if self.on_hub else {}


def check_finite(values: "torch.Tensor", *, name: str) -> None:
    """Raises UserError for NaN or an infinity in what the model of this name computed: no verdict follows from that."""
    if not bool(values.isfinite().all()):
        raise UserError(
            f"{name} computes NaN or infinity: give the number format float32, or fetch the model again", setting="judge_dtype"
        )


def wanted_judges(config: "EvaluateConfig", makers: Mapping[str, Callable[[], JudgeSource]]) -> dict[str, JudgeSource]:
    """The judges that are asked for, or all: the models of the others are not looked for. Raises UserError for unknown ones."""
    if unknown := [name for name in config.judges if name not in makers]:
        raise UserError(f"{config.benchmark} has no judge {unknown[0]}: it has {', '.join(makers)}", setting="judges")
    return {name: make() for name, make in makers.items() if not config.judges or name in config.judges}


def find_model(name: str, *, setting: str) -> JudgeModel:
    """Finds a model; `setting` is the configuration field that names it. Raises UserError if it is unavailable."""
    folder = Path(name)
    advice = "give a folder that holds it"
    if folder.is_dir():
        path, revision = folder / "config.json", folder_fingerprint(folder)
    else:
        try:
            path = hub_file(name, "config.json")
        except NotOnHub as error:
            raise unavailable(name, error.reason, advice=advice, setting=setting) from None
        revision = path.parent.name
    try:
        model_type = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not the configuration of a model of transformers: {advice}", setting=setting) from None
    return JudgeModel(name=name, revision=revision, model_type=str(model_type), on_hub=not folder.is_dir())
