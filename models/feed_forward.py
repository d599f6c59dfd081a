"""The position-wise feed-forward layers: GELU (GPT-NeoX) and SwiGLU (Llama).

SwiGLU is that of Shazeer 2020, arXiv 2002.05202, with gate and up projection fused into one matrix,
gate rows first. GELU is the exact one, not the tanh approximation.

Shapes: B batch, T tokens, d width, F feed-forward width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.decoder_config import DecoderConfig, FeedForwardKind
from models.initialise import linear


class GeluFeedForward(nn.Module):
    """W_down gelu(W_up x)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.up = linear(config.width, config.feed_forward_width, bias=config.has_biases)
        self.down = linear(config.feed_forward_width, config.width, bias=config.has_biases)

    def forward(self, x_BTd: torch.Tensor) -> torch.Tensor:
        out_BTd: torch.Tensor = self.down(F.gelu(self.up(x_BTd)))
        return out_BTd


class SwiGLUFeedForward(nn.Module):
    """W_down(silu(W_gate x) * W_up x); `width` stands in the place of the config's F."""

    def __init__(self, config: DecoderConfig, *, width: int | None = None) -> None:
        super().__init__()
        inner = config.feed_forward_width if width is None else width
        self.gate_up = linear(config.width, 2 * inner, bias=config.has_biases)
        self.down = linear(inner, config.width, bias=config.has_biases)

    def forward(self, x_BTd: torch.Tensor) -> torch.Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTd).chunk(2, dim=-1)
        out_BTd: torch.Tensor = self.down(F.silu(gate_BTF) * up_BTF)
        return out_BTd


FEED_FORWARDS: dict[FeedForwardKind, type[GeluFeedForward] | type[SwiGLUFeedForward]] = {
    "gelu": GeluFeedForward,
    "swiglu": SwiGLUFeedForward,
}
