"""The formula counts what torch counts, and the utilisation that a log shows can be trusted."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.control.control import add_copies, control_sizes
from model.dit import Captions, DiT
from model.dit_config import PRESETS, DiTConfig, KVCompression
from model.flops import LoraSizes, dit_flops, total, training_flops
from model.lora.injection import inject, lora_sizes
from model.lora.settings import Injection
from trainer.monitoring.gpus import GPUS, gpu_of_device

TEXT = DiTConfig(sample_size=16, width=48, depth=3, num_heads=4, caption_width=32, max_caption_tokens=20)
CLASS = dataclasses.replace(TEXT, conditioning="class", num_classes=5)
SIGMA = dataclasses.replace(TEXT, micro_conditioning=True, qk_norm=True, kv_compression=KVCompression(layers=(1, 2)))
ADAPTED = dataclasses.replace(TEXT, text_adapter_blocks=2)
BATCH, TOKENS = 2, 12


def _counted(
    config: DiTConfig, grid: tuple[int, int], *, backward: bool, lora: Injection | None = None, copies: int = 0
) -> int:
    """Operations of a batch by torch's counter; plain attention, since it does not know the fused kernel of CPUs."""
    dit = DiT(config).initialise(torch.Generator().manual_seed(0))
    if lora is not None:
        inject(dit, lora, seed=0)
    if copies:
        add_copies(dit, copies)
    sides = [patches * config.patch_size for patches in grid]
    text, micro = config.conditioning == "text", config.micro_conditioning
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = dit(
            torch.randn(BATCH, config.in_channels, *sides),
            torch.rand(BATCH) * 1000,
            captions=Captions(torch.randn(BATCH * TOKENS, 32), torch.tensor([TOKENS] * BATCH)) if text else None,
            class_labels=None if text else torch.zeros(BATCH, dtype=torch.int64),
            sizes=torch.rand(BATCH, 2) if micro else None,
            aspect_ratios=torch.rand(BATCH, 1) if micro else None,
            control=torch.randn(BATCH, config.in_channels, *sides) if copies else None,
        )
        if backward:
            output.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("config", [TEXT, CLASS, SIGMA, ADAPTED], ids=["text", "class", "sigma", "adapter"])
@pytest.mark.parametrize("grid", [(8, 8), (4, 12)])
def test_the_forward_formula_counts_what_torch_counts(config: DiTConfig, grid: tuple[int, int]) -> None:
    computed = total(dit_flops(config, grid=grid, caption_tokens=TOKENS)).forward
    assert BATCH * computed == _counted(config, grid, backward=False)


@pytest.mark.parametrize("config", [TEXT, CLASS, ADAPTED, dataclasses.replace(SIGMA, kv_compression=KVCompression())])
def test_the_training_formula_counts_what_torch_counts(config: DiTConfig) -> None:
    """Without compression: torch counts the backward pass of a depthwise convolution as if it were a dense one."""
    assert BATCH * training_flops(config, grid=(8, 6), caption_tokens=TOKENS) == _counted(config, (8, 6), backward=True)


@pytest.mark.parametrize("config", [TEXT, CLASS, ADAPTED, dataclasses.replace(SIGMA, kv_compression=KVCompression())])
@pytest.mark.parametrize("targets", [(), ("attn.qkv", "mlp.fc2")])
def test_a_lora_makes_no_gradients_of_the_weights(config: DiTConfig, targets: tuple[str, ...]) -> None:
    """Within what the first layer that is trained spares: the gradient of its input, which the formula counts."""
    config, grid = dataclasses.replace(config, depth=12), (8, 6)
    injection = Injection(rank=8, alpha=8.0, targets=targets)
    sizes = lora_sizes(config, injection)
    computed = BATCH * training_flops(config, grid=grid, caption_tokens=TOKENS, adapted=sizes)
    assert computed == pytest.approx(_counted(config, grid, backward=True, lora=injection), rel=0.03)
    assert training_flops(config, grid=grid, caption_tokens=TOKENS, adapted=LoraSizes((), 8)) < 0.75 * training_flops(
        config, grid=grid, caption_tokens=TOKENS
    )


@pytest.mark.parametrize("config", [TEXT, ADAPTED, dataclasses.replace(SIGMA, kv_compression=KVCompression())])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_control_makes_gradients_of_its_copies_and_what_follows_them(config: DiTConfig, copies: int) -> None:
    computed = training_flops(config, grid=(8, 6), caption_tokens=TOKENS, adapted=control_sizes(config, copies))
    assert BATCH * computed == _counted(config, (8, 6), backward=True, copies=copies)


def test_the_class_conditional_xl_takes_what_its_authors_say() -> None:
    """118.64 GFLOPs, a multiplication and addition being one: DiT (arXiv 2212.09748), table 1."""
    flops = total(dit_flops(dataclasses.replace(PRESETS["XL/2"], conditioning="class"), grid=(16, 16))).forward
    assert flops / 2 == pytest.approx(118.64e9, rel=1e-3)


def test_devices_are_known_by_the_names_that_drivers_give_them() -> None:
    names = {
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA A100-SXM4-40GB": "a100-40gb",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "Tesla V100-SXM2-32GB": "v100",
        "NVIDIA GeForce RTX 4090": "rtx4090",
        "NVIDIA GeForce RTX 3090": "rtx3090",
        "NVIDIA A10": "a10",
        "NVIDIA L4": "l4",
        "NVIDIA L40S": "l40s",
    }
    assert {name: gpu_of_device(name) for name in names} == {name: GPUS[key] for name, key in names.items()}
    for other in ("NVIDIA GeForce GTX 1080", "NVIDIA A10G", "NVIDIA L40"):  # the latter two are not the A10 and the L4
        assert gpu_of_device(other) is None
