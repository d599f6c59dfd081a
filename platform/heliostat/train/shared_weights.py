"""Weights that are shared out over a group of workers instead of copied to each: experts.

Consecutive workers form groups of `resources.expert_parallel`; a group has one copy of every such
tensor, each worker a contiguous slice along its first axis. DeepSpeed never sees these tensors: it
would broadcast, average and shard what differs from rank to rank. So their gradients, their part of
the clipped norm, their optimiser and their share of a checkpoint are handled here.

- A gradient is the sum over all rows of the group that reached the slice, by the model's own
  collectives. It is summed over the groups and divided by the number of all workers, like
  DeepSpeed's mean over them; not by the number of groups.
- The norm that clips is that of all weights together.
- A checkpoint holds, by the index along the first axis, weight and optimiser state of every row
  once. Any number of workers may read it, with any size of the groups.

A model says that it can be shared out with modules that have `share_out` (`Shareable`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import nn

from heliostat.errors import CheckpointError, ConfigError
from heliostat.train.collectives import Ranks
from heliostat.train.config import FitConfig

FILES_PREFIX = "shared-"


class SharedTensor(Protocol):
    """A slice of a tensor."""

    tensor: torch.Tensor
    """What is computed with; a leaf that gradients arrive at."""
    exact: torch.Tensor
    """The same in float32."""
    start: int
    """The global index of its first row."""


@runtime_checkable
class Shareable(Protocol):
    """A module that can give all but a slice of its weights away."""

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Which weights these are, before they are shared out."""
        ...

    def share_out(
        self, processes: Any, index: int, size: int, dtype: torch.dtype
    ) -> Mapping[str, SharedTensor]:
        """Keep this process's slices, by name below the module; they are parameters no more."""
        ...


class SharedWeights:
    """The shared tensors of one rank; lives as long as its engine."""

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks,
        size: int,
        timeout_s: float,
        config: FitConfig,
        build_optimizer: Any,
        dtype: torch.dtype,
    ) -> None:
        """Share the model out. Called by all ranks, before DeepSpeed sees the model.

        Args:
            model: whole, the same on every rank.
            ranks: this worker's place.
            size: workers of a group.
            timeout_s: how long a worker waits for the others in a collective of these weights.
            config: optimiser and clipping.
            build_optimizer: makes an optimiser of parameter groups and the optimiser's config.
            dtype: what is computed in.
        """
        self.ranks, self.size, self.config = ranks, size, config
        self.index = ranks.rank % size
        # Making a group has a time limit as well, and ranks may have read their weights for long.
        ranks.barrier()
        self._group = _own_group(
            [list(range(first, first + size)) for first in range(0, ranks.world_size, size)],
            ranks.rank,
            timeout_s,
        )
        self._replicas = _own_group(
            [list(range(index, ranks.world_size, size)) for index in range(size)],
            ranks.rank,
            timeout_s,
        )
        self._tensors: dict[str, torch.Tensor] = {}
        self._masters: dict[str, torch.Tensor] = {}
        self._starts: dict[str, int] = {}
        for prefix, module in list(model.named_modules()):
            if isinstance(module, Shareable):
                found = module.share_out(self._group, self.index, size, dtype)
                for name, shared in found.items():
                    self._add(f"{prefix}.{name}" if prefix else name, shared)
        if not self._tensors:
            raise ConfigError(
                f"resources.expert_parallel is {size}, but {type(model).__name__} has no experts "
                "to share out"
            )
        self._optimizer: torch.optim.Optimizer = build_optimizer(
            [{"params": list(self._masters.values())}], config.optimizer
        )

    def _add(self, name: str, shared: SharedTensor) -> None:
        tensor = shared.tensor.to(self.ranks.device)
        if tensor is not shared.tensor:
            shared.tensor.data = tensor
            tensor = shared.tensor
        self._tensors[name] = tensor
        self._starts[name] = shared.start
        is_exact = tensor.dtype == torch.float32
        master = tensor if is_exact else shared.exact.to(self.ranks.device)
        self._masters[name] = master

    # A step.

    def reduce_gradients(self) -> float:
        """Average the gradients; returns the square of the norm of all slices of a group."""
        squared = []
        for name, tensor in self._tensors.items():
            gradient = tensor.grad
            if gradient is None:
                gradient = torch.zeros_like(tensor)
            master = self._masters[name]
            exact = gradient.float()
            if self.ranks.world_size > self.size:
                dist.all_reduce(exact, group=self._replicas)
            exact.div_(self.ranks.world_size)
            if master is not tensor:
                tensor.grad = None
            master.grad = exact
            squared.append(exact.square().sum())
        total = torch.stack(squared).sum()
        dist.all_reduce(total, group=self._group)
        return float(total)

    def step(self, lr: float, factor: float) -> None:
        """Multiply the averaged gradients by `factor`, and update the weights."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        for master in self._masters.values():
            assert master.grad is not None
            master.grad.mul_(factor)
        self._optimizer.step()
        self.drop_gradients()
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                if self._masters[name] is not tensor:
                    tensor.copy_(self._masters[name])

    def drop_gradients(self) -> None:
        """Forget the gradients: they were used, or their step is skipped."""
        for master in self._masters.values():
            master.grad = None
        for tensor in self._tensors.values():
            tensor.grad = None

    # Keeping and putting back.

    def whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and float32 value of every tensor, whole, on the CPU. Iterated by all ranks."""
        for name, master in self._masters.items():
            parts = [torch.empty_like(master) for _ in range(self.size)]
            dist.all_gather(parts, master.detach().contiguous(), group=self._group)
            yield name, torch.cat(parts).to("cpu", copy=True)

    def files(self) -> dict[str, Any]:
        """This rank's part of a checkpoint, as copies: nothing where another rank has the same."""
        if self.ranks.rank >= self.size:
            return {}
        found: dict[str, Any] = {}
        for name, master in self._masters.items():
            kept = {
                key: value.detach().to("cpu", copy=True)
                for key, value in self._optimizer.state[master].items()
            }
            found[name] = {
                "start": self._starts[name],
                "weight": master.detach().to("cpu", copy=True),
                "optimizer": kept,
            }
        return {f"{FILES_PREFIX}{self.index:05d}.pt": found}

    def restore(self, folder: Path) -> None:
        """Put back the slices of this rank from a checkpoint's files, whoever wrote them.

        Raises `CheckpointError` when rows are missing.
        """
        paths = sorted(folder.glob(f"{FILES_PREFIX}*.pt"))
        saved = [torch.load(path, weights_only=True) for path in paths]
        for name, master in self._masters.items():
            pieces = [one[name] for one in saved if name in one]
            start, count = self._starts[name], len(master)
            weight = _rows([(p["start"], p["weight"]) for p in pieces], start, count, name)
            with torch.no_grad():
                master.copy_(weight)
                self._tensors[name].copy_(weight)
            keys = pieces[0]["optimizer"]
            self._optimizer.state[master] = {
                key: (
                    value.to(master.device, copy=True)
                    if value.ndim == 0
                    else _rows(
                        [(p["start"], p["optimizer"][key]) for p in pieces], start, count, name
                    ).to(master.device)
                )
                for key, value in keys.items()
            }


@contextmanager
def norm_includes(optimizer: Any, squared: float) -> Iterator[None]:
    """Let DeepSpeed's ZeRO optimiser clip by a norm that has more in it than its own gradients.

    `scaled_global_norm` of deepspeed 0.19.8 is what it clips by and reports.
    """
    own = optimizer.scaled_global_norm

    def joint(norm_type: int = 2) -> torch.Tensor:
        norm = torch.as_tensor(own(norm_type))
        # A negative norm says that it is not finite.
        return torch.where(norm < 0, norm, (norm.square() + squared).sqrt())

    optimizer.scaled_global_norm = joint
    try:
        yield
    finally:
        del optimizer.scaled_global_norm


def clip_factor(norm: float, limit: float | None) -> float:
    """What gradients of that norm are multiplied by, as DeepSpeed and torch do."""
    if limit is None or not math.isfinite(norm):
        return 1.0
    return min(1.0, limit / (norm + 1e-6))


def _own_group(groups: Sequence[Sequence[int]], rank: int, timeout_s: float) -> Any:
    """The process group of those that holds the rank; made by all ranks, in the same order."""
    mine = None
    for members in groups:
        # By default a lost worker would show after half an hour (gloo) or ten minutes (NCCL).
        made = dist.new_group(list(members), timeout=timedelta(seconds=timeout_s))
        if rank in members:
            mine = made
    return mine


def _rows(
    pieces: Sequence[tuple[int, torch.Tensor]], start: int, count: int, name: str
) -> torch.Tensor:
    """The rows from `start` on, put together from pieces that begin at their own indices."""
    whole = torch.cat([tensor for _, tensor in sorted(pieces, key=lambda piece: piece[0])])
    if len(whole) < start + count:
        raise CheckpointError(
            f"a checkpoint holds {len(whole)} rows of {name}, but {start + count} are needed"
        )
    return whole[start : start + count]
