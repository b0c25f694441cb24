"""Command that serves a checkpoint over HTTP as OpenAI's images: `python -m model.serve --checkpoint runs/aesthetic`.

Requests of many clients are drawn together. See docs/serving.md.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.command_line import run_command
from foundry.hardware import AutoDtype
from foundry.reporting.lines import say
from foundry.wording import CHOICE, ModelChoice
from model.encoders.text_encoder import Quantisation
from model.generation.pipeline_parts import RuntimeConfig, Weights
from model.rewriting.config import RewriteConfig
from model.sampling import SamplingConfig
from model.serving.settings import ServerLimits, parse_named

if TYPE_CHECKING:
    from model.serving.server import ServerRewriter


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Settings of `python -m model.serve`."""

    checkpoint: str = field(
        metadata={CHOICE: ModelChoice(real="FOLDER", what="your own network", toy="only draws 64-pixel emoji scenes")}
    )
    """Folder with transformer/ and pipeline.json, a training's folder (its newest checkpoint), or `mini`: the shipped toy."""
    name: str | None = None
    """Name of the model for clients; default: the last part of the checkpoint's path."""
    lora: tuple[str, ...] = ()
    """LoRA adapters that requests may ask for, each NAME=PATH or NAME=PATH:SCALE, the scale being that of requests without."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than a loopback address needs --key_variable or --key_file."""
    port: int = 8000
    """Port to listen on; 0: a free one, which is printed."""
    key_variable: str | None = None
    """Name of the environment variable that holds the key which clients must send as a bearer token; default: ask for none."""
    key_file: str | None = None
    """File that holds this key, in place of a variable."""
    batch_size: int = 8
    """Number of images that are drawn together; it does not change them, beyond rounding."""
    limits: ServerLimits = field(default_factory=ServerLimits)
    """Limits of requests and of the queue."""
    grace_s: int = 30
    """Time after SIGTERM in which images under way are finished, in seconds; requests that wait get status 503 at once."""
    num_inference_steps: int | None = None
    """Number of steps of requests that give none; default: 20, or those that a network of few steps was trained for."""
    guidance_scale: float | None = None
    """Guidance of requests that give none; 1 or less: no guidance, at half the work. Default: 4.5, or none for a network of few
    steps, which guides itself."""
    sampler: str | None = None
    """Sampler of requests that give none: dpm-solver++, ddim, sa-solver, euler (rectified flow only) or lcm; default:
    dpm-solver++, or that of a network of few steps."""
    shift: float | None = None
    """Shift of rectified flow's times of requests that give none; default: as trained."""
    device: str = "auto"
    """Device: cuda, cpu, …; auto: cuda if available."""
    dtype: AutoDtype = "auto"
    """Number format of all computation; auto: bfloat16 where the hardware has it, else float32."""
    tiled_vae: bool = False
    """Decode in tiles: little memory at any size."""
    weights: Weights = "full"
    """Number format of the network's weights: full (dtype), int8 or int4: a half or about a quarter of bfloat16's memory."""
    quantisation: Quantisation = "none"
    """Quantisation of the text encoder: int4, or by a library bitsandbytes, torchao (8 bits) or bitsandbytes_4bit."""
    text_encoder_device: str | None = None
    """Device of the text encoder; cpu keeps it off the GPU."""
    rewrite: RewriteConfig = field(default_factory=RewriteConfig)
    """Rewriter of the prompts; requests may turn it off."""
    text_encoder: str | None = None
    """Folder or hub id of the text encoder, if not the one in pipeline.json."""
    vae: str | None = None
    """Folder or hub id of the VAE, if not the one in pipeline.json."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535 or self.grace_s < 0:
            raise ValueError(f"port must be 0 to 65535 and grace_s 0 or more, found {self.port} and {self.grace_s}")
        self.sampling()
        self.runtime()
        parse_named(self.lora)

    def sampling(self) -> SamplingConfig:
        """Settings of requests that give none."""
        return SamplingConfig(
            sampler=self.sampler,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            shift=self.shift,
        )

    def runtime(self) -> RuntimeConfig:
        """Devices, number formats and batch size."""
        return RuntimeConfig(
            device=self.device,
            dtype=self.dtype,
            text_encoder_device=self.text_encoder_device,
            weights=self.weights,
            quantisation=self.quantisation,
            tiled_vae=self.tiled_vae,
            batch_size=self.batch_size,
        )


def main(config: ServeConfig) -> int:
    """Serves until SIGTERM or Ctrl-C; returns 0."""
    from foundry.http.server import address_of, listen, read_server_key, run_server
    from model.formats.checkpoint import checkpoint_fingerprint, find_checkpoint
    from model.generation.pipeline import open_pipeline
    from model.serving.adapters import NamedAdapters
    from model.serving.engine import Engine, warm_up
    from model.serving.image_request import RequestReader
    from model.serving.server import ImageServer, image_app

    key = read_server_key(config.key_variable, config.key_file, host=config.host)
    with listen(config.host, config.port) as listener:
        root, runtime = find_checkpoint(config.checkpoint), config.runtime().resolved()
        pipeline = open_pipeline(root, runtime=runtime, text_encoder=config.text_encoder, vae=config.vae)
        adapters = NamedAdapters(parse_named(config.lora), root)
        rewriter = _rewriter(config, device=runtime.text_encoder_device or runtime.device)
        warm_up(pipeline, config.sampling())
        reader = RequestReader(
            name=config.name or Path(config.checkpoint).resolve().name,
            adapters=adapters.scales,
            sampling=config.sampling(),
            few_steps=adapters.few_steps,
            own_few_steps=pipeline.config.few_steps,
            limits=config.limits,
            resolution=pipeline.config.resolution,
        )
        engine = Engine(pipeline, adapters, max_waiting=config.limits.max_waiting)
        server = ImageServer(engine, reader, fingerprint=checkpoint_fingerprint(root), rewriter=rewriter)
        added = f" with the adapters {', '.join(adapters.scales)}" if adapters.scales else ""
        say(f"{reader.name}{added} on {runtime.device} in {runtime.dtype}: {address_of(listener)}/v1")
        run_server(image_app(server, key=key), listener, grace_s=config.grace_s, on_stop=engine.drain)
        say(f"stopped after {engine.num_drawn} images")
    return 0


def _rewriter(config: ServeConfig, *, device: str) -> "ServerRewriter | None":
    """The rewriter of prompts; None where they are drawn as written."""
    if config.rewrite.model is None:
        return None
    from concurrent.futures import ThreadPoolExecutor

    from model.rewriting.rewriting import open_prompt_rewriter
    from model.serving.server import ServerRewriter

    rewriter = open_prompt_rewriter(
        config.rewrite, checkpoint=config.checkpoint, text_encoder=config.text_encoder, device=device
    )
    threads = 1 if config.rewrite.url is None else config.rewrite.concurrency
    return ServerRewriter(rewriter=rewriter, cache=config.rewrite.cache, executor=ThreadPoolExecutor(threads))


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            ServeConfig,
            main,
            prog="python -m model.serve",
            example="python -m model.serve --checkpoint runs/aesthetic --port 8000",
        )
    )
