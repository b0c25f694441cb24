"""Distillation to few steps: the network learns from itself as it was, guided and in small steps, to take large ones unguided.

consistency      each prediction leads to the image: what the network finds at a noise level equals what a moving average of it
                 finds a small step of the teacher further on. For both objectives.
rectification    the way from noise to image is cut into as many windows as there will be steps; in each, the velocity leads
                 straight to where the teacher gets to in several steps. For rectified flow.

The teacher is the network at the start of the training, guided: so its predictions are, and sampling takes one pass a step.
Source: consistency: LCM (Luo et al. 2023, arXiv 2310.04378, sections 4.2 and 4.3), PixArt-delta (arXiv 2401.05252);
rectification: PeRFlow (Yan et al. 2024, arXiv 2405.07510).
Deviation: of a window's times a share is its start, where sampling reads the network; the teacher's steps are those of the
Adams-Bashforth method of second order, which gets further in as many passes.
Shapes: B samples, C latent channels, h x w the sides of the latents.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foundry.errors import UserError
from model.diffusion import CONSISTENCY_STEPS, Diffusion, Losses, ModelFn, Objective
from model.dit import Captions
from model.formats.checkpoint import read_pipeline_config
from trainer.config.ladder import Rung
from trainer.config.techniques import FewStepsConfig
from trainer.config.train import TrainConfig
from trainer.data.batches import Collator, Prediction
from trainer.features.store import FeatureStore
from trainer.training.ema import Ema

_SIGMA_DATA, _TIMESTEP_SCALING = 0.5, 10.0
"""Of the boundary condition at t = 0. Source: LCM; diffusers' LCMScheduler has the same."""


class Distillation:
    """The weights that teach: the network's own at the start, and for consistency their moving average. All workers alike.

    Of a LoRA they are the adapter's alone; at the start it changes nothing, so that the teacher is its base.
    """

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self.teacher = Ema(network)
        """Never updated."""
        self.target = Ema(network) if config.few_steps.method == "consistency" else None
        self._decay = config.few_steps.target_decay

    def update(self) -> None:
        """Moves the target on after a step."""
        if self.target is not None:
            self.target.update(self._decay)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a resumed training needs, by name."""
        averages = {"teacher": self.teacher} | ({} if self.target is None else {"target": self.target})
        return {name: dict(average.weights) for name, average in averages.items()}


@dataclass(frozen=True, eq=False)
class DistillationObjective(Objective):
    """The objective of a distillation; noise is added as by the network's own. Its loss calls the network of a Prediction."""

    own: Objective
    """The objective that the teacher was trained by."""
    config: FewStepsConfig
    distillation: Distillation
    null_caption: Captions
    """(1) the null caption, on the device."""

    def sample_timesteps(self, num: int, *, generator: torch.Generator) -> Tensor:
        """Random timesteps (num,) on the generator's device."""
        return self.timesteps_at(torch.rand(num, generator=generator, device=generator.device))

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents (B, C, h, w), float32."""
        return self.own.add_noise(latents, noise, timesteps)

    def levels(self, num: int) -> Tensor:
        """Timesteps (num + 1,) of even steps from image to noise."""
        return self.own.levels(num)

    def clean(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The latents (B, C, h, w) that a prediction finds in noisy ones."""
        return self.own.clean(noisy, prediction, timesteps)

    def move(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor, to: Tensor) -> Tensor:
        """A step of first order."""
        return self.own.move(noisy, prediction, timesteps, to)

    def scheduler_config(self, sampler: str) -> dict[str, Any]:
        """Settings of diffusers' scheduler for a sampler."""
        return self.own.scheduler_config(sampler)

    def loss(
        self, model_fn: ModelFn, latents: Tensor, noise: Tensor, timesteps: Tensor, *, mask: Tensor | None = None
    ) -> Losses:
        """The distance of the network from what it is to find at the timesteps (B,); `model_fn` is a Prediction."""
        assert isinstance(model_fn, Prediction) and mask is None, "guidance needs a pass without the caption, and all tokens"
        total = self.distance(model_fn, latents, noise, timesteps)
        return Losses(total=total, parts={self.config.method: total})

    @abstractmethod
    def distance(self, predict: Prediction, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(B,) float32."""

    def _guided(self, predict: Prediction, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The teacher's guided prediction (B, C, h, w), without the variance; inside `teacher.applied()`."""
        null = self.null_caption
        captions = Captions(tokens=null.tokens.repeat(len(noisy), 1), lengths=null.lengths.repeat(len(noisy)))
        unconditional = replace(predict, batch=replace(predict.batch, captions=captions))
        without, with_caption = (_prediction(one, noisy, timesteps) for one in (unconditional, predict))
        return without + self.config.guidance_scale * (with_caption - without)


class Consistency(DistillationObjective):
    """Consistency distillation: one step of the teacher, then the image that the target finds there."""

    def timesteps_at(self, quantiles: Tensor) -> Tensor:
        """Uniform over the upper ends of the teacher's steps."""
        steps = (quantiles * CONSISTENCY_STEPS).long().clamp(max=CONSISTENCY_STEPS - 1) + 1
        return self.own.levels(CONSISTENCY_STEPS).to(quantiles)[steps]

    def distance(self, predict: Prediction, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Pseudo-Huber distance of both images."""
        target = self.distillation.target
        assert target is not None, "it is that of consistency"
        _, below = _step_around(self.own.levels(CONSISTENCY_STEPS), timesteps)
        noisy = self.own.add_noise(latents, noise, timesteps)
        with torch.no_grad():  # both before the network's own pass, whose gradients need its weights untouched
            with self.distillation.teacher.applied():
                nearer = self.own.move(noisy, self._guided(predict, noisy, timesteps), timesteps, below)
            with target.applied():
                wanted = self._image(predict, nearer, below)
        difference = self._image(predict, noisy, timesteps) - wanted
        huber = self.config.huber
        return ((difference.square() + huber**2).sqrt() - huber).flatten(1).mean(1)

    def _image(self, predict: Prediction, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The image (B, C, h, w) that the network finds: at t = 0 the latents themselves."""
        found = self.own.clean(noisy, _prediction(predict, noisy, timesteps), timesteps)
        if not isinstance(self.own, Diffusion):  # latents - t velocity are the latents at t = 0 already
            return found
        scaled = (_TIMESTEP_SCALING * timesteps).view(-1, 1, 1, 1)
        norm = scaled.square() + _SIGMA_DATA**2
        return scaled / norm.sqrt() * found + _SIGMA_DATA**2 / norm * noisy


class Rectification(DistillationObjective):
    """Piecewise rectification: the velocity leads straight from the start of a window to where the teacher leaves it."""

    def timesteps_at(self, quantiles: Tensor) -> Tensor:
        """Of windows alike; of each the start with the share `start_share`, else any time uniformly."""
        num, share = self.config.num_inference_steps, self.config.start_share
        edges = self.own.levels(num).to(quantiles)
        window = (quantiles * num).long().clamp(max=num - 1)
        passed = ((quantiles * num - window - share) / max(1 - share, 1e-6)).clamp(0, 1)  # 0 at the start, which is noisier
        return torch.lerp(edges[window + 1], edges[window], passed)

    def distance(self, predict: Prediction, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mean squared error of the velocity."""
        start, end = _step_around(self.own.levels(self.config.num_inference_steps), timesteps)
        first = self.own.add_noise(latents, noise, start)
        with torch.no_grad(), self.distillation.teacher.applied():
            last = self._taught(predict, first, start, end)
        passed = ((start - timesteps) / (start - end)).view(-1, 1, 1, 1)
        wanted = (first - last) / ((start - end) / self.own.levels(1)[-1]).view(-1, 1, 1, 1)
        found = _prediction(predict, torch.lerp(first, last, passed), timesteps)
        return (found - wanted).square().flatten(1).mean(1)

    def _taught(self, predict: Prediction, latents: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Where the teacher gets to from latents (B, C, h, w) at the start of their windows (B,)."""
        before: Tensor | None = None
        for step in range(self.config.teacher_steps):
            now, then = (torch.lerp(start, end, (step + done) / self.config.teacher_steps) for done in (0, 1))
            velocity = self._guided(predict, latents, now)
            slope = velocity if before is None else 1.5 * velocity - 0.5 * before
            latents, before = self.own.move(latents, slope, now, then), velocity
        return latents


METHODS: dict[str, type[DistillationObjective]] = {"consistency": Consistency, "rectification": Rectification}


def distilling(collator: Collator, config: TrainConfig, distillation: Distillation | None, store: FeatureStore) -> Collator:
    """The collator with the objective of a distillation in place of the network's own, where there is one."""
    if distillation is None:
        return collator
    tokens = store.null_caption
    if tokens is None:  # captions are not stored, but encoded in training
        assert collator.text_encoder is not None, "checked when the features were opened"
        tokens = collator.text_encoder.null_captions().tokens
    null_caption = Captions(tokens=tokens, lengths=torch.tensor([len(tokens)])).to(collator.device)
    method = METHODS[config.few_steps.method]
    return replace(collator, objective=method(collator.objective, config.few_steps, distillation, null_caption))


def check_teacher_checkpoint(config: TrainConfig, checkpoint: Path, rung: Rung) -> None:
    """Raises UserError for a checkpoint that cannot teach: another objective, or one that is distilled already."""
    pipeline = read_pipeline_config(checkpoint)
    if pipeline.few_steps is not None:
        raise UserError(
            f"{checkpoint} is distilled to {pipeline.few_steps.num_inference_steps} steps already, and guides itself: give the "
            "network that it was distilled from",
            setting="init_from",
        )
    wanted = (config.objective.name, config.objective.settings_at(rung.resolution))
    if wanted != (found := (pipeline.objective, pipeline.objective_settings)):
        raise UserError(
            f"few steps are learned by the teacher's objective, and this training has {_objective_text(*wanted)}: give that of "
            f"{checkpoint} in the file of settings: objective: {_objective_text(*found)}",
            setting="objective",
        )


def _objective_text(name: str, settings: Mapping[str, object]) -> str:
    """As in a file of settings."""
    values = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return f"{{name: {name}, settings: {{{values}}}}}"


def _prediction(predict: Prediction, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """(B, C, h, w) float32, without the variance."""
    return predict(noisy, timesteps)[:, : noisy.shape[1]].float()


def _step_around(levels: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and lower end (B,) of the step between levels that the timesteps (B,) are in, or the upper end of."""
    levels = levels.to(timesteps)
    upper = torch.searchsorted(levels, timesteps).clamp(1, len(levels) - 1)
    return levels[upper], levels[upper - 1]
