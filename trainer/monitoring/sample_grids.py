"""Grids of samples during a training: the same prompts and seeds each time, drawn by the EMA weights.

Without --watch.prompts they show captions of the validation split, whose features are stored: no text encoder is loaded.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from foundry.hardware import AUTO
from model.diffusion import Objective, make_objective
from model.dit import Captions, DiT
from model.encoders.text_encoder import TextEncoder, TextEncoderConfig, load_text_encoder
from model.encoders.vae import VAE, VAEConfig, load_vae, to_pixels
from model.formats.checkpoint import PipelineConfig, check_fingerprint
from model.generation.image_files import make_grid, save_png
from model.generation.pipeline import Pipeline
from model.generation.pipeline_parts import Part, Parts, RuntimeConfig
from model.generation.pixels import to_output
from model.generation.request import GenerationRequest
from model.sampling import SamplingConfig, denoise, draw_noise, image_generators
from trainer.config.running import WatchConfig
from trainer.config.train import TrainConfig
from trainer.data.order import OrderedBatch
from trainer.features.info import FeaturesInfo
from trainer.features.store import FeatureStore
from trainer.features.tables import Int8Captions
from trainer.monitoring.tracking.rows import SAMPLES
from trainer.monitoring.validation import ValidationSet

FOLDER = SAMPLES
_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """The prompts or classes that the samples show."""

    texts: tuple[str, ...]
    """Prompts, or names of classes."""
    captions: Captions | None
    """Features of the prompts, on the CPU."""
    null_caption: Captions | None
    """The null caption, which guidance leads away from."""
    labels: tuple[int, ...] = ()
    """Classes instead of captions."""
    control: Tensor | None = None
    """(samples, C, h, w) latents of control images, where a control is trained."""


class SampleGrids:
    """Draws a rung's grids on the first worker."""

    def __init__(self, run: Path, *, pipeline: PipelineConfig, subjects: Subjects, vae: VAE, config: WatchConfig) -> None:
        self._folder = run / FOLDER
        self._pipeline = pipeline
        self._subjects = subjects
        self._vae = vae
        few_steps = pipeline.few_steps  # which says by itself how it is sampled
        steps, scale = (None, None) if few_steps else (config.sample_steps, config.guidance_scale)
        self._sampling = SamplingConfig(num_inference_steps=steps, guidance_scale=scale).resolved(few_steps)

    def draw(self, network: DiT, images_seen: int) -> Path:
        """Writes samples/<images seen>.png, with what it shows inside."""
        images = self._from_classes(network) if self._subjects.labels else self._from_captions(network)
        path = self._folder / f"{images_seen:012d}.png"
        values = {"texts": list(self._subjects.texts), "images_seen": images_seen, "sampling": str(self._sampling)}
        save_png(make_grid(images, scale=0), path, values)
        return path

    def _from_captions(self, network: DiT) -> list[Image]:
        parts = Parts(
            transformer=Part(lambda: network, keep=True),
            text_encoder=Part(_no_text_encoder, keep=True),
            vae=Part(lambda: self._vae, keep=True),
            downsampling=self._vae.downsampling,
            control=None if self._subjects.control is None else "",
        )
        runtime = RuntimeConfig(device=str(next(network.parameters()).device), batch_size=_BATCH)
        pipeline = Pipeline(self._pipeline, parts, transformer_config=network.config, runtime=runtime)
        request = GenerationRequest(
            captions=self._subjects.captions,
            negative_captions=self._subjects.null_caption,
            control_latents=self._subjects.control,
            sampling=self._sampling,
        )
        return [drawn.image for drawn in pipeline(request) if isinstance(drawn.image, Image)]

    def _from_classes(self, network: DiT) -> list[Image]:
        config = network.config
        device = next(network.parameters()).device
        generators = image_generators(range(len(self._subjects.labels)))
        noise = draw_noise(generators, (config.in_channels, config.sample_size, config.sample_size)).to(device)
        predict = ClassPrediction(network, torch.tensor(self._subjects.labels, device=device), self._sampling.scale)
        latents = denoise(predict, self._objective(), noise=noise, config=self._sampling)
        images = [to_output(to_pixels(self._vae.decode(own[None])), "pil") for own in latents]
        return [image for image in images if isinstance(image, Image)]

    def _objective(self) -> Objective:
        return make_objective(self._pipeline.objective, self._pipeline.objective_settings)


@dataclass(frozen=True, eq=False)
class ClassPrediction:
    """A class-conditional network with labels (B,) bound, guided away from no class where it has learned that."""

    network: DiT
    labels: Tensor
    guidance_scale: float

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """The prediction (B, C, h, w) in float32 for latents (B, C, h, w) and a timestep ()."""
        config = self.network.config
        timesteps = timestep.to(latents.device, torch.float32).expand(len(latents))
        output = self.network(latents, timesteps, class_labels=self.labels)
        if config.null_class and self.guidance_scale > 1:
            plain = self.network(latents, timesteps, class_labels=None)
            output = plain + self.guidance_scale * (output - plain)
        return output[:, : config.in_channels].float()  # type: ignore[no-any-return]


def choose_subjects(
    config: TrainConfig, samples: ValidationSet | None, store: FeatureStore, encoder: TextEncoder | None
) -> Subjects | None:
    """Chooses what a rung's grids show: the prompts of the settings, else captions or classes of the validation set."""
    info, watch = store.info, config.watch
    if info.class_names:
        labels = tuple(range(min(watch.num_samples, len(info.class_names))))
        return Subjects(texts=info.class_names[: len(labels)], captions=None, null_caption=None, labels=labels)
    texts, captions, control = watch.prompts, None, None
    if not texts and samples is not None:
        largest = max((batch for _, batch in samples.batches), key=_size)
        found = store.read([samples.request(*sample) for sample in largest.samples[: watch.num_samples]])
        texts = tuple(found.texts or ())
        captions = found.captions.expanded() if isinstance(found.captions, Int8Captions) else found.captions
        control = None if found.control is None else store.scale.to_latents(found.control.float())
    if not texts:
        return None
    if captions is not None and store.null_caption is not None:
        null = Captions(tokens=store.null_caption, lengths=torch.tensor([len(store.null_caption)]))
        return Subjects(texts=texts, captions=captions, null_caption=null, control=control)
    encoder = encoder or open_text_encoder(config, info)
    captions, null = encoder.encode(texts).to("cpu"), encoder.null_captions().to("cpu")
    return Subjects(texts=texts, captions=captions, null_caption=null, control=control)


def open_text_encoder(config: TrainConfig, info: FeaturesInfo, *, device: str = "cpu") -> TextEncoder:
    """The features' text encoder. Raises UserError for another one."""
    assert info.text_encoder is not None
    _, _, quantisation = info.text_encoder_dtype.partition("/")
    encoder = load_text_encoder(
        TextEncoderConfig(
            name=config.text_encoder or info.text_encoder.name,
            revision=None if config.text_encoder else info.text_encoder.revision,
            dtype=info.settings.get("text_encoder", {}).get("dtype", AUTO),  # as asked for: this may be another machine
            quantisation=quantisation or "none",  # type: ignore[arg-type]
            cleaning=info.caption_cleaning,
            template=info.caption_template,
            hidden_state=info.caption_hidden_state,
            max_caption_tokens=info.max_caption_tokens,
            max_batch_tokens=max(info.max_caption_tokens, TextEncoderConfig.max_batch_tokens),
        ),
        device=device,
    )
    check_fingerprint("text_encoder", info.text_encoder, name=encoder.config.name, found=encoder.fingerprint())
    return encoder


def open_vae(config: TrainConfig, info: FeaturesInfo, *, device: str) -> VAE:
    """The features' VAE. Raises UserError for another one."""
    vae = load_vae(
        VAEConfig(name=config.vae or info.vae.name, revision=None if config.vae else info.vae.revision),
        device=device,
        scale=info.measured_scale,
    )
    check_fingerprint("vae", info.vae, name=config.vae or info.vae.name, found=vae.fingerprint())
    return vae


def _size(batch: OrderedBatch) -> int:
    return len(batch.samples)


def _no_text_encoder() -> TextEncoder:
    raise AssertionError("the captions of samples are encoded already")
