"""The routed experts of a layer: many SwiGLU layers of one width, each for the rows sent to it.

Rows are sorted by expert once, so that every expert multiplies one block of them, forward and
backward; results return to their tokens by the inverse of that permutation. What is gathered is
summed over the K slots of a token, never scattered, so the result does not depend on the order of
anything. Slots without an assignment (dropped, or served by another rank) count as zero.

    y_x = sum_k g_xk W_down,e(x,k) (silu(W_gate,e x) * W_up,e x)

Shapes: X rows, K slots of a row, P assignments sorted by expert, E experts, d width, f expert
width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


class Dispatch(NamedTuple):
    """Which rows go to which expert: the sort of one layer, made once."""

    slots: torch.Tensor
    """[P]: the slot, an index into [X, K] flattened, of each assignment in the order of experts."""
    rows: torch.Tensor
    """[P]: the row of each assignment."""
    places: torch.Tensor
    """[Y]: for each of the Y = X K slots its place among the assignments; P for one without."""
    counts: list[int]
    """Assignments of each expert."""


def dispatch(
    experts_XK: torch.Tensor, experts: int, is_kept_XK: torch.Tensor | None = None
) -> Dispatch:
    """Sort assignments by expert; those of an expert stay in the order of their rows.

    Args:
        experts_XK: The expert of each slot.
        experts: E.
        is_kept_XK: False at slots to leave out; None: all are kept.
    """
    experts_Y = experts_XK.flatten()
    if experts_Y.is_meta:
        # No values to sort: as if the load were even, for estimates.
        shares = torch.arange(experts + 1) * len(experts_Y) // experts
        return Dispatch(
            experts_Y, experts_Y // experts_XK.shape[1], experts_Y, shares.diff().tolist()
        )
    if is_kept_XK is not None:
        # One more expert, behind all others, takes what is left out.
        experts_Y = torch.where(is_kept_XK.flatten(), experts_Y, experts)
    order_Y = experts_Y.argsort(stable=True)
    counts = torch.bincount(experts_Y, minlength=experts)[:experts].tolist()
    kept = sum(counts)
    slots_P = order_Y[:kept]
    places_Y = torch.full_like(order_Y, kept)
    places_Y[slots_P] = torch.arange(kept, device=order_Y.device)
    return Dispatch(slots_P, slots_P // experts_XK.shape[1], places_Y, counts)


class Experts(nn.Module):
    """The weights of E experts, stacked; `models.initialise` fills them.

    Args:
        count: E.
        width: d.
        expert_width: f.
    """

    def __init__(self, count: int, width: int, expert_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(count, 2 * expert_width, width))
        """W_gate above W_up, by expert."""
        self.down = nn.Parameter(torch.empty(count, width, expert_width))

    def forward(self, x_Xd: torch.Tensor, gates_XK: torch.Tensor, plan: Dispatch) -> torch.Tensor:
        """The gated sum of the experts of each row: [X, d]."""
        gates_XK = gates_XK.to(x_Xd.dtype)
        if not torch.is_grad_enabled():
            return _gated_sum(x_Xd, gates_XK, self.gate_up, self.down, plan)[0]
        apply: Callable[..., torch.Tensor] = _GatedExperts.apply
        return apply(x_Xd, gates_XK, self.gate_up, self.down, plan)

    def of_row(
        self, x_1d: torch.Tensor, gates_1K: torch.Tensor, experts_1K: torch.Tensor
    ) -> torch.Tensor:
        """The same for a single row, as in generation, where sorting would take half of the time.

        No gradient.
        """
        chosen: list[int] = experts_1K[0].tolist()
        hidden_KF = torch.cat([F.linear(x_1d, self.gate_up[expert]) for expert in chosen])
        gate_Kf, up_Kf = hidden_KF.chunk(2, dim=1)
        inner_Kf = F.silu(gate_Kf).mul_(up_Kf)
        rows = zip(torch.split(inner_Kf, 1), chosen, strict=True)
        out_Kd = torch.cat([F.linear(row, self.down[expert]) for row, expert in rows])
        return torch.mm(gates_1K.to(out_Kd.dtype), out_Kd)


def _gated_sum(
    x_Xd: torch.Tensor,
    gates_XK: torch.Tensor,
    gate_up_EFd: torch.Tensor,
    down_Edf: torch.Tensor,
    plan: Dispatch,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum [X, d], and what the gradient needs besides: W_gate x and W_up x, [P, F]."""
    hidden_PF = grouped_product(
        x_Xd.index_select(0, plan.rows), gate_up_EFd.transpose(1, 2), plan.counts
    )
    gate_Pf, up_Pf = hidden_PF.chunk(2, dim=1)
    out_Pd = grouped_product(F.silu(gate_Pf).mul_(up_Pf), down_Edf.transpose(1, 2), plan.counts)
    slots_XKd = _to_slots(out_Pd, plan, gates_XK.shape)
    return torch.bmm(gates_XK[:, None], slots_XKd)[:, 0], hidden_PF


class _GatedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_Xd: torch.Tensor,
        gates_XK: torch.Tensor,
        gate_up_EFd: torch.Tensor,
        down_Edf: torch.Tensor,
        plan: Dispatch,
    ) -> torch.Tensor:
        out_Xd, hidden_PF = _gated_sum(x_Xd, gates_XK, gate_up_EFd, down_Edf, plan)
        ctx.save_for_backward(x_Xd, gates_XK, gate_up_EFd, down_Edf, hidden_PF)
        ctx.plan = plan
        return out_Xd

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient_Xd: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, None]:
        x_Xd, gates_XK, gate_up_EFd, down_Edf, hidden_PF = ctx.saved_tensors
        plan: Dispatch = ctx.plan
        counts = plan.counts
        gates_P1 = gates_XK.flatten().index_select(0, plan.slots)[:, None]
        gate_Pf, up_Pf = hidden_PF.chunk(2, dim=1)
        sigmoid_Pf = gate_Pf.sigmoid()
        silu_Pf = gate_Pf * sigmoid_Pf
        inner_Pf = silu_Pf * up_Pf

        gradient_Pd = gradient_Xd.index_select(0, plan.rows)
        # Not gated yet: times the inner activations it is the slope of the gate.
        inner_slope_Pf = grouped_product(gradient_Pd, down_Edf, counts)
        gate_slope_P = (inner_slope_Pf * inner_Pf).sum(1)
        down_slope_Edf = grouped_outer(gradient_Pd, inner_Pf.mul_(gates_P1), counts)
        inner_slope_Pf.mul_(gates_P1)

        hidden_slope_PF = torch.empty_like(hidden_PF)
        width = gate_Pf.shape[1]
        torch.mul(inner_slope_Pf, silu_Pf, out=hidden_slope_PF[:, width:])
        # silu'(z) = sigmoid(z) (1 + z (1 - sigmoid(z))) = sigmoid(z) + silu(z) (1 - sigmoid(z)).
        silu_slope_Pf = torch.addcmul(sigmoid_Pf + silu_Pf, silu_Pf, sigmoid_Pf, value=-1.0)
        torch.mul(inner_slope_Pf.mul_(up_Pf), silu_slope_Pf, out=hidden_slope_PF[:, :width])
        x_Pd = x_Xd.index_select(0, plan.rows)
        gate_up_slope_EFd = grouped_outer(hidden_slope_PF, x_Pd, counts)
        x_slope_Pd = grouped_product(hidden_slope_PF, gate_up_EFd, counts)
        return (
            _to_slots(x_slope_Pd, plan, gates_XK.shape).sum(1),
            _to_slots(gate_slope_P[:, None], plan, gates_XK.shape)[..., 0],
            gate_up_slope_EFd,
            down_slope_Edf,
            None,
        )


def grouped_product(
    rows_Pi: torch.Tensor, weights_Eio: torch.Tensor, counts: list[int]
) -> torch.Tensor:
    """Each expert's block of rows times its matrix: [P, o]."""
    if rows_Pi.device.type == "cuda" and rows_Pi.dtype == torch.bfloat16:
        ends = torch.tensor(counts, device=rows_Pi.device).cumsum(0).to(torch.int32)
        return F.grouped_mm(rows_Pi, weights_Eio, offs=ends)
    out_Po = rows_Pi.new_empty(len(rows_Pi), weights_Eio.shape[2])
    blocks = zip(
        counts,
        torch.split(rows_Pi, counts),
        weights_Eio.unbind(),
        torch.split(out_Po, counts),
        strict=True,
    )
    for count, block_Ci, weight_io, out_Co in blocks:
        if count:
            torch.mm(block_Ci, weight_io, out=out_Co)
    return out_Po


def grouped_outer(left_Po: torch.Tensor, right_Pi: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The sum of outer products over each expert's block of rows: [E, o, i]."""
    if left_Po.device.type == "cuda" and left_Po.dtype == torch.bfloat16:
        ends = torch.tensor(counts, device=left_Po.device).cumsum(0).to(torch.int32)
        return F.grouped_mm(left_Po.T, right_Pi, offs=ends)
    out_Eoi = left_Po.new_empty(len(counts), left_Po.shape[1], right_Pi.shape[1])
    start = 0
    for expert, count in enumerate(counts):
        stop = start + count
        if count:
            torch.mm(left_Po[start:stop].T, right_Pi[start:stop], out=out_Eoi[expert])
        else:
            out_Eoi[expert].zero_()
        start = stop
    return out_Eoi


def _to_slots(rows_Pd: torch.Tensor, plan: Dispatch, shape: torch.Size) -> torch.Tensor:
    """Rows back at the slots they belong to, zeros at the others: [X, K, d]."""
    if len(plan.places) != len(rows_Pd):
        rows_Pd = F.pad(rows_Pd, (0, 0, 0, 1))
    return rows_Pd.index_select(0, plan.places).view(*shape, rows_Pd.shape[1])
