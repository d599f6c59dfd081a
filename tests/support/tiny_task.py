"""A task small enough to train in a second: predict the next of a few tokens, with uneven targets.

Faults are fields of the task: a worker can raise, give a loss that is not a number, or stand still
at a certain sample until a test kills it. What is trained on can be traced.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from heliostat.data.stream import RowStream, Sample, Stream
from heliostat.data.table import TableWriter
from heliostat.storage import Location
from heliostat.train.engine import decay_groups
from heliostat.train.task import Batch, LossTerm, Tally

VOCABULARY = 23
LENGTH = 12
HELD_S = 600.0
MET: Counter[tuple[str, int]] = Counter()
"""How often this process has trained on the sample to stand still at, by the folder of notes."""
TRUE_QUERY: dict[str, Any] = {}
"""What `announce_preemption` has replaced."""


class TinyModel(nn.Module):
    """Embedding, one hidden layer, logits; tied if asked; frozen and padded parts for the edges."""

    def __init__(self, width: int, tied: bool, dropout: float) -> None:
        super().__init__()
        self.checkpoint_activations = False
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.hidden = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.full((width,), 1.5), requires_grad=False)
        self.output = nn.Linear(width, VOCABULARY, bias=False)
        self.register_buffer("shift", torch.full((width,), 0.25))
        if tied:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        if self.checkpoint_activations and self.training:
            x = checkpoint(self._middle, x, use_reentrant=False)
        else:
            x = self._middle(x)
        return self.output(self.norm(x))

    def _middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(torch.tanh(self.hidden(x)) * self.scale + self.shift.to(x.dtype))


@dataclass(frozen=True)
class TinyTask:
    """Next-token prediction where only the first `n` tokens of each row are targets."""

    train: Location
    evaluation: Location
    name: str = "tiny"
    seed: int = 0
    width: int = 16
    tied: bool = False
    dropout: float = 0.0
    fail_at_id: int = -1
    """Raise when a batch holds this sample."""
    poison_id: int = -1
    """Give a loss that is not a number when a batch holds this sample."""
    hold_at_id: int = -1
    """Stand still at this sample, once, until killed; the process id is in `notes`/held."""
    hold_at_pass: int = 1
    """Only when a process meets that sample for this time."""
    head: int | None = None
    """Train on the first so many rows only."""
    wait_s: float = 0.0
    """Seconds each micro batch takes longer."""
    preempted: bool = False
    """Say that the worker's node is being taken away, at every step."""
    notes: Location | None = None
    """A folder for `held`, and for a trace of the samples trained on, one file a process."""

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return TinyModel(self.width, self.tied, self.dropout)

    def train_data(self) -> Stream:
        return RowStream(self.train, seed=self.seed, head=self.head)

    def eval_data(self) -> Stream:
        return RowStream(self.evaluation, seed=0, shuffle=False)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return {
            "ids": torch.tensor([int(sample["id"]) for sample in samples]),
            "tokens": torch.from_numpy(np.stack([sample["tokens"] for sample in samples])).long(),
            "n": torch.tensor([int(sample["n"]) for sample in samples]),
        }

    def counts(self, batch: Batch) -> Mapping[str, int]:
        return {"tokens": int(batch["n"].sum())}

    def _losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = model(batch["tokens"][:, :-1])
        losses = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), batch["tokens"][:, 1:], reduction="none"
        )
        mask = torch.arange(LENGTH - 1, device=losses.device)[None] < batch["n"][:, None]
        return losses * mask

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        ids = batch["ids"].tolist()
        self._suffer(ids)
        total = self._losses(model, batch).sum()
        if self.poison_id in ids:
            total = total * float("nan")
        return {"lm": LossTerm(total, "tokens")}

    def _suffer(self, ids: list[int]) -> None:
        time.sleep(self.wait_s)
        announce_preemption(self.preempted)
        if self.fail_at_id in ids:
            raise ValueError(f"sample {self.fail_at_id} is cursed")
        if self.notes is None:
            return
        held = self.notes / "held"
        here = self.notes.uri, self.hold_at_id
        MET[here] += self.hold_at_id in ids
        if MET[here] == self.hold_at_pass and not held.exists():
            held.write_text(str(os.getpid()))
            time.sleep(HELD_S)
        trace = self.notes.local_path / f"trace-{os.environ['RANK']}-{os.getpid()}.jsonl"
        trace.parent.mkdir(parents=True, exist_ok=True)
        with trace.open("a") as file:
            file.write(json.dumps(ids) + "\n")

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tally]:
        losses = self._losses(model, batch)
        return {
            "loss": Tally(losses.sum(), int(batch["n"].sum())),
            # Differs from the mean of all ids as soon as a row is counted twice or not at all.
            "mean_id": Tally(float(batch["ids"].sum()), len(batch["ids"])),
        }

    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        return decay_groups(model)

    def flops(self, batch: Batch) -> float:
        return 0.0


def announce_preemption(is_preempted: bool) -> None:
    """Replace Ray Train's query in this worker; there is no public way to pretend."""
    import ray.train

    from heliostat.train import loop

    if is_preempted:
        TRUE_QUERY.setdefault("info", ray.train.get_preemption_info)
        TRUE_QUERY.setdefault("every", loop.PREEMPTION_CHECK_S)
        loop.PREEMPTION_CHECK_S = 0.0
        ray.train.get_preemption_info = lambda: "soon"
    elif TRUE_QUERY:
        ray.train.get_preemption_info = TRUE_QUERY.pop("info")
        loop.PREEMPTION_CHECK_S = TRUE_QUERY.pop("every")


def write_rows(location: Location, rows: int, seed: int) -> Location:
    """A table of `rows` random rows with between 1 and LENGTH - 1 targets each."""
    generator = np.random.default_rng(seed)
    schema = pa.schema([("id", pa.int64()), ("tokens", pa.list_(pa.int16())), ("n", pa.int32())])
    with TableWriter(location, schema, {}) as writer:
        writer.write(
            pa.record_batch(
                {
                    "id": pa.array(range(rows), pa.int64()),
                    "tokens": pa.array(
                        list(generator.integers(0, VOCABULARY, (rows, LENGTH), dtype=np.int16)),
                        pa.list_(pa.int16()),
                    ),
                    "n": pa.array(generator.integers(1, LENGTH, rows), pa.int32()),
                },
                schema=schema,
            )
        )
    return location
