"""A mixture of experts in the place of a feed-forward layer (arXiv 2401.06066, 2405.04434).

    h = FFN_shared(u) + sum_{i in S} g_i FFN_i(u)

`models.routing` chooses S and g, `models.experts` computes the sum, `models.balance` measures it,
and `models.dropping` cuts it where a capacity is set, in training only. The N_s shared experts are
one layer of width N_s f, which is the same as their sum.

The experts may be shared out over processes (`share_out`, `models.expert_parallel`).

Shapes: B sequences, T tokens, X = B T rows, K experts of a row, d width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.distributed import ProcessGroup

from models.balance import RoutingStatistics, statistics
from models.decoder_config import DecoderConfig
from models.dropping import is_exempt, kept
from models.expert_parallel import ExpertGroup, gathered, shared_experts
from models.experts import Experts, dispatch
from models.feed_forward import SwiGLUFeedForward
from models.initialise import linear
from models.routing import Routing, route


class SharedTensor(NamedTuple):
    """A slice of a tensor whose first axis is shared out over processes."""

    tensor: torch.Tensor
    """What is computed with; a leaf that gradients arrive at."""
    exact: torch.Tensor
    """The same in float32."""
    start: int
    """The global index of its first row."""


class MixtureOfExperts(nn.Module):
    """Shared and routed experts."""

    selection_bias: torch.Tensor | None

    def __init__(self, config: DecoderConfig, number: int) -> None:
        """Make layer `number` of the layers of experts, counted from 0."""
        super().__init__()
        experts = config.experts
        assert experts is not None
        self.number = number
        self.config = experts
        self.group: ExpertGroup | None = None
        """The processes that the experts are shared out over; None: all are here."""
        self.router = linear(config.width, experts.routed, bias=False)
        # A float32 buffer: no gradient, no decay, and bfloat16 cannot hold steps of 0.001 near 1.
        bias = torch.zeros(experts.routed) if experts.has_bias else None
        self.register_buffer("selection_bias", bias)
        self.idle_steps_N = torch.zeros(experts.routed)
        """Training steps since each expert had a token; whoever watches the balance counts them."""
        self.experts = Experts(experts.routed, config.width, experts.width)
        if experts.shared:
            self.shared = SwiGLUFeedForward(config, width=experts.shared * experts.width)

    def forward(self, x_BTd: torch.Tensor) -> torch.Tensor:
        """The layer's output; the axes before the last may be any."""
        x_Xd = x_BTd.flatten(0, -2)
        out_Xd = self._combine(x_Xd, self.route(x_Xd), None)
        return out_Xd.view_as(x_BTd)

    def observed(
        self, x_BTd: torch.Tensor, sequence_ids_B: torch.Tensor | None
    ) -> tuple[torch.Tensor, RoutingStatistics]:
        """The output and what the routing was; drops where the config says so, in training.

        Args:
            x_BTd: Rows of whole sequences.
            sequence_ids_B: Say which sequences are exempt from dropping; None: none is.
        """
        x_Xd = x_BTd.flatten(0, -2)
        routing = self.route(x_Xd)
        is_kept_XK = None
        # On the meta device there are no affinities to compare, for estimates: nothing is dropped.
        if self.training and self.config.capacity_factor is not None and not x_Xd.is_meta:
            is_kept_XK = self._kept(routing, x_BTd.shape[1], sequence_ids_B)
        out_Xd = self._combine(x_Xd, routing, is_kept_XK)
        seen = statistics(routing, is_kept_XK, sequences=len(x_BTd), config=self.config)
        return out_Xd.view_as(x_BTd), seen

    def route(self, x_Xd: torch.Tensor) -> Routing:
        """The experts of every row."""
        return route(x_Xd, self.router.weight, self.selection_bias, self.config)

    def _combine(
        self, x_Xd: torch.Tensor, routing: Routing, is_kept_XK: torch.Tensor | None
    ) -> torch.Tensor:
        is_alone = len(x_Xd) == 1 and is_kept_XK is None and not x_Xd.is_meta
        if is_alone and self.group is None and not torch.is_grad_enabled():
            out_Xd: torch.Tensor = self.experts.of_row(x_Xd, routing.gates, routing.experts)
        elif self.group is None:
            plan = dispatch(routing.experts, self.config.routed, is_kept_XK)
            out_Xd = self.experts(x_Xd, routing.gates, plan)
        else:
            out_Xd = shared_experts(
                x_Xd, routing.experts, routing.gates, is_kept_XK, self.experts, self.group
            )
        return out_Xd + self.shared(x_Xd) if self.config.shared else out_Xd

    def _kept(
        self, routing: Routing, tokens: int, sequence_ids_B: torch.Tensor | None
    ) -> torch.Tensor:
        rows = len(routing.experts)
        if sequence_ids_B is None:
            exempt_X = torch.zeros(rows, dtype=torch.bool, device=routing.experts.device)
        else:
            exempt_B = is_exempt(sequence_ids_B, self.config.exempt_share)
            exempt_X = exempt_B.repeat_interleave(tokens)
        affinities_XK = routing.affinities.detach().gather(1, routing.experts)
        if self.group is None:
            return kept(routing.experts, affinities_XK, exempt_X, self.config)
        # Decided over the tokens of all processes, before any row is sent.
        everywhere = kept(
            gathered(routing.experts, self.group),
            gathered(affinities_XK, self.group),
            gathered(exempt_X, self.group),
            self.config,
        )
        return everywhere[self.group.index * rows : (self.group.index + 1) * rows]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The weights that `share_out` divides."""
        return self.experts.parameters()

    def share_out(
        self, processes: ProcessGroup, index: int, size: int, dtype: torch.dtype
    ) -> dict[str, SharedTensor]:
        """Keep only this process's experts, as tensors that are parameters of no module.

        What a wrapper does to parameters (broadcast, average, shard) would be wrong for experts
        that differ from process to process, so it must not find them. Whoever calls this owns them.

        Args:
            processes: those that share the experts.
            index: of this process among them.
            size: how many they are.
            dtype: of the tensors that the layer computes with.

        Returns:
            By name below this module: what the layer computes with, and which experts it is.
        """
        self.group = ExpertGroup(processes, index, size, self.number)
        start, stop = self.group.slice_of(self.config.routed)
        shared = {}
        for name in ("gate_up", "down"):
            slice_ = getattr(self.experts, name).detach()[start:stop]
            mine = slice_.to(dtype, copy=True).requires_grad_()
            exact = slice_.to(torch.float32, copy=True)
            delattr(self.experts, name)
            # Past `nn.Module`, which would refuse a plain tensor here or register a parameter.
            self.experts.__dict__[name] = mine
            shared[f"experts.{name}"] = SharedTensor(mine, exact, start)
        return shared
