"""Folders of diffusers: a whole pipeline (model_index.json) or a transformer alone, in and out.

Source: diffusers 0.42, PixArtTransformer2DModel, DiTTransformer2DModel, PixArtAlphaPipeline.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from foundry.errors import UserError
from foundry.storage.model_files import in_place_of_weights
from model.diffusion import make_objective
from model.dit_config import DiTConfig, FewSteps, UnstatedConfig
from model.encoders.caption_template import PLACE
from model.encoders.frozen_parts import PUBLISHED, UNNAMED, find_part
from model.encoders.text_encoder import Cleaning
from model.encoders.vae import downsampling_of
from model.formats.checkpoint import TRANSFORMER, WEIGHTS, PartConfig, PipelineConfig
from model.formats.diffusers_scheduler import CONSISTENCY, read_objective
from model.formats.json_files import read_json, write_json

_INDEX = "model_index.json"
_CLEANING = "_caption_cleaning"
"""Key of model_index.json in folders that we write; diffusers ignores keys that begin with an underscore."""
_FEW_STEPS = "_few_steps"
"""Key likewise, of a network that was distilled to few steps."""
_PIXART_LCM = FewSteps(method="consistency", num_inference_steps=4, guidance_scale=4.5)
"""Of the published PixArt-LCM: its card draws in 4 steps; the guidance scale is PixArt-alpha's, for it records none."""
_ASSUMED = "diffusion"
_SCHEDULER = "scheduler/scheduler_config.json"
_ADAPTERS = [f"{name}.{suffix}" for name in ("adapter_model", "pytorch_lora_weights") for suffix in ("safetensors", "bin")]
_MICRO = "adaln_single.emb.resolution_embedder"
_SIGMA_TOKENS = 300
_KL_ALONE = "decode by an AutoencoderKL alone: keep the native format"
_T5_ALONE = "pipelines for this network read the last layer of a T5, without a template: keep the native format"
_ONE_FACTOR = "divide them by one factor alone: keep the native format, or train with the VAE's own scale"
_SAMPLER = "dpm-solver++"
# What our network does and diffusers makes a setting of: another value is another network.
_FIXED = {
    "attention_bias": (True,),
    "activation_fn": ("gelu-approximate",),
    "norm_elementwise_affine": (False,),
    "attention_type": ("default", None),
    "upcast_attention": (False,),
    "dropout": (0, 0.0),
    "double_self_attention": (False,),
    "only_cross_attention": (False,),
    "use_linear_projection": (False,),
    "num_vector_embeds": (None,),
}
_NEEDED = ("num_attention_heads", "attention_head_dim", "in_channels", "num_layers", "sample_size", "patch_size")
_READ = {
    *(*_NEEDED, "out_channels", "cross_attention_dim", "caption_channels"),
    *("use_additional_conditions", "interpolation_scale", "norm_type", "norm_eps"),
}
_WITHOUT_EFFECT = {"norm_num_groups", "num_embeds_ada_norm"}


def read_folder(
    folder: Path, unstated: UnstatedConfig, *, assumed_objective: str = _ASSUMED
) -> tuple[DiTConfig, dict[str, Tensor], PipelineConfig]:
    """Configuration, tensors under diffusers' names, and what the pipeline around them says, where there is one.

    `assumed_objective` is that of a folder without a scheduler.

    Raises UserError for what is missing, cut off or another network.
    """
    _check_folder(folder)
    root = folder / TRANSFORMER if (folder / TRANSFORMER / "config.json").is_file() else folder
    values, tensors = _read_json(root / "config.json"), _read_tensors(root)
    tokens = unstated.max_caption_tokens
    if not tokens and (folder / _INDEX).is_file():
        tokens = _SIGMA_TOKENS if "Sigma" in str(_read_json(folder / _INDEX).get("_class_name")) else 120
    try:
        config = _config_from_diffusers(values, max_caption_tokens=tokens, micro=f"{_MICRO}.linear_1.weight" in tensors)
    except (TypeError, ValueError) as error:
        raise UserError(f"{root / 'config.json'}: {error}", setting=getattr(error, "setting", "")) from error
    return config, tensors, _pipeline_config(folder, config, assumed_objective)


def _check_folder(folder: Path) -> None:
    """Raises UserError if there is no folder, or an adapter in place of a network."""
    if not folder.is_dir():
        found = "a file, as the sources official and dit are" if folder.is_file() else "nothing"
        raise UserError(f"expected a folder that diffusers wrote at {folder}, found {found}", setting="source")
    for root in (folder, folder / TRANSFORMER):
        adapter = next((name for name in _ADAPTERS if (root / name).is_file()), None)
        if adapter and not (root / "config.json").is_file():
            raise UserError(f"{root / adapter} is a LoRA adapter, not a whole network: convert the network that it belongs to")


def write_folder(
    folder: Path, state: Mapping[str, Tensor], config: DiTConfig, pipeline: PipelineConfig, *, copy_parts: bool
) -> None:
    """Writes a pipeline that diffusers' from_pretrained opens as it is; without copied parts these are given to it.

    `state` has diffusers' names. The folder exists and is empty. Raises UserError if a part cannot be found, and where
    diffusers' pipelines cannot compute what this one does.
    """
    from safetensors.torch import save_file

    _check_pipeline(pipeline, text=config.conditioning == "text", copy_parts=copy_parts)
    text = config.conditioning == "text"
    parts = _copy_parts(folder, pipeline, text=text) if copy_parts else {name: [None, None] for name in _part_names(text=text)}
    (folder / TRANSFORMER).mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / TRANSFORMER / WEIGHTS, metadata={"format": "pt"}
    )
    about = {"_diffusers_version": version("diffusers")}
    network = "PixArtTransformer2DModel" if text else "DiTTransformer2DModel"
    write_json(folder / TRANSFORMER / "config.json", {"_class_name": network, **about, **_config_to_diffusers(config)})
    settings = diffusers_scheduler(pipeline)
    scheduler = settings["_class_name"]
    (folder / "scheduler").mkdir()
    write_json(folder / _SCHEDULER, {"_class_name": scheduler, **about, **settings})
    sigma = config.max_caption_tokens == _SIGMA_TOKENS
    kind = ("PixArtSigmaPipeline" if sigma else "PixArtAlphaPipeline") if text else "DiTPipeline"
    index = {"_class_name": kind, **about, "scheduler": ["diffusers", scheduler], TRANSFORMER: ["diffusers", network]}
    own: dict[str, Any] = {_CLEANING: pipeline.caption_cleaning} if text else {}
    if pipeline.few_steps is not None:
        own[_FEW_STEPS] = asdict(pipeline.few_steps)
    write_json(folder / _INDEX, index | own | parts)


def diffusers_scheduler(pipeline: PipelineConfig) -> dict[str, Any]:
    """Settings of the scheduler by which diffusers samples a network, with its class."""
    sampler = _SAMPLER if pipeline.few_steps is None else pipeline.few_steps.sampler
    return make_objective(pipeline.objective, pipeline.objective_settings).scheduler_config(sampler)


def _check_pipeline(pipeline: PipelineConfig, *, text: bool, copy_parts: bool) -> None:
    """Raises UserError for what diffusers' pipelines cannot hold. Parts on the hub are read only where they are copied."""
    if pipeline.latent_scaling:
        raise UserError(f"the latents are scaled by channel, and diffusers' pipelines {_ONE_FACTOR}", setting="target")
    if (pipeline.caption_template, pipeline.caption_hidden_state) != (PLACE, -1):
        raise UserError(
            f"the text encoder reads captions in a template or another layer, and diffusers' {_T5_ALONE}", setting="target"
        )
    encoder = pipeline.text_encoder
    if text and (copy_parts or _is_folder(encoder.name)):
        kind = _read_json(find_part(encoder.name, "text_encoder", revision=encoder.revision).folder / "config.json")
        if kind.get("model_type", "t5") != "t5":
            raise UserError(f"the text encoder is a {kind['model_type']}, and diffusers' {_T5_ALONE}", setting="target")
    if copy_parts or _is_folder(pipeline.vae.name):
        _check_vae(find_part(pipeline.vae.name, "vae", revision=pipeline.vae.revision).folder / "config.json")


def _is_folder(name: str) -> bool:
    return name != UNNAMED and Path(name).expanduser().is_dir()


def _check_vae(config: Path) -> None:
    """Raises UserError for a VAE that diffusers' PixArt and DiT pipelines would run otherwise than it was trained with."""
    values = _read_json(config)
    if (kind := values.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        raise UserError(f"the VAE is an {kind}, and diffusers' pipelines for this network {_KL_ALONE}", setting="target")
    if values.get("shift_factor") or values.get("latents_std"):
        raise UserError(
            f"{config} shifts its latents or scales them by channel, and diffusers' pipelines {_ONE_FACTOR}", setting="target"
        )


def _part_names(*, text: bool) -> list[str]:
    return ["text_encoder", "tokenizer", "vae"] if text else ["vae"]


def _copy_parts(folder: Path, pipeline: PipelineConfig, *, text: bool) -> dict[str, list[str | None]]:
    """Copies VAE, text encoder and tokenizer; their entries in model_index.json."""
    vae = find_part(pipeline.vae.name, "vae", revision=pipeline.vae.revision)
    sources = {"vae": (vae.folder, ["diffusers", "AutoencoderKL"])}
    if text:
        encoder = find_part(pipeline.text_encoder.name, "text_encoder", revision=pipeline.text_encoder.revision)
        settings = _read_json(encoder.tokenizer_folder / "tokenizer_config.json")
        sources["text_encoder"] = (encoder.folder, ["transformers", "T5EncoderModel"])
        sources["tokenizer"] = (encoder.tokenizer_folder, ["transformers", str(settings.get("tokenizer_class", "T5Tokenizer"))])
    for name, (source, _) in sources.items():
        (folder / name).mkdir()
        for path in sorted(source.iterdir()):  # text encoder and tokenizer may lie in one folder
            weights = path.name == "config.json" or ".safetensors" in path.name
            if path.is_file() and (weights != (name == "tokenizer") or path.name.startswith("LICENSE")):
                shutil.copy(path, folder / name / path.name)
    if text:  # without torch_dtype diffusers computes in float32, but transformers in what this file says
        config = folder / "text_encoder" / "config.json"
        values = {key: value for key, value in _read_json(config).items() if key != "torch_dtype"}
        write_json(config, values | {"dtype": "float32"})
    return {name: list(entry) for name, (_, entry) in sources.items()}


def _config_to_diffusers(config: DiTConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_width,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_layers": config.depth,
        "sample_size": config.sample_size,
        "patch_size": config.patch_size,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
    }
    if config.mlp_ratio != 4:
        raise UserError(
            f"diffusers' networks have an MLP ratio of 4, found mlp_ratio {config.mlp_ratio}: write an official file",
            setting="target",
        )
    if config.conditioning == "class":
        if not config.null_class or config.position_scale != 1:
            raise UserError(
                "diffusers' DiTTransformer2DModel has a null class and positions of scale 1, found "
                f"null_class={config.null_class}, position_scale={config.position_scale}: write an official file",
                setting="target",
            )
        return values | {"norm_type": "ada_norm_zero", "num_embeds_ada_norm": config.num_classes}
    return values | {
        "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000,
        "cross_attention_dim": config.width,
        "caption_channels": config.caption_width,
        "interpolation_scale": config.position_scale,
        "use_additional_conditions": config.micro_conditioning,
    }


def _config_from_diffusers(values: Mapping[str, Any], *, max_caption_tokens: int, micro: bool) -> DiTConfig:
    """Raises ValueError for another network. max_caption_tokens: 0 if that is not known; micro: as the tensors have it."""
    text = values.get("norm_type") == "ada_norm_single"
    _check_settings(values, text=text)
    size, scale = int(values["sample_size"]), values.get("interpolation_scale")
    heads, head = int(values["num_attention_heads"]), int(values["attention_head_dim"])
    out = values.get("out_channels") or values["in_channels"]
    common = {
        "sample_size": size,
        "patch_size": values["patch_size"],
        "in_channels": values["in_channels"],
        "width": heads * head,
        "depth": values["num_layers"],
        "num_heads": heads,
        "learned_variance": out == 2 * values["in_channels"],
    }
    if not text:
        return DiTConfig.from_dict(common | {"conditioning": "class", "num_classes": values["num_embeds_ada_norm"]})
    if not max_caption_tokens:
        raise UserError(
            f"a transformer without {_INDEX} does not tell alpha from Sigma: give its number of caption tokens, 120 or 300",
            setting="unstated.max_caption_tokens",
        )
    stated = values.get("use_additional_conditions")
    return DiTConfig.from_dict(
        common
        | {
            "caption_width": values["caption_channels"],
            "max_caption_tokens": max_caption_tokens,
            "micro_conditioning": micro if stated is None else stated,
            "position_scale": float(max(size // 64, 1) if scale is None else scale),  # what diffusers infers
        }
    )


def _check_settings(values: Mapping[str, Any], *, text: bool) -> None:
    """Raises ValueError for settings that our network has not, or that are not there."""
    kind = values.get("_class_name")
    if kind not in ("PixArtTransformer2DModel", "DiTTransformer2DModel", "Transformer2DModel"):
        raise ValueError(f"expected a PixArtTransformer2DModel or DiTTransformer2DModel, found {kind}")
    for key, value in values.items():
        if key in _FIXED and value not in _FIXED[key]:
            raise ValueError(f"{key}: expected {' or '.join(map(str, _FIXED[key]))}, found {value}: another network")
        if not key.startswith("_") and key not in _FIXED | dict.fromkeys(_READ | _WITHOUT_EFFECT) and value is not None:
            raise ValueError(f"{key}: expected no such setting, found {value}: another network")
    if text and values.get("norm_eps", 1e-6) != 1e-6:  # a class-conditional one has diffusers' default, 1e-5, for DiT's 1e-6
        raise ValueError(f"norm_eps: expected 1e-06, found {values['norm_eps']}: another network")
    needed = (*_NEEDED, "caption_channels" if text else "num_embeds_ada_norm")
    if missing := [key for key in needed if values.get(key) is None]:
        raise ValueError(f"expected {', '.join(missing)}, found none: another network")


def has_scheduler(folder: Path) -> bool:
    """Whether a folder says what objective its network was trained by."""
    return (folder / _SCHEDULER).is_file()


def _pipeline_config(folder: Path, config: DiTConfig, assumed_objective: str) -> PipelineConfig:
    """The objective from the scheduler, where there is one; text encoder and VAE are the folder's own where it has them."""
    path = folder / _SCHEDULER
    objective = assumed_objective
    settings: dict[str, Any] = {}
    few_steps = None
    if path.is_file():
        few_steps = _few_steps(folder, path)
        objective, settings = read_objective(_read_json(path), learned_variance=config.learned_variance)
        if objective != assumed_objective != _ASSUMED:
            raise UserError(
                f"{path} is that of the objective {objective}, not {assumed_objective}: leave it out", setting="objective"
            )
    elif objective == _ASSUMED and not config.learned_variance:
        settings = {"learned_variance": False}
    published = PUBLISHED.get(config.max_caption_tokens, PUBLISHED[120])
    vae = folder / "vae" / "config.json"
    factor = downsampling_of(vae) if vae.is_file() else 8  # pixels per latent pixel
    own = {name: str(folder.resolve()) for name in ("text_encoder", "vae") if (folder / name / "config.json").is_file()}
    return PipelineConfig(
        objective=objective,
        objective_settings=settings,
        resolution=factor * config.sample_size,
        text_encoder=PartConfig(name=own.get("text_encoder", published)),
        vae=PartConfig(name=own.get("vae", published)),
        caption_cleaning=_cleaning(folder / _INDEX) if config.conditioning == "text" else PipelineConfig.caption_cleaning,
        licence="see the source",
        few_steps=few_steps,
    )


def _few_steps(folder: Path, scheduler: Path) -> FewSteps | None:
    """As a folder of ours records it; of another whose scheduler is LCM's, as PixArt-LCM; else none."""
    recorded = _read_json(folder / _INDEX).get(_FEW_STEPS) if (folder / _INDEX).is_file() else None
    if recorded is None:
        return _PIXART_LCM if _read_json(scheduler).get("_class_name") == CONSISTENCY else None
    try:
        return FewSteps(**recorded)
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / _INDEX}: {_FEW_STEPS}: {error}") from error


def _cleaning(index: Path) -> Cleaning:
    """Cleaning recorded by our own folders; otherwise thorough, the default of diffusers' pipelines and of PixArt's authors."""
    found: Cleaning = _read_json(index).get(_CLEANING, "thorough") if index.is_file() else "thorough"
    if found not in get_args(Cleaning):
        raise UserError(f"{index}: {_CLEANING}: expected one of {', '.join(get_args(Cleaning))}, found {found!r}")
    return found


def _read_tensors(root: Path) -> dict[str, Tensor]:
    """The tensors of one file, or of all files that an index names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    shards = root / f"{WEIGHTS}.index.json"
    names = sorted(set(_read_json(shards).get("weight_map", {}).values())) if shards.is_file() else [WEIGHTS]
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = root / name
        if not path.is_file():
            instead = in_place_of_weights(root, [file.name for file in root.iterdir()], example="a folder that has these")
            raise UserError(instead or f"expected weights at {path}, found nothing; fetch it again")
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} ({path.stat().st_size} bytes) is truncated or not safetensors: {error}") from error
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, missing=f"expected a folder that diffusers wrote, found no {path}")
