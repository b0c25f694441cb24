"""Diffusion transformer (DiT) with cross-attention to text, class-conditional too, in the order of the paper.

    latents ─► patches + positions ─► blocks (self-attention, cross-attention, MLP) ─► final layer ─► prediction
    timesteps (, sizes) ─► t ─► one MLP for all blocks ─► S;  block i is modulated by S + E(i)        (adaLN-single)
    captions ─► projected once per forward (─► text adapter) ─► keys and values of every block
    control, where there is one ─► copies of the first blocks ─► added to what the blocks after them read

The class-conditional DiT, from which the text-conditional one starts, is the same without captions; each of its blocks has
the MLP of its modulation to itself. Parameters bear the names of the official checkpoints.

Shapes: B samples, C latent channels, H x W latent pixels, h x w patches of p x p, N = h w tokens, D width, d width of a head,
T caption tokens of the whole batch, L tokens of its longest caption, F channels of the text encoder.

Source: PixArt-alpha (arXiv 2310.00426), section 2; DiT (2212.09748); PixArt-Sigma (2403.04692), sections 3.2 and 3.3;
PixArt-delta (2401.05252), section 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.dit_config import PRESETS, DiTConfig, KVCompression
from model.layers.captions import Captions, CaptionTokens, side_by_side
from model.layers.primitives import Linear, RmsNorm, attend
from model.layers.text_adapter import AdapterBlock
from model.layers.token_routing import TokenRoute

__all__ = [
    "PRESETS",
    "CaptionTokens",
    "Captions",
    "DiT",
    "DiTConfig",
    "HiddenStates",
    "KVCompression",
    "Linear",
    "PreparedCaptions",
    "position_table",
]

FREQUENCIES = 256
NORM_EPS = 1e-6


# ------------------------------------------------------------------------------------------------------------- captions


class KeysValues(NamedTuple):
    """Keys and values of cross-attention, of one block; no part of them depends on the timestep."""

    keys: Tensor
    """(B, L, heads, d)"""
    values: Tensor
    """(B, L, heads, d)"""
    bias: Tensor | None
    """(B, 1, 1, L)"""


@dataclass(frozen=True, eq=False)
class PreparedCaptions:
    """Keys and values of all blocks, for sampling: computed once for all steps. See `DiT.prepare`."""

    blocks: tuple[KeysValues, ...]
    control_blocks: tuple[KeysValues, ...] = ()


# ------------------------------------------------------------------------------------------------- positions and times


def position_table(grid: tuple[int, int], *, width: int, base: int, scale: float) -> Tensor:
    """2-D sine-cosine positions (h w, D) float32: of any grid, over the same range as the base grid's (interpolated).

    The first half of the channels tells the column, the second the row. Computed in float64, as the authors do.
    """
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # (D/4,)
    rows, columns = (torch.arange(side, dtype=torch.float64) / (side / base) / scale for side in grid)
    row, column = (torch.outer(places, omega) for places in (rows, columns))  # (h, D/4), (w, D/4)
    halves = [torch.cat([angles.sin(), angles.cos()], dim=1) for angles in (column, row)]  # (w, D/2), (h, D/2)
    table = torch.cat([halves[0].expand(grid[0], -1, -1), halves[1].unsqueeze(1).expand(-1, grid[1], -1)], dim=2)  # (h, w, D)
    return table.flatten(0, 1).float()  # (h w, D)


def _frequencies(values: Tensor) -> Tensor:
    """Cosines and sines (M, 256) of numbers (M,), always float32: bf16 rounds integers above 256."""
    half = FREQUENCIES // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[:, None] * exponents.exp()  # (M, 128)
    return torch.cat([angles.cos(), angles.sin()], dim=1)  # (M, 256)


# ---------------------------------------------------------------------------------------------------------- embedders


class PatchEmbedder(nn.Module):
    """One linear map of each patch."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        size = config.patch_size
        self.proj = nn.utils.skip_init(nn.Conv2d, config.in_channels, config.width, kernel_size=size, stride=size)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, D). The convolution as the matrix product that it is."""
        size = self.patch_size
        patches = latents.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, C, h, p, w, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C p p)
        return F.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)  # (B, N, D)


class FrequencyEmbedder(nn.Module):
    """A two-layer MLP on the sines and cosines of a number: a timestep, a side, an aspect ratio."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(FREQUENCIES, width), nn.SiLU(), Linear(width, width))

    def forward(self, values: Tensor) -> Tensor:
        """(M,) to (M, width)."""
        return self.mlp(_frequencies(values).to(next(self.mlp.parameters()).dtype))  # type: ignore[no-any-return]


class LabelEmbedder(nn.Module):
    """A learned vector for each class, and one more for none."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.embedding_table = nn.utils.skip_init(nn.Embedding, config.num_classes + config.null_class, config.width)
        nn.init.zeros_(self.embedding_table.weight)

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) to (B, D)."""
        return self.embedding_table(labels)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with GELU (its tanh approximation) between."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.fc1 = Linear(width_in, hidden)
        self.fc2 = Linear(hidden, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width_in) to (..., width_out)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


_PAPERS_INPUTS = {"y_embedder.y_proj.fc1": 4096, "y_embedder.y_proj.fc2": 1152}
"""Inputs of the layers that embed captions at the paper's width and with its T5: what their initial scale is meant for."""


class CaptionEmbedder(nn.Module):
    """Projects the text encoder's tokens to the width."""

    y_embedding: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.y_proj = Mlp(config.caption_width, config.width, config.width)
        # The authors' untrained null caption: carried from their checkpoints to their checkpoints, never read here.
        self.register_buffer("y_embedding", torch.zeros(config.max_caption_tokens, config.caption_width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, F) to (T, D)."""
        return self.y_proj(tokens.to(self.y_proj.fc1.weight.dtype))  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------------------- blocks


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm (B, N, D) without its own weights, then scale and shift (B, 1, D); all in the modulation's dtype.

    The linear layer that follows wants that dtype: cast once, here, and let autocast not cast it back for the norm.
    """
    with torch.autocast(x.device.type, enabled=False):
        return torch.addcmul(shift, F.layer_norm(x.to(shift.dtype), x.shape[-1:], eps=NORM_EPS), 1 + scale)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype of matrix products: that of autocast where it is on, else that of the tokens."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class SelfAttention(nn.Module):
    """Every patch looks at every patch, or in Sigma's late blocks at every square of patches."""

    def __init__(self, config: DiTConfig, *, compressed: bool) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.proj = Linear(config.width, config.width)
        self.normed = config.qk_norm
        if self.normed:
            self.q_norm = nn.LayerNorm(config.width)
            self.k_norm = nn.LayerNorm(config.width)
        self.factor = config.kv_compression.factor if compressed else 1
        if compressed:
            self.sr = nn.utils.skip_init(
                nn.Conv2d, config.width, config.width, kernel_size=self.factor, stride=self.factor, groups=config.width
            )
            self.norm = nn.LayerNorm(config.width)
            self.average_squares()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        queries, keys, values = self.qkv(x).unflatten(2, (3, -1)).unbind(2)  # 3 x (B, N, D)
        if self.normed:  # before the compression, as in Sigma's code
            queries, keys = self.q_norm(queries).to(values.dtype), self.k_norm(keys).to(values.dtype)
        if self.factor > 1:
            keys, values = self._compress(keys, grid), self._compress(values, grid)  # (B, N / factor^2, D)
        heads = [part.unflatten(2, (self.heads, -1)) for part in (queries, keys, values)]  # (B, N, heads, d)
        return self.proj(attend(heads[0], heads[1], heads[2], None))  # type: ignore[no-any-return]

    def average_squares(self) -> None:
        """Sets the compression to the mean of each square: how it starts."""
        nn.init.constant_(self.sr.weight, self.factor**-2)
        nn.init.zeros_(self.sr.bias)

    def _compress(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """A depthwise convolution over squares: (B, N, D) to (B, N / factor^2, D)."""
        image = x.transpose(1, 2).unflatten(2, grid)  # (B, D, h, w)
        return self.norm(self.sr(image).flatten(2).transpose(1, 2)).to(x.dtype)  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Every patch looks at every token of its caption."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q_linear = Linear(config.width, config.width)
        self.kv_linear = Linear(config.width, 2 * config.width)
        self.proj = Linear(config.width, config.width)

    def forward(self, x: Tensor, captions: CaptionTokens | KeysValues) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        keys, values, bias = captions if isinstance(captions, KeysValues) else self.keys_values(captions)
        queries = self.q_linear(x).unflatten(2, (self.heads, -1))  # (B, N, heads, d)
        return self.proj(attend(queries, keys, values, bias))  # type: ignore[no-any-return]

    def keys_values(self, captions: CaptionTokens) -> KeysValues:
        """Projects the tokens and nothing else; shorter captions are filled up behind the projection."""
        both = self.kv_linear(captions.tokens)  # (T, 2 D)
        both = side_by_side(both, captions)  # (B L, 2 D)
        keys, values = both.view(captions.num, captions.longest, 2, self.heads, -1).unbind(2)  # 2 x (B, L, heads, d)
        return KeysValues(keys, values, captions.bias)


class TextBlock(nn.Module):
    """Self-attention, cross-attention, MLP; modulated by S + E(i), E(i) being the block's learned table."""

    def __init__(self, config: DiTConfig, *, index: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(6, config.width))
        self.attn = SelfAttention(config, compressed=index in config.kv_compression.layers)
        self.cross_attn = CrossAttention(config)
        self.mlp = Mlp(config.width, config.mlp_width, config.width)

    def forward(self, x: Tensor, shared: Tensor, captions: CaptionTokens | KeysValues, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, D), shared modulation S (B, 6, D) and captions to (B, N, D).

        The table is added here and not for all blocks at once, so that FSDP can keep it sharded with its block.
        """
        modulation = (self.scale_shift_table + shared).to(_compute_dtype(x)).unsqueeze(2)  # (B, 6, 1, D)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation.unbind(1)  # 6 x (B, 1, D)
        x = x + gate * self.attn(_modulate(x, shift, scale), grid)  # (B, N, D)
        x = x + self.cross_attn(x, captions)
        return x + gate_mlp * self.mlp(_modulate(x, shift_mlp, scale_mlp))  # type: ignore[no-any-return]


class ClassBlock(nn.Module):
    """Self-attention and MLP; modulated by an MLP of the block's own (adaLN-Zero)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attn = SelfAttention(config, compressed=False)
        self.mlp = Mlp(config.width, config.mlp_width, config.width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.width, 6 * config.width))

    def forward(self, x: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, D) and time + label (B, D) to (B, N, D)."""
        with torch.autocast(x.device.type, enabled=False):
            modulation = self.adaLN_modulation(condition).unflatten(1, (6, 1, -1))  # (B, 6, 1, D)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation.to(_compute_dtype(x)).unbind(1)  # 6 x (B, 1, D)
        x = x + gate * self.attn(_modulate(x, shift, scale), grid)  # (B, N, D)
        return x + gate_mlp * self.mlp(_modulate(x, shift_mlp, scale_mlp))  # type: ignore[no-any-return]


class ControlBlock(nn.Module):
    """A trained copy of a block of a frozen network, which reads a control image too (ControlNet-Transformer).

    The linear layers around it start at zero: at first the network computes what it computes without.
    """

    def __init__(self, config: DiTConfig, *, index: int) -> None:
        super().__init__()
        self.is_first = index == 0
        if self.is_first:
            self.before = Linear(config.width, config.width)
        self.block = TextBlock(config, index=index)
        self.after = Linear(config.width, config.width)

    def forward(
        self, both: tuple[Tensor, Tensor], shared: Tensor, captions: CaptionTokens | KeysValues, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Tokens behind the block that it copies, which the first copy alone reads, and the control's, 2 x (B, N, D): to the
        control's behind this copy, and what the next block's input gains, 2 x (B, N, D).
        """
        x, states = both
        if self.is_first:
            states = x + self.before(states)  # (B, N, D)
        states = self.block(states, shared, captions, grid)  # (B, N, D)
        return states, self.after(states)


class FinalLayer(nn.Module):
    """Layer norm, modulation, and a linear map of each token to its patch of the output."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear = Linear(config.width, config.patch_size**2 * config.out_channels)
        if config.conditioning == "text":
            self.scale_shift_table = nn.Parameter(torch.zeros(2, config.width))
        else:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.width, 2 * config.width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B, N, D) and condition (B, D) to patches (B, N, p p C_out)."""
        if hasattr(self, "scale_shift_table"):
            modulation = self.scale_shift_table + condition.unsqueeze(1)  # (B, 2, D)
        else:
            with torch.autocast(x.device.type, enabled=False):
                modulation = self.adaLN_modulation(condition).unflatten(1, (2, -1))  # (B, 2, D)
        shift, scale = modulation.to(_compute_dtype(x)).unsqueeze(2).unbind(1)  # 2 x (B, 1, D)
        return self.linear(_modulate(x, shift, scale))  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------------- the network


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """Outputs of chosen blocks, which a training reads besides the prediction. One forward pass fills it.

    No container of Python's own: FSDP copies those when it moves inputs, and what is put into a copy is lost.
    """

    blocks: frozenset[int]
    """Numbers of the blocks to keep, from 1."""
    outputs: dict[int, Tensor] = field(default_factory=dict)
    """Tokens (B, N, D) behind each of these blocks, attached to the graph; of routed blocks those that they saw, (B, K, D)."""


class DiT(nn.Module):
    """The whole network. All weights are zero until `initialise` or `load_state_dict`: constructors draw no numbers."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        """Keep only the blocks' inputs for the backward pass and compute the rest again: less memory, a third more time."""
        text = config.conditioning == "text"
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder = FrequencyEmbedder(config.width)
        self.y_embedder = CaptionEmbedder(config) if text else LabelEmbedder(config)
        if text:
            self.t_block = nn.Sequential(nn.SiLU(), Linear(config.width, 6 * config.width))
        if config.micro_conditioning:
            self.csize_embedder = FrequencyEmbedder(config.width // 3)
            self.ar_embedder = FrequencyEmbedder(config.width // 3)
        blocks = [TextBlock(config, index=index) if text else ClassBlock(config) for index in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.control_blocks = nn.ModuleList()
        """Copies of the first blocks: see model/control/. Block i + 1 reads what copy i adds; empty: there is no control."""
        self.control_scale = 1.0
        """Factor of what the copies add."""
        self.final_layer = FinalLayer(config)
        self.text_adapter = nn.ModuleList([AdapterBlock(config) for _ in range(config.text_adapter_blocks)])
        self._positions: dict[tuple[tuple[int, int], torch.device, torch.dtype], Tensor] = {}

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        *,
        captions: Captions | PreparedCaptions | None = None,
        class_labels: Tensor | None = None,
        sizes: Tensor | None = None,
        aspect_ratios: Tensor | None = None,
        hidden: HiddenStates | None = None,
        route: TokenRoute | None = None,
        control: Tensor | None = None,
    ) -> Tensor:
        """The prediction (B, C_out, H, W) for noisy latents; with learned_variance its second half is the variance's.

        latents (B, C, H, W), sides multiples of the patch size; timesteps (B,) in 0..1000, whole or not; captions of B (text);
        class_labels (B,) int64, None for no class (class); sizes (B, 2) the original height and width in pixels and
        aspect_ratios (B, 1) height / width (micro_conditioning); hidden is filled with the outputs of the blocks that it names;
        route: tokens that its blocks see alone; control (B, C, H, W): latents of the control image, none: the copies are not
        run. Raises ValueError for what does not fit.
        """
        grid = self._check_latents(latents)
        self._check_conditions(len(latents), timesteps=timesteps, labels=class_labels, sizes=sizes, ratios=aspect_ratios)
        self._check_captions(captions, batch=len(latents))
        self._check_route(route, batch=len(latents))
        self._check_control(control, latents=latents, is_routed=route is not None)
        x = self._embed(latents, grid)  # (B, N, D)
        states = None if control is None else self._embed(control, grid)  # (B, N, D)
        with torch.autocast(x.device.type, enabled=False):  # in the weights' own precision
            condition = self._condition(timesteps, class_labels, sizes, aspect_ratios)  # (B, D)
            shared = self.t_block(condition).unflatten(1, (6, -1)) if captions is not None else condition  # (B, 6, D)
        everything: Tensor | None = None  # (B, N, D) where blocks are routed; else nothing is kept longer than it is needed
        first, last = (route.blocks.before, self.config.depth - route.blocks.after) if route is not None else (0, 0)
        texts = self._texts(captions)
        control_texts = self._control_texts(captions, texts)
        for number, (block, text) in enumerate(zip(self.blocks, texts, strict=True), start=1):
            if states is not None and 1 < number <= len(self.control_blocks) + 1:
                copy, own = self.control_blocks[number - 2], control_texts[number - 2]
                states, added = self._run(copy, (x, states), shared, own, grid)  # (B, N, D) each
                x = x + self.control_scale * added
            if route is not None and number == first + 1:
                everything, x = x, route.take(x)  # (B, K, D)
            inputs = (x, shared, grid) if text is None else (x, shared, text, grid)
            x = self._run(block, *inputs)  # (B, N or K, D)
            if hidden is not None and number in hidden.blocks:
                hidden.outputs[number] = x
            if route is not None and everything is not None and number == last:
                x, everything = route.put_back(everything, x), None  # (B, N, D)
        return self._unpatchify(self.final_layer(x, condition), grid)  # (B, C_out, H, W)

    @torch.no_grad()
    def prepare(self, captions: Captions) -> PreparedCaptions:
        """Everything that a forward computes from captions alone, to be given to the forwards of all sampling steps."""
        self._check_captions(captions, batch=len(captions))
        tokens = self._project(captions)
        blocks = [block for block in self.blocks if isinstance(block, TextBlock)]
        copies = [copy.block for copy in self.control_blocks if isinstance(copy, ControlBlock)]
        return PreparedCaptions(
            blocks=tuple(block.cross_attn.keys_values(tokens) for block in blocks),
            control_blocks=tuple(block.cross_attn.keys_values(tokens) for block in copies),
        )

    def compile_blocks(self, *, dynamic: bool | None = None) -> None:
        """torch.compile for each block in place: one compilation serves all, and names in the state dict stay as they are.

        dynamic: as torch.compile has it; True compiles for all shapes at once, so that none depends on which came first.
        With FSDP2, shard first: docs/network.md.
        """
        for block in (*self.text_adapter, *self.blocks, *self.control_blocks):
            block.compile(dynamic=dynamic)

    def rebase(self, config: DiTConfig) -> None:
        """Takes the positions of another resolution: `config` differs from the network's in sample_size and position_scale."""
        assert replace(config, sample_size=self.config.sample_size, position_scale=self.config.position_scale) == self.config
        self.config = config
        self._positions.clear()

    def initialise(self, generator: torch.Generator) -> "DiT":
        """Draws all weights as the authors do and returns itself. Deterministic for a generator of the parameters' device.

        Cross-attention's projection, the final layer and the adaLN of the class-conditional DiT start at zero: they add nothing
        to the residual stream at first. Deviation: a network narrower than the paper's, or with a narrower text encoder, embeds
        captions at the scale that the paper's has; else it learns to read them late.
        """
        of_adapter = {f"text_adapter.{name}": module for name, module in self.text_adapter.named_modules()}
        for name, module in self.named_modules():
            if name in of_adapter:
                continue
            if isinstance(module, Linear):
                self._draw_linear(name, module, generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, SelfAttention) and module.factor > 1:
                module.average_squares()
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1), generator=generator)
        nn.init.zeros_(self.x_embedder.proj.bias)
        if isinstance(self.y_embedder, LabelEmbedder):
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02, generator=generator)
        else:
            nn.init.zeros_(self.y_embedder.y_embedding)
        for name, parameter in self.named_parameters():
            if name.endswith("scale_shift_table"):
                nn.init.normal_(parameter, std=self.config.width**-0.5, generator=generator)
        for name, module in of_adapter.items():  # last: all other weights are those of a network without it
            if isinstance(module, Linear):
                self._draw_linear(name, module, generator)
            elif isinstance(module, RmsNorm):
                module.reset_parameters()
        return self

    @staticmethod
    def _draw_linear(name: str, module: Linear, generator: torch.Generator) -> None:
        nn.init.zeros_(module.bias)
        if name == "final_layer.linear" or name.endswith(("cross_attn.proj", "adaLN_modulation.1")):
            nn.init.zeros_(module.weight)
        elif name.startswith(("blocks.", "text_adapter.")):
            nn.init.xavier_uniform_(module.weight, generator=generator)
        else:  # the embedders and t_block
            papers_inputs = _PAPERS_INPUTS.get(name, module.in_features)
            nn.init.normal_(module.weight, std=0.02 * (papers_inputs / module.in_features) ** 0.5, generator=generator)

    def _embed(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, D) of latents (B, C, H, W), with their positions."""
        return self.x_embedder(latents) + self._position(grid, latents.device)  # type: ignore[no-any-return]

    def _run(self, block: nn.Module, *inputs: object) -> Any:
        """A block's output, of which the backward pass finds either all or the inputs alone."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _condition(
        self, timesteps: Tensor, class_labels: Tensor | None, sizes: Tensor | None, aspect_ratios: Tensor | None
    ) -> Tensor:
        """Input of all modulation: the time embedding (B, D), plus that of the label or of the sizes."""
        condition = self.t_embedder(timesteps)  # (B, D)
        if isinstance(self.y_embedder, LabelEmbedder):
            if class_labels is None and self.config.null_class:
                class_labels = torch.full_like(timesteps, self.config.num_classes, dtype=torch.int64)
            return condition if class_labels is None else condition + self.y_embedder(class_labels)  # type: ignore[no-any-return]
        if sizes is not None and aspect_ratios is not None:
            size = self.csize_embedder(sizes.flatten()).view(len(sizes), -1)  # (B, 2 D/3)
            condition = condition + torch.cat([size, self.ar_embedder(aspect_ratios.flatten())], dim=1)  # (B, D)
        return condition  # type: ignore[no-any-return]

    def _texts(self, captions: Captions | PreparedCaptions | None) -> Sequence[CaptionTokens | KeysValues | None]:
        """Captions as each block reads them."""
        if isinstance(captions, PreparedCaptions):
            return captions.blocks
        return [None if captions is None else self._project(captions)] * self.config.depth

    def _control_texts(
        self, captions: Captions | PreparedCaptions | None, texts: Sequence[CaptionTokens | KeysValues | None]
    ) -> Sequence[CaptionTokens | KeysValues | None]:
        """Captions as each copy reads them; `texts`: as the blocks do."""
        if isinstance(captions, PreparedCaptions):
            return captions.control_blocks
        return texts[: len(self.control_blocks)]  # all of them are the same tokens

    def _project(self, captions: Captions) -> CaptionTokens:
        """The captions' tokens at the network's width, and where they go when attention wants them side by side."""
        projected = self._place(self.y_embedder(captions.tokens), captions.lengths)  # (T, D)
        for block in self.text_adapter:
            projected = projected._replace(tokens=self._run(block, projected.tokens, projected))  # (T, D)
        return projected

    @staticmethod
    def _place(tokens: Tensor, lengths: Tensor) -> CaptionTokens:
        """Packed tokens (T, D) of captions of these lengths (B,) with their places."""
        num, longest = len(lengths), int(lengths.max())
        if int(lengths.min()) == longest:
            return CaptionTokens(tokens, num, longest, slots=None, bias=None)
        longest = -(-longest // 8) * 8
        valid = torch.arange(longest) < lengths[:, None]  # (B, L)
        bias = torch.zeros(valid.shape).masked_fill_(~valid, -math.inf)[:, None, None]  # (B, 1, 1, L)
        slots = valid.flatten().nonzero().flatten()  # (T,)
        device = tokens.device
        return CaptionTokens(
            tokens, num, longest, slots.to(device, non_blocking=True), bias.to(device, tokens.dtype, non_blocking=True)
        )

    def _position(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """The positions of a grid (N, D), in the parameters' dtype; computed when a grid is first seen."""
        key = (grid, device, self.x_embedder.proj.weight.dtype)
        if key not in self._positions:
            config = self.config
            with torch.inference_mode(False):  # so that training may use a table that sampling made
                table = position_table(grid, width=config.width, base=config.base_grid, scale=config.position_scale)
                self._positions[key] = table.to(device, key[2])
        return self._positions[key]

    def _unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, p p C_out) to (B, C_out, H, W)."""
        size = self.config.patch_size
        image = patches.unflatten(2, (size, size, -1)).unflatten(1, grid)  # (B, h, w, p, p, C_out)
        sides = grid[0] * size, grid[1] * size
        # Contiguous, not a view: FSDP2 hooks into what a module returns, and an operation in place on a view would drop that.
        output: Tensor = image.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, *sides).contiguous()
        return output  # (B, C_out, H, W)

    def _check_latents(self, latents: Tensor) -> tuple[int, int]:
        """The grid (h, w) of patches. Raises ValueError for latents that cannot be cut into one."""
        config = self.config
        step = config.patch_size * (config.kv_compression.factor if config.kv_compression.layers else 1)
        if latents.ndim != 4 or latents.shape[1] != config.in_channels or latents.shape[2] % step or latents.shape[3] % step:
            expected = f"(B, {config.in_channels}, H, W) with H and W multiples of {step}"
            raise ValueError(f"latents: expected {expected}, found {list(latents.shape)}")
        return latents.shape[2] // config.patch_size, latents.shape[3] // config.patch_size

    def _check_conditions(
        self, batch: int, *, timesteps: Tensor, labels: Tensor | None, sizes: Tensor | None, ratios: Tensor | None
    ) -> None:
        """Raises ValueError for a condition that is missing, not this network's, or of another shape."""
        micro, text = self.config.micro_conditioning, self.config.conditioning == "text"
        for name, value, shape, expected, needed in [
            ("timesteps", timesteps, (batch,), True, True),
            ("class_labels", labels, (batch,), not text, False),
            ("sizes", sizes, (batch, 2), micro, micro),
            ("aspect_ratios", ratios, (batch, 1), micro, micro),
        ]:
            if value is None and needed:
                raise ValueError(f"{name}: expected {list(shape)}, found none")
            if value is not None and not expected:
                raise ValueError(
                    f"{name}: expected none with conditioning={self.config.conditioning}, micro_conditioning={micro}"
                )
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name}: expected {list(shape)}, found {list(value.shape)}")

    def _check_route(self, route: TokenRoute | None, *, batch: int) -> None:
        """Raises ValueError for a route of another batch, or of blocks that this network lacks or compresses."""
        if route is None:
            return
        if len(route.kept) != batch:
            raise ValueError(f"route: expected tokens of {batch} samples, found {len(route.kept)}")
        self.config.check_routed(route.blocks)

    def _check_control(self, control: Tensor | None, *, latents: Tensor, is_routed: bool) -> None:
        """Raises ValueError for a control of another shape, and where there can be none."""
        if control is None:
            return
        if not self.control_blocks or is_routed:
            reason = "where tokens are routed" if is_routed else "for a network without copies of its blocks"
            raise ValueError(f"control: expected none {reason}")
        if control.shape != latents.shape:
            raise ValueError(f"control: expected {list(latents.shape)} as the latents, found {list(control.shape)}")

    def _check_captions(self, captions: Captions | PreparedCaptions | None, *, batch: int) -> None:
        """Raises ValueError for captions of another number, width or length, and where there should be none."""
        config = self.config
        if (config.conditioning == "text") != (captions is not None):
            raise ValueError(f"captions: found {'none' if captions is None else 'some'} for conditioning={config.conditioning}")
        if captions is None:
            return
        num = len(captions.blocks[0].keys) if isinstance(captions, PreparedCaptions) else len(captions)
        if num != batch:
            raise ValueError(f"captions: expected {batch} for {batch} latents, found {num}")
        if isinstance(captions, PreparedCaptions):
            return
        width, longest = captions.tokens.shape[1], int(captions.lengths.max())
        if width != config.caption_width:
            raise ValueError(f"captions: expected tokens of width {config.caption_width}, found {width}: another text encoder?")
        if longest > config.max_caption_tokens:
            raise ValueError(f"captions: expected at most {config.max_caption_tokens} tokens, found {longest}")
