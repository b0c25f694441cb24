"""The trainings of vae-mini and t5-mini: labels are true, processes share a batch, and a stop costs nothing."""

import random
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed
from transformers import AutoTokenizer

from examples.openmoji.composition import draw_scene
from examples.openmoji.labelled_texts import FORMS, LABELS, labelled_text
from examples.openmoji.muon import orthogonal
from examples.openmoji.t5_training import TextReader, build_t5, inner_matrices, text_batch, text_batches, text_figures
from examples.openmoji.train_llava import TrainLlavaConfig
from examples.openmoji.train_t5 import TrainT5Config
from examples.openmoji.train_vae import TrainVAEConfig
from examples.openmoji.training_config import ScheduleConfig
from examples.openmoji.training_loop import fit, muon_and_adamw
from examples.openmoji.vae_training import build_vae, figures_of, inner_filters, scene_batches

T5 = Path(__file__).resolve().parents[2] / "model/pretrained/t5-mini"


@pytest.mark.parametrize("config", [TrainT5Config(), TrainVAEConfig(), TrainLlavaConfig()])
def test_a_training_never_writes_over_what_is_shipped_unasked(
    config: TrainT5Config | TrainVAEConfig | TrainLlavaConfig,
) -> None:
    assert "pretrained" not in config.out and config.out.startswith(f"{config.run_dir}/")


def _schedule(**changes: int) -> ScheduleConfig:
    settings = {"samples": 16, "batch_size": 4, "warmup_samples": 4, "checkpoint_samples": 8, "num_processes": 1}
    return ScheduleConfig(**{**settings, **changes}, lr=1e-3, muon_lr=1e-3)


def test_the_learning_rate_rises_stays_and_falls_to_nothing() -> None:
    schedule = _schedule(samples=100, batch_size=2, warmup_samples=18)
    rates = [schedule.lr_share(seen) for seen in range(0, 100, 2)]
    assert rates[0] == pytest.approx(0.1) and rates[9:30] == pytest.approx([1.0] * 21)
    assert rates[-1] == pytest.approx(0.05) and rates[30:] == sorted(rates[30:], reverse=True)


def test_muon_makes_updates_orthogonal() -> None:
    for shape in ((8, 30), (30, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert values.min() > 0.5 and values.max() < 1.5


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        _schedule(num_processes=3)


@pytest.mark.parametrize("form", FORMS)
def test_labels_say_what_the_text_says(form: str) -> None:
    for index in range(200):
        scene = draw_scene(seed=2, index=index)
        text = labelled_text(scene, form, seed=2)
        things = {(thing.kind, thing.place, thing.size) for thing in scene.objects}
        for start, labels in text.nouns:
            assert text.text[start:].startswith(labels["kind"][:4])
            assert any(
                labels["kind"] == kind and labels.get("place", place) == place and labels.get("size", size) == size
                for kind, place, size in things
            )
        for start, end, labels in text.spans:
            assert labels.keys() <= LABELS.keys() and all(labels[name] in LABELS[name] for name in labels)
            if "color" in labels and form == "dense":
                assert labels["color"] in text.text[start:end]
        assert set(text.kinds) <= {thing.kind for thing in scene.objects} and text.kinds
        assert not text.places or text.places == {thing.place: thing.kind for thing in scene.objects}


def test_tokens_of_a_sentence_are_asked_about_its_object() -> None:
    tokenizer = AutoTokenizer.from_pretrained(T5)
    texts = [labelled_text(draw_scene(seed=2, index=index), "dense", seed=2, lower=False) for index in range(20)]
    batch = text_batch(texts, tokenizer, rng=random.Random(1))
    kinds, places = LABELS["kind"], LABELS["place"]
    for row, text in enumerate(texts):
        if (batch.missing_ids[row] >= 0).any():
            assert (batch.word_answers[row] < 0).all() and all((some[row] < 0).all() for some in batch.text_answers.values())
            continue
        grid = {places[n]: kinds[kind] for n, kind in enumerate(batch.text_answers["grid"][row].tolist()) if kind < len(kinds)}
        assert grid == text.places
        asked = batch.word_answers[row, :, 0] >= 0
        first = int(asked.nonzero()[0])
        assert kinds[int(batch.word_answers[row, first, 0])] == text.spans[0][2]["kind"]


@pytest.mark.parametrize("kind", ["vae", "t5"])
def test_two_processes_share_the_batch_of_one(kind: str) -> None:
    if kind == "vae":
        vae_config = TrainVAEConfig(schedule=_schedule())
        whole, *parts = (next(scene_batches(vae_config, 3, share)) for share in ((0, 1), (0, 2), (1, 2)))
    else:
        t5_config, tokenizer = TrainT5Config(schedule=_schedule()), AutoTokenizer.from_pretrained(T5)
        batches = [next(text_batches(t5_config, tokenizer, 4, share)) for share in ((0, 1), (0, 2), (1, 2))]
        # Of the tokens some may be in gaps: lengths are compared.
        whole, *parts = ((batch.input_ids != 0).sum(dim=1) for batch in batches)
    assert all(torch.equal(part, whole[rank::2]) for rank, part in enumerate(parts))


@pytest.mark.parametrize("kind", ["vae", "t5"])
@pytest.mark.usefixtures("alone")
def test_a_resumed_run_equals_an_unbroken_one(kind: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(T5)

    def trained(folder: str, keep: Path | None) -> dict[str, torch.Tensor]:
        state = tmp_path / folder / f"{kind}.pt"

        def save() -> None:
            if keep and not keep.exists():  # the checkpoint halfway
                keep.parent.mkdir()
                shutil.copy(state, keep)

        torch.manual_seed(0)
        run = partial(fit, kind, schedule=_schedule(), run_dir=tmp_path / folder, save=save)
        if kind == "vae":
            vae = build_vae()
            run(
                vae,
                partial(figures_of, noise=0.2),
                optimizers=muon_and_adamw(vae, inner_filters(vae), _schedule()),
                batches=partial(scene_batches, TrainVAEConfig(schedule=_schedule())),
            )
            return dict(vae.state_dict())
        reader = TextReader(build_t5(tokenizer))
        run(
            reader,
            text_figures,
            optimizers=muon_and_adamw(reader, inner_matrices(reader.encoder), _schedule()),
            batches=partial(text_batches, TrainT5Config(schedule=_schedule()), tokenizer),
        )
        return dict(reader.state_dict())

    unbroken = trained("unbroken", tmp_path / "resumed" / f"{kind}.pt")
    assert torch.load(tmp_path / "resumed" / f"{kind}.pt", weights_only=True)["samples_seen"] == 8
    resumed = trained("resumed", None)
    assert all(torch.equal(resumed[name], weight) for name, weight in unbroken.items())


@pytest.mark.usefixtures("alone")
def test_the_log_variance_of_the_autoencoder_stays_the_same(tmp_path: Path) -> None:
    config = TrainVAEConfig(schedule=_schedule())
    model = build_vae()
    before = model.encode(torch.zeros(1, 3, 64, 64)).latent_dist
    fit(
        "vae",
        model,
        partial(figures_of, noise=0.2),
        optimizers=muon_and_adamw(model, inner_filters(model), config.schedule),
        schedule=config.schedule,
        batches=partial(scene_batches, config),
        run_dir=tmp_path,
        save=lambda: None,
    )
    after = model.encode(torch.zeros(1, 3, 64, 64)).latent_dist
    torch.testing.assert_close(after.logvar, before.logvar)
    assert after.logvar.std() < 1e-4 and not torch.equal(after.mean, before.mean)
