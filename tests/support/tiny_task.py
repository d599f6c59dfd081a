"""A task small enough to train in a second: predict the next of a few tokens, with uneven targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from heliostat.data.stream import RowStream, Sample, Stream
from heliostat.data.table import TableWriter
from heliostat.storage import Location
from heliostat.train.engine import decay_groups
from heliostat.train.task import Batch, LossTerm, Tally

VOCABULARY = 23
LENGTH = 12


class TinyModel(nn.Module):
    """Embedding, one hidden layer, logits; enough parameters for every ZeRO stage."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.checkpoint_activations = False
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.hidden = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.output(self.norm(torch.tanh(self.hidden(self.embedding(tokens)))))


@dataclass(frozen=True)
class TinyTask:
    """Next-token prediction where only the first `n` tokens of each row are targets."""

    train: Location
    evaluation: Location
    name: str = "tiny"
    seed: int = 0
    fail_at_id: int = -1
    """Raise when a batch holds this sample."""
    poison_id: int = -1
    """Give a loss that is not a number when a batch holds this sample."""

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return TinyModel()

    def train_data(self) -> Stream:
        return RowStream(self.train, seed=self.seed)

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
        if self.fail_at_id in batch["ids"].tolist():
            raise ValueError(f"sample {self.fail_at_id} is cursed")
        total = self._losses(model, batch).sum()
        if self.poison_id in batch["ids"].tolist():
            total = total * float("nan")
        return {"lm": LossTerm(total, "tokens")}

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tally]:
        losses = self._losses(model, batch)
        return {
            "loss": Tally(losses.sum(), int(batch["n"].sum())),
            "rows": Tally(len(batch["ids"]), 1),
        }

    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        return decay_groups(model)

    def flops(self, batch: Batch) -> float:
        return 0.0


def write_rows(location: Location, rows: int, seed: int) -> Location:
    """A table of `rows` random rows with between 1 and LENGTH - 1 targets each."""
    generator = np.random.default_rng(seed)
    schema = pa.schema(
        [("id", pa.int64()), ("tokens", pa.list_(pa.int16())), ("n", pa.int32())]
    )
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
