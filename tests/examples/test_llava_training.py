"""The training of llava-mini: what it teaches is what the model will be asked, and a stop costs nothing."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from transformers import AutoTokenizer

from examples.openmoji.backgrounds import COLORS, PATTERNS
from examples.openmoji.composition import PLACES, draw_scene
from examples.openmoji.kinds import KIND_NAMES
from examples.openmoji.llava_mini import build_model
from examples.openmoji.llava_training import CaptionTrainer, _compiles, patch_figures_of, run_phase
from examples.openmoji.llava_warmup import PatchLabeller, normalized
from examples.openmoji.train_llava import LlavaPhaseConfig, TrainLlavaConfig
from examples.openmoji.training_batches import batches, patch_labels

TOKENIZER = Path(__file__).resolve().parents[2] / "captioner/pretrained/llava-mini"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/peers", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_training_computes_what_the_model_computes() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    model = build_model(tokenizer).eval()
    batch = next(batches(seed=0, batch_size=4, first_batch=0, tokenizer_folder=str(TOKENIZER)))
    pixels = normalized(batch.pixels)
    with torch.no_grad():
        ours = CaptionTrainer(model, tokenizer)(pixels, batch.input_ids, batch.image_start, batch.answer_start)
        theirs = model(input_ids=batch.input_ids, pixel_values=pixels).logits[:, batch.answer_start - 1 : -1]
    assert ours.shape == (4, batch.input_ids.shape[1] - batch.answer_start, len(tokenizer))  # type: ignore[union-attr]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_two_processes_share_the_batch_of_one() -> None:
    whole = next(batches(seed=0, batch_size=4, first_batch=3, tokenizer_folder=str(TOKENIZER)))
    parts = [next(batches(seed=0, batch_size=4, first_batch=3, tokenizer_folder=str(TOKENIZER), share=(r, 2))) for r in (0, 1)]
    for rank, part in enumerate(parts):
        assert part.input_ids is not None and whole.input_ids is not None
        assert torch.equal(part.pixels, whole.pixels[rank::2]) and torch.equal(part.input_ids, whole.input_ids[rank::2])


def test_patch_labels_say_what_a_patch_shows() -> None:
    for index in range(50):
        scene = draw_scene(seed=2, index=index)
        labels = patch_labels(scene).reshape(8, 8, 5)
        assert (labels[..., 3] == COLORS.index(scene.color)).all() and (labels[..., 4] == PATTERNS.index(scene.pattern)).all()
        for thing in scene.objects:
            of_kind = labels[labels[..., 0] == 1 + KIND_NAMES.index(thing.kind)]
            answers = {("small", "large")[size] + " " + list(PLACES)[place] for _, size, place, *_ in of_kind.tolist()}
            assert f"{thing.size} {thing.place}" in answers
        named = {int(kind) for kind in labels[..., 0].flat if kind > 0}
        assert named == {1 + KIND_NAMES.index(thing.kind) for thing in scene.objects}


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    phase = LlavaPhaseConfig(samples=64, batch_size=16, lr=1e-3, vision_lr=1e-3, warmup_samples=16, checkpoint_samples=32)

    def trained(folder: str, keep: Path | None) -> dict[str, torch.Tensor]:
        config = TrainLlavaConfig(run_dir=str(tmp_path / folder), compile="false", num_processes=1)
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.manual_seed(0)
        labeller = PatchLabeller(build_model(AutoTokenizer.from_pretrained(TOKENIZER)).model.vision_tower)
        state = tmp_path / folder / "warmup.pt"

        def save() -> None:
            if keep and not keep.exists():  # the checkpoint halfway
                keep.parent.mkdir()
                shutil.copy(state, keep)

        run_phase("warmup", labeller, patch_figures_of, config=config, phase=phase, save=save)
        return labeller.state_dict()

    unbroken = trained("unbroken", tmp_path / "resumed" / "warmup.pt")
    assert torch.load(tmp_path / "resumed" / "warmup.pt", weights_only=True)["samples_seen"] == 32
    resumed = trained("resumed", None)
    assert all(torch.equal(resumed[name], weight) for name, weight in unbroken.items())


def test_a_frozen_vision_tower_stays_as_it_is(tmp_path: Path) -> None:
    from examples.openmoji.llava_training import caption_figures

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    captioner = CaptionTrainer(build_model(tokenizer), tokenizer)
    before = {name: weight.clone() for name, weight in captioner.state_dict().items()}
    config = TrainLlavaConfig(run_dir=str(tmp_path), compile="false", num_processes=1)
    phase = LlavaPhaseConfig(samples=8, batch_size=4, lr=1e-3, vision_lr=0.0, warmup_samples=0)
    run_phase("captions", captioner, caption_figures, config=config, phase=phase, tokenizer_folder=str(TOKENIZER))
    changed = {name for name, weight in captioner.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed and not any(name.startswith("vision_tower") for name in changed)
    assert any(name.startswith("projector") for name in changed)


def test_without_a_compiler_auto_falls_back_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("examples.openmoji.llava_training.shutil.which", lambda _: None)
    assert not _compiles("auto", rank=0)
    assert capsys.readouterr().out.count("\n") == 1
    assert _compiles("true", rank=0)
    monkeypatch.setattr("examples.openmoji.llava_training.shutil.which", lambda name: f"/usr/bin/{name}")
    assert _compiles("auto", rank=0)
    assert not _compiles("false", rank=0)
