"""Matrices of a network's blocks, for optimisers that treat a matrix as a whole; a fused projection is several of them."""

from collections.abc import Mapping

from torch import nn

_FUSED = {"attn.qkv": 3, "cross_attn.kv_linear": 2}
"""Number of matrices that are one weight, along its rows."""
_PARTS = (
    *("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"),
    *("mlp.fc1", "mlp.fc2", "mlp.gate", "mlp.value", "mlp.proj"),
)


def block_matrices(network: nn.Module) -> Mapping[str, int]:
    """Names of the attention and MLP weights of all blocks, the text adapter's too, each with its number of matrices.

    Modulation is not among them: it is an embedding of the condition, in each block of a class-conditional network.
    """
    found = {}
    for name, _ in network.named_parameters():
        folder, _, part = name.removesuffix(".weight").partition(".")
        part = part.partition(".")[2]  # after the number of the block
        if folder in ("blocks", "text_adapter") and name.endswith(".weight") and part in _PARTS:
            found[name] = _FUSED.get(part, 1)
    return found
