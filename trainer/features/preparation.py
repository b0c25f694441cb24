"""Preparation of features: stores are created or checked, the source is planned, and the units that are missing are run."""

import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from safetensors.torch import save

from foundry.errors import UserError
from foundry.hardware import AUTO
from foundry.images.ahead.extents import ExtentCache
from foundry.images.index import LARGEST_SCENE_PX
from foundry.reporting.lines import say
from foundry.storage.folder import Folder
from foundry.storage.locations import absolute, is_local_path
from foundry.units.commits import committed_units, read_commits
from foundry.units.rejection import allowed_rejections
from foundry.units.run import run_job
from foundry.wording import counted
from model.control.settings import CONDITIONS
from model.dit_config import default_patch_size
from model.encoders.frozen_parts import PUBLISHED, Kind, is_mini
from trainer.features.buckets import bucket_table
from trainer.features.config import PrecomputeConfig, identity
from trainer.features.info import FEATURES_FILE, NULL_CAPTION_FILE, NULL_CAPTION_NAME, FeaturesInfo, read_info
from trainer.features.job import EncoderFacts, Encoders, FeatureUnit, PrecomputeJob
from trainer.features.plan import TRAIN, FeaturePlan, PlanSettings, extend_feature_plan
from trainer.features.sources import FeatureSource, class_names, open_source
from trainer.features.store import FeatureStore, SampleRequest

_TAKEN = 1.3  # of the weights' size: with activations

_MEASURED_UNITS = 32
_LEAST_DEVIATION = 1e-6


@dataclass(frozen=True, kw_only=True)
class FeatureTasks:
    """The units that are missing in stores that exist and are planned."""

    job: PrecomputeJob
    plan: FeaturePlan
    units: list[FeatureUnit]
    """Units that some store lacks."""
    replica_bytes: float
    """Bytes of a node's memory that a replica takes, roughly; 0 if nothing is left to do."""
    findings: tuple[str, ...] = ()
    """Findings about the source: what was left out, and what else a user should know, one line each."""


def stores_of(config: PrecomputeConfig) -> dict[int, Folder]:
    """The stores that the command writes, by rising resolution."""
    return {resolution: Folder(f"{config.out}/{config.stage}/{resolution}") for resolution in sorted(config.resolution)}


def prepare(config: PrecomputeConfig, *, describe: Callable[[Encoders], EncoderFacts]) -> FeatureTasks:
    """Creates or checks the stores and plans what the source has new. `describe` loads the encoders, where that is needed.

    Raises UserError for a source without samples, stores that were made with other settings, and other encoders.
    """
    source, stores = open_source(config.dataset, ignore=config.ignore), stores_of(config)
    text_encoder = None if config.features.labels else config.text_encoder
    encoders = Encoders(vae=config.vae, text_encoder=text_encoder, batch_px=config.batch_px)
    infos, facts = _existing_infos(config, stores), None
    if infos is None:
        facts = describe(encoders)
        infos = _create_stores(config, source, stores, facts)
    plan = _plan(config, source, stores, infos)
    if not plan.units:
        raise UserError(f"{config.dataset} has no sample: give a data set, a captioning run or images with class labels")
    units = pending_units(plan, stores)
    if units:
        facts = facts or describe(encoders)
        _check_same_encoders(infos, facts)
    urls = {resolution: absolute(folder.url) for resolution, folder in stores.items()}
    encoders = _in_dtypes_of(infos[max(infos)], encoders)
    if config.storage == "none":  # a text encoder was asked what it is: training will encode with it
        encoders = replace(encoders, text_encoder=None)
    job = PrecomputeJob(
        stores=urls, infos=infos, encoders=encoders, limits=config.limits, web=config.web, extents=_extent_cache(config)
    )
    replica_bytes = _TAKEN * facts.num_bytes if facts and units else 0.0
    return FeatureTasks(job=job, plan=plan, units=units, replica_bytes=replica_bytes, findings=tuple(source.findings()))


def run_tasks(config: PrecomputeConfig, tasks: FeatureTasks, *, started: float) -> int:
    """Makes the features that are missing and prints what each store holds; returns 0, or 1 where too many samples failed."""
    job, units = tasks.job, tasks.units
    say(_headline(config, tasks))
    for finding in tasks.findings:
        say(finding)
    if warning := toy_warning(config, tasks):
        say(warning)
    budget = allowed_rejections(config.max_rejected, tasks.plan.num_samples) - rejected_before(config, tasks)
    infos = {f"{url}/{FEATURES_FILE}": job.infos[resolution].fingerprint for resolution, url in job.stores.items()}
    done = True
    if units or budget < 0:
        try:
            done = run_job(
                job,
                units,
                settings=config.ray,
                visible={path: text for path, text in infos.items() if is_local_path(path)},
                budget=budget,
                started=started,
                replica_bytes=tasks.replica_bytes,
                what="samples",
            )
        finally:
            if job.extents is not None:
                job.extents.remove()
    if done:
        for folder in stores_of(config).values():
            _settle_scale(config, folder)
        _report(stores_of(config))
    return 0 if done else 1


def _extent_cache(config: PrecomputeConfig) -> ExtentCache | None:
    if not config.shuffle_gb:
        return None
    parent = absolute(config.shuffle_folder) if config.shuffle_folder else ""
    return ExtentCache(name=secrets.token_hex(8), max_bytes=int(config.shuffle_gb * 1e9), parent=parent)


def _settle_scale(config: PrecomputeConfig, folder: Folder) -> None:
    """Measures the scale of the latents of a finished store where that is asked for; one measured before keeps its scale."""
    info = read_info(folder)
    if config.latent_scale == "vae" and info.latent_scale == "measured":  # asked for before, and not measured yet
        folder.write(FEATURES_FILE, replace(info, latent_scale="vae").to_json())
    elif "measured" in (config.latent_scale, info.latent_scale):
        say(measure_scale(folder))


def toy_warning(config: PrecomputeConfig, tasks: FeatureTasks) -> str:
    """One line where `mini` is about to encode images that are no emoji scenes; "" otherwise, and where sizes are unknown."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    encoders, lead = tasks.job.encoders, next(iter(stores_of(config).values()))
    names: dict[Kind, str] = {"vae": encoders.vae.name}
    if encoders.text_encoder is not None:
        names["text_encoder"] = encoders.text_encoder.name
    toys = [kind for kind, name in names.items() if is_mini(name, kind)]
    if not toys:
        return ""
    num_large, num_samples = 0, 0
    for part in sorted({unit.part for unit in tasks.units}):
        with lead.open(part) as file:
            sizes = pq.read_table(file, columns=["width", "height"])
        sides = pc.min_element_wise(sizes["width"], sizes["height"], skip_nulls=False)  # null where a size is unknown
        num_large += pc.sum(pc.greater(sides, LARGEST_SCENE_PX)).as_py() or 0
        num_samples += len(sizes)
    if not num_large:
        return ""
    given = " and ".join(f"{kind}.name {PUBLISHED[120]}" for kind in toys)
    return (
        f"warning: mini only understands 64-pixel emoji scenes, and {num_large:,} of {counted(num_samples, 'image')} are "
        f"larger than {LARGEST_SCENE_PX} px on both sides: a network learns little from such features; give {given}"
    )


def _in_dtypes_of(info: FeaturesInfo, encoders: Encoders) -> Encoders:
    """The encoders with `auto` settled: in the number formats that the store was started in."""
    vae, text_encoder = encoders.vae, encoders.text_encoder
    begun = _dtypes(info)
    if vae.dtype == AUTO and begun["vae"]:
        vae = replace(vae, dtype=begun["vae"])  # type: ignore[arg-type]
    if text_encoder is not None and text_encoder.dtype == AUTO and begun["text_encoder"]:
        text_encoder = replace(text_encoder, dtype=begun["text_encoder"])  # type: ignore[arg-type]
    return replace(encoders, vae=vae, text_encoder=text_encoder)


def _dtypes(info: FeaturesInfo) -> dict[str, str]:
    """The number formats that a store was started in; empty for one that is not recorded."""
    asked = info.settings.get("vae", {}).get("dtype", "")  # what stores of before tell of their VAE
    return {
        "vae": info.vae_dtype or ("" if asked == AUTO else asked),
        "text_encoder": info.text_encoder_dtype.partition("/")[0],
    }


def _other_dtypes(config: PrecomputeConfig, info: FeaturesInfo) -> list[str]:
    """Options that ask for another number format than the store was started in."""
    begun, asked = _dtypes(info), {"vae": config.vae.dtype, "text_encoder": config.text_encoder.dtype}
    return [f"{kind}.dtype" for kind, dtype in asked.items() if dtype != AUTO and begun[kind] and dtype != begun[kind]]


def pending_units(plan: FeaturePlan, stores: Mapping[int, Folder]) -> list[FeatureUnit]:
    """The units that some store lacks, each with the resolutions that lack it."""
    done = {resolution: committed_units(folder) for resolution, folder in stores.items()}
    lacking = [(unit, tuple(one for one in stores if unit.number not in done[one])) for unit in plan.units]
    return [FeatureUnit(**vars(unit), resolutions=resolutions) for unit, resolutions in lacking if resolutions]


def rejected_before(config: PrecomputeConfig, tasks: FeatureTasks) -> int:
    """Samples that earlier starts rejected, in units that are done at all resolutions."""
    to_do = {unit.number for unit in tasks.units}
    rejected = {commit.unit: commit.num_rejected for folder in stores_of(config).values() for commit in read_commits(folder)}
    return sum(number for unit, number in rejected.items() if unit not in to_do)


def _existing_infos(config: PrecomputeConfig, stores: Mapping[int, Folder]) -> dict[int, FeaturesInfo] | None:
    """The features.json of the stores; None if none exists. Raises UserError for stores that have other settings."""
    found = {resolution: read_info(folder) for resolution, folder in stores.items() if folder.exists(FEATURES_FILE)}
    settings = identity(config.recorded())
    for resolution, info in found.items():
        before = identity(info.settings)
        different = [name for name in settings if name != "control" and before.get(name) != settings[name]]
        different += _other_dtypes(config, info)
        different += ["control.kind"] if info.control != CONDITIONS[config.control.kind] else []
        different += ["latent_scale"] if config.latent_scale == "vae" and info.measured_scale else []
        if different:
            raise UserError(
                f"{stores[resolution].url} was made with another {', '.join(different)}: give the settings in its "
                f"{FEATURES_FILE}, or another folder",
                setting="out",
            )
    if found and len(found) < len(stores):  # stopped between two creations
        return None
    return found or None


def _create_stores(
    config: PrecomputeConfig, source: FeatureSource, stores: Mapping[int, Folder], facts: EncoderFacts
) -> dict[int, FeaturesInfo]:
    """Writes the null caption and features.json into each store."""
    names = class_names(source) if config.features.labels else ()
    infos = {resolution: _info(config, source, facts, resolution=resolution, class_names=names) for resolution in stores}
    for resolution, folder in stores.items():
        if not folder.exists(FEATURES_FILE) and set(folder.names()) - {NULL_CAPTION_FILE}:
            raise UserError(f"{folder.url} is not empty and holds no features: give another folder", setting="out")
        if facts.null_caption is not None:
            folder.create(NULL_CAPTION_FILE, save({NULL_CAPTION_NAME: facts.null_caption}))
        folder.create(FEATURES_FILE, infos[resolution].to_json())
    return {resolution: read_info(folder) for resolution, folder in stores.items()}


def _info(
    config: PrecomputeConfig, source: FeatureSource, facts: EncoderFacts, *, resolution: int, class_names: tuple[str, ...]
) -> FeaturesInfo:
    text = config.text_encoder
    quantised = "" if text.quantisation == "none" else f"/{text.quantisation}"
    square = config.features.square
    measured = config.latent_scale == "measured" or (config.latent_scale == "auto" and not facts.states_scale)
    multiple = facts.downsampling * (config.patch_size or default_patch_size(facts.downsampling))
    return FeaturesInfo(
        stage=config.stage,
        resolution=resolution,
        buckets=bucket_table(resolution, multiple=multiple, square=square),
        latent_channels=facts.latent_channels,
        downsampling=facts.downsampling,
        scaling_factor=facts.scale.scaling_factor,
        shift_factor=facts.scale.shift_factor,
        vae=facts.vae,
        text_encoder=facts.text_encoder,
        text_encoder_dtype=f"{facts.text_encoder_dtype}{quantised}" if facts.text_encoder else "",
        vae_dtype=facts.vae_dtype,
        latent_variance=facts.has_variance,
        control=CONDITIONS[config.control.kind],
        latent_scale="measured" if measured else "vae",
        caption_storage=config.storage,
        caption_cleaning=text.cleaning,
        caption_template=facts.caption_template,
        caption_hidden_state=text.hidden_state if facts.text_encoder else FeaturesInfo.caption_hidden_state,
        caption_width=facts.caption_width,
        max_caption_tokens=text.max_caption_tokens if facts.text_encoder else 0,
        class_names=class_names,
        seed=config.seed,
        unit_size=config.samples_per_unit,
        source=source.url,
        licence=source.licence,
        settings=config.recorded(),
    )


def _plan(
    config: PrecomputeConfig, source: FeatureSource, stores: Mapping[int, Folder], infos: Mapping[int, FeaturesInfo]
) -> FeaturePlan:
    settings = PlanSettings(
        tables={resolution: info.buckets for resolution, info in infos.items()},
        seed=config.seed,
        unit_size=config.samples_per_unit,
        validation_share=config.validation_share,
        min_validation=config.min_validation,
    )
    return extend_feature_plan(list(stores.values()), source, settings)


def _check_same_encoders(infos: Mapping[int, FeaturesInfo], facts: EncoderFacts) -> None:
    """Raises UserError if the encoders are not those that the stores were started with."""
    for info in infos.values():
        for kind, before, now in (("vae", info.vae, facts.vae), ("text_encoder", info.text_encoder, facts.text_encoder)):
            if before is not None and now is not None and before.fingerprint != now.fingerprint:
                raise UserError(
                    f"the features at {info.resolution} px were started with another {kind} (fingerprint {before.fingerprint}, "
                    f"now {now.fingerprint}): give that one, or another folder",
                    setting=f"{kind}.name",
                )


def _headline(config: PrecomputeConfig, tasks: FeatureTasks) -> str:
    sizes = ", ".join(f"{resolution} px" for resolution in sorted(config.resolution))
    encoders, plan = tasks.job.encoders, tasks.plan
    dtypes = f"VAE in {encoders.vae.dtype}" + (
        f", text encoder in {encoders.text_encoder.dtype}" if encoders.text_encoder else ""
    )
    return (
        f"features of {config.dataset} at {sizes}: {counted(plan.num_samples, 'sample')} in "
        f"{counted(len(plan.units), 'unit')}; {counted(len(tasks.units), 'unit')} to do; {dtypes}"
    )


def _report(stores: Mapping[int, Folder]) -> None:
    """Prints what each store holds."""
    for resolution, folder in stores.items():
        commits = read_commits(folder)
        files = [file for commit in commits for file in commit.files.values() if not file.path.startswith("../")]
        rejected = sum((Counter(commit.rejected) for commit in commits), Counter[str]())
        reasons = "".join(f", {count} rejected as {reason}" for reason, count in sorted(rejected.items()))
        samples, num_bytes = sum(commit.completed for commit in commits), sum(file.num_bytes for file in files)
        say(f"{folder.url}: {counted(samples, 'sample')} at {resolution} px, {num_bytes / 1e6:.1f} MB{reasons}")


def measure_scale(folder: Folder) -> str:
    """Measures mean and deviation of each channel over at most 32 training units, and keeps them in features.json: a line.

    What is measured once stays. The same units give the same figures, so that two writers agree. Raises UserError for a channel
    that is constant, whose scale would be infinite.
    """
    import torch

    store = FeatureStore.open(folder.url)
    info = store.info
    if info.measured_scale is None:
        units = [unit for some in store.samples(TRAIN if TRAIN in store.splits else store.splits[0]).values() for unit in some]
        sums = torch.zeros(3, info.latent_channels, dtype=torch.float64)  # values, their sums, sums of their squares
        for unit in sorted(units)[:: -(-len(units) // _MEASURED_UNITS)]:
            batch = store.read([SampleRequest(unit=unit.unit, row=row) for row in range(unit.rows)])
            mean = batch.mean.double()
            square = mean.square() if batch.log_variance is None else mean.square() + batch.log_variance.double().exp()
            sums += torch.stack([part.sum(dim=(0, 2, 3)) for part in (torch.ones_like(mean), mean, square)])
        means = sums[1] / sums[0]
        deviations = (sums[2] / sums[0] - means.square()).clamp(min=0).sqrt()
        if constant := [channel for channel, value in enumerate(deviations.tolist()) if value < _LEAST_DEVIATION]:
            raise UserError(
                f"{folder.url}: channel {constant[0]} of the latents is constant and cannot be scaled to unit variance: give "
                "vae, the scale of the VAE's config, or a VAE that uses all of its channels",
                setting="latent_scale",
            )
        info = replace(
            info, latent_scale="measured", latent_scaling=tuple((1 / deviations).tolist()), latent_shift=tuple(means.tolist())
        )
        folder.write(FEATURES_FILE, info.to_json())
    return (
        f"{folder.url}: channels of the latents have means from {min(info.latent_shift):.4g} to {max(info.latent_shift):.4g}, "
        f"standard deviations from {1 / max(info.latent_scaling):.4g} to {1 / min(info.latent_scaling):.4g}"
    )
