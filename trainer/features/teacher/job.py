"""One unit of a teacher's features: read the stored latents, decode them, let the tower see the images, write, commit.

Latents of a sample are the mean that the VAE gave. Shapes: n samples of the unit, N = h w cells, F channels of the tower.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foundry.errors import UserError
from foundry.hardware import AUTO, Dtype, own_device
from foundry.storage.folder import Folder
from foundry.units.commits import Commit, Unit, commit_unit, read_commit
from foundry.units.rejection import Failure
from model.encoders.frozen_parts import find_part, stored_bytes
from model.encoders.teacher import Teacher
from model.encoders.vae import VAEConfig, load_vae
from model.encoders.vision_tower import VisionTowerConfig, find_tower, load_vision_tower
from trainer.features.buckets import Size
from trainer.features.info import FeaturesInfo
from trainer.features.tables import open_latents
from trainer.features.teacher.store import VECTORS, TeacherInfo, teacher_folder, vectors_table


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """Facts of the tower, found by loading it with the VAE."""

    fingerprint: str
    vae_fingerprint: str
    width: int
    """Channels F."""
    num_bytes: int
    """Size of all weights in memory."""


@dataclass(frozen=True, kw_only=True)
class TeacherEncoders:
    """A tower and the VAE that decodes for it. Picklable: workers load them by it."""

    tower: VisionTowerConfig
    vae: VAEConfig

    def in_dtype(self, dtype: Dtype) -> "TeacherEncoders":
        """The same with `auto` settled: in this number format."""
        tower, vae = self.tower, self.vae
        return replace(
            self,
            tower=replace(tower, dtype=dtype) if tower.dtype == AUTO else tower,
            vae=replace(vae, dtype=dtype) if vae.dtype == AUTO else vae,
        )

    def stored_bytes(self) -> int:
        """Size of the weights' files. Raises UserError if one is unavailable."""
        folders = [find_tower(self.tower), find_part(self.vae.name, "vae", revision=self.vae.revision).folder]
        return sum(map(stored_bytes, folders))

    def load(self) -> Teacher:
        """Both, on this process's device."""
        device = own_device()
        return Teacher(load_vision_tower(self.tower, device=device), load_vae(replace(self.vae, sliced=False), device=device))

    def describe(self) -> TeacherFacts:
        """Loads both and describes them. Raises UserError if one is unavailable."""
        teacher = self.load()
        parameters = [*teacher.tower.model.parameters(), *teacher.vae.model.parameters()]
        return TeacherFacts(
            fingerprint=teacher.tower.fingerprint(),
            vae_fingerprint=teacher.vae.fingerprint(),
            width=teacher.tower.width,
            num_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        )


@dataclass(frozen=True, kw_only=True)
class TeacherUnit(Unit):
    """A unit of latents that the teacher has not seen."""

    bucket: Size
    """h, w of its latents."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredLatents:
    """The input of a replica: the VAE's means (n, C, h, w), float32, not scaled."""

    mean: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class UnitKeys:
    """Keys of all samples of the unit, and the positions of those that were read."""

    keys: list[str]
    positions: list[int]


@dataclass(frozen=True, kw_only=True)
class TeacherJob:
    """Settings of the work on a unit; see foundry.units.workers.UnitJob for the calls."""

    store: str
    """URL of the feature store."""
    features: FeaturesInfo
    info: TeacherInfo
    encoders: TeacherEncoders

    def prepare(self, unit: Unit, positions: Sequence[int]) -> tuple[StoredLatents, UnitKeys]:
        """Reads the latents at these positions."""
        assert isinstance(unit, TeacherUnit)
        import torch

        folder = Folder(self.store)
        path = read_commit(folder, unit.number).files["latents"].path
        views = open_latents(
            pa.memory_map(folder.path(path)) if folder.is_local else pa.BufferReader(folder.read(path)), where=path
        )
        parts = 2 if self.features.latent_variance else 1
        rows = views.latents[list(positions)].reshape(len(positions), parts, -1)
        bits = torch.from_numpy(rows[:, 0].copy())  # (n, C h w): the means
        mean = bits.view(getattr(torch, self.features.latent_dtype)).float()
        shape = (len(positions), self.features.latent_channels, *unit.bucket)
        keys = UnitKeys(keys=views.table["key"].to_pylist(), positions=list(positions))
        return StoredLatents(mean=mean.reshape(shape).numpy()), keys

    def warm_up(self) -> None:
        """Nothing is loaded for reading and writing."""

    def load_engine(self) -> Teacher:
        """The tower and the VAE, on this replica's device."""
        return self.encoders.load()

    def check(self, engine: Teacher) -> None:
        """Looks at latents of zeros. Raises UserError if the teacher answers NaN or infinity."""
        zeros = np.zeros((1, self.features.latent_channels, 8, 8), np.float32)
        if not np.isfinite(self.process(engine, StoredLatents(mean=zeros), one_by_one=True)).all():
            raise UserError("the teacher answers NaN or infinity to latents of zeros: give float32 as its number format")

    def process(self, engine: Teacher, payload: StoredLatents, *, one_by_one: bool) -> npt.NDArray[np.float16]:
        """Unit vectors (n, N, F)."""
        import torch
        import torch.nn.functional as F  # noqa: N812

        cell = self.info.patch_px // self.features.downsampling
        grid = (payload.mean.shape[2] // cell, payload.mean.shape[3] // cell)
        latents: Any = engine.vae.scale.to_latents(torch.from_numpy(payload.mean.copy())).to(engine.vae.model.device)

        def look(batch: Any) -> torch.Tensor:
            return F.normalize(engine.features(batch, grid), dim=2).half().cpu()

        found = engine.batches.run(latents, look, size=1 if one_by_one else len(latents))
        return torch.cat(found).numpy()

    def finish(
        self, unit: Unit, *, facts: UnitKeys, output: npt.NDArray[np.float16], excluded: dict[int, Failure]
    ) -> Commit | None:
        """Writes and commits the unit; samples without finite vectors keep their row, and are rejected with a reason."""
        import torch

        vectors = np.full((len(facts.keys), *output.shape[1:]), np.nan, np.float16)
        vectors[facts.positions] = output
        failures = dict(excluded)
        for position in np.flatnonzero(~np.isfinite(vectors).all(axis=(1, 2))):
            failure = Failure(reason="not_finite", message="what the teacher sees is NaN or infinite")
            failures.setdefault(int(position), failure)
        rejected = [
            {"key": facts.keys[at], "reason": one.reason, "message": one.message} for at, one in sorted(failures.items())
        ]
        schema = pa.schema([pa.field(name, pa.string()) for name in ("key", "reason", "message")])
        return commit_unit(
            teacher_folder(self.store),
            run_id=self.info.fingerprint,
            unit=unit,
            tables={
                VECTORS: vectors_table(facts.keys, torch.from_numpy(vectors)),
                "rejected": pa.Table.from_pylist(rejected, schema=schema),
            },
            arrow=(VECTORS,),
        )
