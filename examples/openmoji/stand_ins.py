"""Small models with random weights, of the classes of the big benchmarks' evaluators, to try the commands without real models.

    python -m examples.openmoji.stand_ins --out stand_ins

writes blip/, owlv2/, clip/ and inception.safetensors, the same each time, which `trainer.evaluate` takes in place of the real
ones.
"""

import json
import string
import tempfile
from dataclasses import dataclass
from pathlib import Path

from foundry.command_line import run_command

_WIDTH = 32
_SPREAD = 0.2
"""Spread of the weights: large, so that images and questions differ in their scores."""
_LAYERS = {
    "hidden_size": _WIDTH,
    "intermediate_size": 2 * _WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": _SPREAD,
}
_CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": _WIDTH,
        "vision_cfg": {"image_size": 64, "layers": 1, "width": _WIDTH, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": _WIDTH, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"},
}


@dataclass(frozen=True, kw_only=True)
class StandInsConfig:
    """Settings of `python -m examples.openmoji.stand_ins`."""

    out: str = "stand_ins"
    """Folder that the models are written to."""


def main(config: StandInsConfig) -> int:
    """Writes the models; returns 0."""
    out = Path(config.out)
    for write in (write_blip, write_owlv2, write_clip, write_inception):
        print(f"wrote {write(out)}")
    return 0


def write_blip(out: Path) -> Path:
    """BLIP for visual question answering that reads letters. Returns its folder, out/blip."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering, BlipImageProcessor, BlipProcessor

    letters = string.ascii_lowercase + string.digits
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", *letters, *(f"##{one}" for one in letters), *"?,.'-"]
    torch.manual_seed(0)
    model = BlipForQuestionAnswering(
        BlipConfig(
            text_config={
                **_LAYERS,
                "vocab_size": len(words) + 2,
                "encoder_hidden_size": _WIDTH,
                "max_position_embeddings": 64,
                "bos_token_id": len(words),  # [DEC]; the last one is [ENC]
                "pad_token_id": 0,
                "sep_token_id": 3,
            },
            vision_config={**_LAYERS, "image_size": 64, "patch_size": 16},
        )
    )
    images = BlipImageProcessor(size={"height": 64, "width": 64})
    processor = BlipProcessor(images, BertTokenizer(vocab={word: number for number, word in enumerate(words)}))
    model.save_pretrained(out / "blip")
    processor.save_pretrained(out / "blip")
    return out / "blip"


def write_owlv2(out: Path) -> Path:
    """OWLv2 that reads letters and proposes 16 boxes. Returns its folder, out/owlv2."""
    import torch
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    letters = string.ascii_lowercase + string.digits + "-'"
    words = [*letters, *(f"{one}</w>" for one in letters), "<|startoftext|>", "<|endoftext|>"]
    torch.manual_seed(0)
    model = Owlv2ForObjectDetection(
        Owlv2Config(
            text_config={
                **_LAYERS,
                "vocab_size": len(words),
                "max_position_embeddings": 64,
                "bos_token_id": len(words) - 2,
                "eos_token_id": len(words) - 1,
            },
            vision_config={**_LAYERS, "image_size": 64, "patch_size": 16},
            projection_dim=_WIDTH,
        )
    )
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=64)
    processor = Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer)
    model.save_pretrained(out / "owlv2")
    processor.save_pretrained(out / "owlv2")
    return out / "owlv2"


def write_clip(out: Path) -> Path:
    """A CLIP of open_clip. Returns its folder, out/clip."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = out / "clip"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(_CLIP_CONFIG), encoding="utf-8")
    torch.manual_seed(0)
    weights = open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "open_clip_model.safetensors")
    return folder


def write_inception(out: Path) -> Path:
    """The Inception network that FID is taken by, at its full size. Returns its file, out/inception.safetensors."""
    import torch
    from safetensors.torch import save_file
    from torch_fidelity import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):  # type: ignore[misc]  # torch-fidelity's is untyped
        def load_state_dict(self, state_dict: object) -> None:
            """Keeps the random weights: the constructor would have others."""

    file = out / "inception.safetensors"
    with tempfile.NamedTemporaryFile(suffix=".pth") as nothing:
        torch.save({}, nothing.name)
        torch.manual_seed(0)
        network = Untrained("untrained", ["64"], feature_extractor_weights_path=nothing.name)
    save_file(network.state_dict(), file)
    return file


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            StandInsConfig,
            main,
            prog="python -m examples.openmoji.stand_ins",
            example="python -m examples.openmoji.stand_ins --out stand_ins",
        )
    )
