"""Measures how well vae-mini reconstructs unseen scenes; the last line is JSON.

    python -m examples.openmoji.evaluate_vae --count 1000

PSNR is taken per scene over all pixels and channels in 0..1, in float32, from the mean of the latents, and then averaged; the
worst decile is the mean of the worst tenth of the scenes. A diffusion model's latents are never exact, so the same is
measured with noise on the latents.
"""

from dataclasses import dataclass

from foundry.command_line import run_command


@dataclass(frozen=True)
class EvaluateVAEConfig:
    """Settings of the measurement."""

    model: str = "model/pretrained/vae-mini"
    """Folder of the autoencoder."""
    count: int = 1000
    """Number of unseen scenes."""
    noise: float = 0.1
    """Deviation of the noise on latents of unit variance, for the second figure."""

    def __post_init__(self) -> None:
        if self.count < 10:
            raise ValueError(f"count is {self.count}: a worst decile needs 10 scenes or more")


def main(config: EvaluateVAEConfig) -> int:
    """Prints the figures."""
    import json
    from pathlib import Path

    import numpy as np

    from examples.openmoji.reconstruction import psnr

    ratios = np.sort(psnr(Path(config.model), count=config.count))
    noisy = psnr(Path(config.model), count=config.count, latent_noise=config.noise)
    figures = {
        "psnr_db": ratios.mean(),
        "psnr_db_worst_decile": ratios[: config.count // 10].mean(),
        "psnr_db_with_noise": noisy.mean(),
    }
    rounded = {name: round(float(value), 2) for name, value in figures.items()}
    print(json.dumps(rounded | {"noise": config.noise, "num_scenes": config.count}))
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            EvaluateVAEConfig,
            main,
            prog="python -m examples.openmoji.evaluate_vae",
            example="python -m examples.openmoji.evaluate_vae --count 1000",
        )
    )
