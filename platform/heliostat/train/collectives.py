"""The few collectives that training uses, each called by every rank from one visible place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class ComingSum:
    """A sum over ranks that is on its way."""

    _vector: torch.Tensor
    _work: dist.Work | None

    def result(self) -> list[float]:
        """The sum, once it is there."""
        if self._work is not None:
            self._work.wait()
        return [float(value) for value in self._vector.tolist()]


@dataclass(frozen=True)
class Ranks:
    """This worker's place among the workers."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    def sum(self, values: list[float]) -> list[float]:
        """Sum over ranks, in float64 and therefore exact for counts."""
        return self.begin_sum(values).result()

    def begin_sum(self, values: list[float]) -> ComingSum:
        """The same, without waiting: the ranks add while this one goes on."""
        vector = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size == 1:
            return ComingSum(vector, None)
        return ComingSum(vector, dist.all_reduce(vector, async_op=True))

    def all_true(self, flag: bool) -> bool:
        """Whether the flag is true on every rank."""
        return self.sum([float(not flag)])[0] == 0

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        box: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        """Wait for every rank."""
        self.all_true(True)
