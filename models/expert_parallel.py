"""Experts shared out over processes: each of a group holds a contiguous slice of them.

A row goes once to every process that holds experts of it, with its gates and the local numbers of
those experts, and comes back as one partial sum that is gated already: that is what routing by
groups (`groups_per_token`) pays for. Backward, rows and slopes travel the same way with the splits
exchanged.

    1. how many rows go where: one number to every process, and the layer's
    2. rows, gates and expert numbers, to each process those that it needs
    3. the local experts of what arrived (`models.experts`)
    4. partial sums back, and their sum over the processes of a row

Every process of a group must call every forward and backward pass, with any number of rows, none
included. One that does not is noticed: the counts carry the number of their layer, and an exchange
that others do not come to fails after the time limit of the process group (`ExchangeError`). That
is so on gloo, where a collective waits. On NCCL it returns at once; after the limit NCCL's watchdog
ends the process, and names the collective by its number and sizes only. `Work.wait` with a limit
would raise here instead, but sleeps between two looks, which would slow down every layer.

This module knows torch's collectives and nothing of who started the processes.

Shapes: X own rows, K slots of a row, S rows sent, R rows received, d width, P processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from models.experts import Experts, dispatch

ABSENT = -1
"""The local number of an expert that is elsewhere."""


class ExchangeError(RuntimeError):
    """The processes of a group did not come together in an exchange; names the layer."""


@dataclass(frozen=True)
class ExpertGroup:
    """The processes that share one copy of a layer's experts, and this one's place among them."""

    processes: dist.ProcessGroup
    index: int
    size: int
    layer: int
    """The layer's number among those of experts, from 0."""

    def slice_of(self, experts: int) -> tuple[int, int]:
        """The global numbers of this process's experts: first, and one past the last."""
        each = experts // self.size
        return self.index * each, (self.index + 1) * each


class _Sending(NamedTuple):
    rows: torch.Tensor
    """[S]: the own row that each sent row is, ordered by destination."""
    places: torch.Tensor
    """[X, P]: where among the sent rows a row for a process is; S for one not sent there."""
    local: torch.Tensor
    """[S, K]: the experts of each sent row by their local numbers, `ABSENT` for those elsewhere."""
    sent: list[int]
    received: list[int]


def shared_experts(
    x_Xd: torch.Tensor,
    experts_XK: torch.Tensor,
    gates_XK: torch.Tensor,
    is_kept_XK: torch.Tensor | None,
    experts: Experts,
    group: ExpertGroup,
) -> torch.Tensor:
    """The gated sum of the experts of each row, wherever they are: [X, d]."""
    local = len(experts.gate_up)
    sending = _plan(experts_XK, is_kept_XK, local, group)
    gates_SK = gates_XK.index_select(0, sending.rows).to(x_Xd.dtype)
    out = torch.cat((x_Xd.index_select(0, sending.rows), gates_SK), dim=1)
    arrived = _exchange(out, sending.sent, sending.received, "rows", group)
    with _named("expert numbers", group):
        local_RK = _all_to_all(sending.local, sending.sent, sending.received, group)
    x_Rd, gates_RK = torch.split(arrived, [x_Xd.shape[1], gates_XK.shape[1]], dim=1)
    is_here_RK = local_RK != ABSENT
    plan = dispatch(local_RK.clamp(min=0), local, is_here_RK)
    partial_Rd = experts(x_Rd.contiguous(), gates_RK.contiguous(), plan)
    back_Sd = _exchange(partial_Rd, sending.received, sending.sent, "partial sums", group)
    padded_Sd = F.pad(back_Sd, (0, 0, 0, 1))
    by_process = padded_Sd.index_select(0, sending.places.flatten())
    return by_process.view(len(x_Xd), group.size, x_Xd.shape[1]).sum(1)


def gathered(values: torch.Tensor, group: ExpertGroup) -> torch.Tensor:
    """The rows of all processes of the group, in its order; every one has as many."""
    parts = [torch.empty_like(values) for _ in range(group.size)]
    with _named("affinities", group):
        dist.all_gather(parts, values.contiguous(), group=group.processes)
    return torch.cat(parts)


def _plan(
    experts_XK: torch.Tensor, is_kept_XK: torch.Tensor | None, local: int, group: ExpertGroup
) -> _Sending:
    processes_XK = torch.div(experts_XK, local, rounding_mode="floor")
    if is_kept_XK is not None:
        # What is dropped is sent nowhere.
        processes_XK = torch.where(is_kept_XK, processes_XK, group.size)
    rows = len(experts_XK)
    is_sent_XP = torch.zeros(
        rows, group.size + 1, dtype=torch.bool, device=experts_XK.device
    ).scatter_(1, processes_XK, True)[:, : group.size]
    # By destination, and there in the order of the rows.
    destinations_S, rows_S = is_sent_XP.T.nonzero(as_tuple=True)
    places_PX = torch.full((group.size, rows), len(rows_S), device=experts_XK.device)
    places_PX[destinations_S, rows_S] = torch.arange(len(rows_S), device=experts_XK.device)
    is_there_SK = processes_XK[rows_S] == destinations_S[:, None]
    local_SK = torch.where(is_there_SK, experts_XK[rows_S] % local, ABSENT)
    sent = is_sent_XP.sum(0)
    received = _exchanged_counts(sent, group)
    return _Sending(rows_S, places_PX.T, local_SK, sent.tolist(), received)


def _exchanged_counts(sent_P: torch.Tensor, group: ExpertGroup) -> list[int]:
    """How many rows come from every process; ExchangeError where one is in another layer.

    Splits that do not fit must not get as far as gloo: of too many rows it ends the process, and
    too few it takes for all.
    """
    out_P2 = torch.stack((sent_P, torch.full_like(sent_P, group.layer)), dim=1)
    arrived_P2 = torch.empty_like(out_P2)
    with _named("row counts", group):
        dist.all_to_all_single(arrived_P2, out_P2, group=group.processes)
    received, layers = zip(*arrived_P2.tolist(), strict=True)
    if any(layer != group.layer for layer in layers):
        raise ExchangeError(
            f"layer of experts {group.layer}, exchange of row counts: rank {dist.get_rank()} is "
            f"there, but the {group.size} processes of its group are in layers {list(layers)}"
        )
    return list(received)


@contextmanager
def _named(what: str, group: ExpertGroup) -> Iterator[None]:
    """Say of a collective that fails which one it was."""
    began = time.monotonic()
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # Nobody was waited for.
    except RuntimeError as error:
        raise ExchangeError(
            f"layer of experts {group.layer}, exchange of {what}: rank {dist.get_rank()} waited "
            f"{time.monotonic() - began:.1f} s in vain for its group of {group.size}: {error}"
        ) from error


def _exchange(
    rows: torch.Tensor, sent: list[int], received: list[int], what: str, group: ExpertGroup
) -> torch.Tensor:
    apply: Callable[..., torch.Tensor] = _Exchange.apply
    return apply(rows, sent, received, what, group)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        sent: list[int],
        received: list[int],
        what: str,
        group: ExpertGroup,
    ) -> torch.Tensor:
        ctx.sent, ctx.received, ctx.what, ctx.group = sent, received, what, group
        with _named(what, group):
            return _all_to_all(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        with _named(f"slopes of {ctx.what}", ctx.group):
            back = _all_to_all(slopes, ctx.received, ctx.sent, ctx.group)
        return back, None, None, None, None


def _all_to_all(
    rows: torch.Tensor, sent: list[int], received: list[int], group: ExpertGroup
) -> torch.Tensor:
    arrived = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group.processes)
    return arrived
