"""The three stages of the paper, each a function that returns its whole configuration, and what departs from the paper.

    stage       px     images of the paper  steps  batch     lr     V100 GPU-days
    pixel       256    1M ImageNet          300K   128 x 8   2e-5    88
    alignment   256    10M SAM              150K   178 x 64  2e-5   672
    aesthetic   256    14M HQ                90K   178 x 64  2e-5   416
    aesthetic   512    14M HQ               100K    40 x 64  2e-5   320
    aesthetic   1024   14M HQ                16K    12 x 32  2e-5   160

Source: PixArt-alpha (arXiv 2310.00426 v3), Table 4; AdamW's settings, warm-up, clipping, EMA and caption dropout from the
authors' code, as noted at each field of trainer/config.py.
Deviation: bf16 autocast in place of fp16 with float32 attention; no weight decay of norms, biases, embeddings and tables; the
learning rate is the table's, without the square-root scaling by batch size of the public configurations; no horizontal flips.
"""

from collections.abc import Callable, Mapping

from trainer.config import EmaConfig, Rung, TrainConfig


def pixel() -> TrainConfig:
    """Pixel dependency: a class-conditional DiT-XL/2 learns what images look like.

    Deviation: the paper downloads DiT's ImageNet checkpoint or trains one; with `--init_from` an imported one is trained on.
    """
    return TrainConfig(
        stage="pixel",
        conditioning="class",
        ladder=(Rung(resolution=256, images=300_000 * 128 * 8, batch_size=128 * 8),),
        init_from="scratch",
        ema=EmaConfig(half_life_images=7_100_000),  # 0.9999 in a step of 1024
    )


def alignment() -> TrainConfig:
    """Text-image alignment: starts from the class-conditional DiT by re-parameterisation, reads dense captions."""
    return TrainConfig(
        stage="alignment",
        follows="pixel",
        ladder=(Rung(resolution=256, images=150_000 * 178 * 64, batch_size=178 * 64),),
    )


def aesthetic() -> TrainConfig:
    """High aesthetics: the aligned network on beautiful images, at rising resolutions, in aspect buckets.

    Deviation: positions are interpolated at each rung, as the paper says; the published 512 px weights have scale 1, which is
    `position_scale: 1` of that rung. Moments of the optimiser are kept from rung to rung, EMA and warm-up begin again.
    """
    return TrainConfig(
        stage="aesthetic",
        follows="alignment",
        ladder=(
            Rung(resolution=256, images=90_000 * 178 * 64, batch_size=178 * 64),
            Rung(resolution=512, images=100_000 * 40 * 64, batch_size=40 * 64),
            Rung(resolution=1024, images=16_000 * 12 * 32, batch_size=12 * 32),
        ),
    )


STAGES: Mapping[str, Callable[[], TrainConfig]] = {"pixel": pixel, "alignment": alignment, "aesthetic": aesthetic}
"""In the order of training."""
