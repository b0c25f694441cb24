"""Comparison from runs to figures and a page: images paired, measured, and drawn again where there is a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from captioner.comparison.candidates import Candidate, counted_differently, find_candidates, unfinished
from captioner.comparison.costs import run_costs
from captioner.comparison.density import estimate_density
from captioner.comparison.measures import estimate, measure_captions, num_captions, num_without_text, pair_images
from captioner.comparison.page import ShownImage, comparison_page
from captioner.comparison.sampled import SampledImage, draw_sample, fetch_images, keep_clip, keep_recounted, keep_stored_clip
from captioner.comparison.table import Comparison
from captioner.comparison.tabr import TabrSettings, draw_captions, keep_tabr, load_encoder
from dataset_builder.concepts.t5_view import T5Config
from dataset_builder.concepts.tagger import TaggerConfig
from dataset_builder.scores.clip import resolve_clip
from dataset_builder.sql.database import Workbench, open_workbench
from foundry.errors import UserError
from foundry.storage.folder import new_file


@dataclass
class _Extra:
    """Tables of measures besides those of the runs' own counts, notes on them, and the files of what was drawn."""

    tables: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    drawn: Mapping[str, Sequence[Path]] = field(default_factory=dict)


def compare_runs(
    sources: Sequence[str],
    *,
    prompts: Sequence[str],
    sample_size: int,
    clip: str | None,
    checkpoint: str | None,
    tabr: TabrSettings,
    out: str | None,
    pictures: int,
) -> Comparison:
    """Compares each prompt of each run with all others, and writes the page `out`, without which a checkpoint draws nothing.

    The arguments are as captioner.compare explains them. Raises UserError for what cannot be compared.
    """
    if out and not Path(out).absolute().parent.is_dir():
        raise UserError(
            f"{out} cannot be written because its folder does not exist: create it, or give another path", setting="out"
        )
    candidates = find_candidates(sources, prompts=prompts)
    first = candidates[0].files.settings
    tagger = TaggerConfig.as_described(first.get("tagger"), default=TaggerConfig())
    t5 = T5Config.as_described(first.get("t5"), default=T5Config())
    extra = _Extra(notes=unfinished(candidates))
    with open_workbench({one.source: one.files for one in candidates}) as bench:
        num_images = pair_images(bench, candidates)
        sample = draw_sample(bench, candidates, size=sample_size)
        recounted = counted_differently(candidates)
        if recounted:
            keep_recounted(bench, candidates, sample, tagger=tagger, t5=t5)
            extra.notes.append(_recount_note(recounted, tagger, t5, source=candidates[0].source, num_images=len(sample)))
        if checkpoint and out:
            _add_tabr(bench, candidates, extra, checkpoint=checkpoint, settings=tabr, out=Path(out))
        _add_clip(bench, candidates, sample, extra, name=clip)
        measure_captions(bench, candidates, max_tokens=t5.max_tokens, recounted=bool(recounted), extra=extra.tables)
        found = Comparison(
            candidates=candidates,
            num_images=num_images,
            num_captions=num_captions(bench, candidates),
            num_without_text=num_without_text(bench, candidates),
            figures=[*estimate_density(bench, candidates), *estimate(bench, candidates)],
            costs=run_costs(candidates),
            notes=extra.notes,
        )
        if out:
            _write_page(bench, found, extra, tagger=tagger, out=out, pictures=pictures)
    return found


def _recount_note(differing: Sequence[str], tagger: TaggerConfig, t5: T5Config, *, source: str, num_images: int) -> str:
    what = " and ".join({"tagger": "taggers", "t5": "T5 tokenizers"}[name] for name in differing)
    return (
        f"The {what} of the runs differ, so the captions of {num_images:,} images were counted again, all by "
        f"{tagger.spacy_model} and the first {t5.max_tokens} tokens of {t5.tokenizer}, as those of {source}."
    )


def _add_tabr(
    bench: Workbench, candidates: Sequence[Candidate], extra: _Extra, *, checkpoint: str, settings: TabrSettings, out: Path
) -> None:
    encoder = load_encoder(settings.similarity)
    sample = draw_sample(bench, candidates, size=settings.num_images)
    folder = out.with_name(f"{out.stem}-images")
    extra.drawn = draw_captions(sample, checkpoint=checkpoint, settings=settings, folder=folder)
    extra.notes.append(
        f"TaBR: {checkpoint} drew each of {len(sample):,} images again from each caption alone, from the same noise; "
        f"similarity is the cosine by {encoder.name}, and the line below is that with another image. The captioner with the "
        "higher one says more that is true and can be drawn, but a network draws best from captions like those that it learned."
    )
    extra.notes += keep_tabr(bench, sample, extra.drawn, encoder=encoder)
    extra.tables.append("tabr")


def _add_clip(
    bench: Workbench, candidates: Sequence[Candidate], sample: Sequence[SampledImage], extra: _Extra, *, name: str | None
) -> None:
    """Adds the scores that the runs hold by one CLIP, that of this name if there is one, or computes those of the sample."""
    source = resolve_clip(name) if name else None
    scorings = [one.files.scores.record.get("settings", {}) if one.files.scores else {} for one in candidates]
    stored = [(scoring.get("clip"), scoring.get("scoring_version")) for scoring in scorings]
    clip, _ = stored[0]
    if clip and all(one == stored[0] for one in stored) and (source is None or source.fingerprint == clip["fingerprint"]):
        keep_stored_clip(bench, candidates)
    elif source is not None:
        extra.notes += keep_clip(bench, candidates, sample, source)
    else:
        if any(one for one, _ in stored):
            extra.notes.append("CLIP scores are left out, since not all runs were scored, or by different CLIPs: name a CLIP.")
        return
    extra.tables.append("clip")


def _write_page(bench: Workbench, found: Comparison, extra: _Extra, *, tagger: TaggerConfig, out: str, pictures: int) -> None:
    candidates = found.candidates
    most = f"FROM measured ORDER BY disagreement DESC NULLS LAST, image LIMIT {pictures // 2}"
    worst = f"SELECT p.* FROM paired p JOIN ({most}) USING (image)"
    any_ones = f"SELECT * FROM paired ORDER BY image LIMIT {pictures - pictures // 2}"
    disagreeing, random = (_shown(bench, fetch_images(bench, candidates, chosen), extra.drawn) for chosen in (worst, any_ones))
    text = comparison_page(found, disagreeing=disagreeing, random=random, tagger=tagger)
    try:
        with new_file(Path(out)) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): give another path for the page", setting="out") from None


def _shown(bench: Workbench, images: Sequence[SampledImage], drawn: Mapping[str, Sequence[Path]]) -> list[ShownImage]:
    """The sampled rows, greatest disagreement first."""
    if not images:
        return []
    listed = ", ".join(f"'{one.image}'" for one in images)  # hashes in hex
    rows = {row["image"]: row for row in bench.fetch(f"SELECT * FROM measured WHERE image IN ({listed})").to_pylist()}
    shown = [
        ShownImage(
            sampled=one,
            measured=rows[one.image],
            drawn=[drawn[caption.strip()][0] for caption in one.captions if caption.strip() in drawn],
        )
        for one in images
    ]
    return sorted(shown, key=lambda one: -(one.measured["disagreement"] or 0))
