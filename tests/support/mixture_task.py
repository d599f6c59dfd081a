"""A mixture-of-experts task that trains in a second, on random bytes."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import nn

from heliostat.data.table import TableWriter
from heliostat.storage import Location
from heliostat.train.task import Batch, LossTerm, Observed
from jobs.mla_moe.config import BalanceConfig
from jobs.mla_moe.model_config import AttentionConfig, MixtureConfig, ModelConfig, decoder_config
from jobs.mla_moe.tasks import MixtureLanguageModel

MODEL = ModelConfig(
    width=32,
    layers=3,
    feed_forward_width=48,
    initial_std=0.1,
    attention=AttentionConfig(
        heads=2,
        head_width=8,
        latent_width=16,
        rotary_width=8,
        value_width=8,
        query_latent_width=0,
    ),
    experts=MixtureConfig(routed=8, per_token=2, width=16, groups=4),
)
ALL_LOSSES = BalanceConfig(alpha_expert=0.1, alpha_device=0.2, alpha_communication=0.3, gamma=0.01)


PASSES: Counter[str] = Counter()
"""Passes of this process, by the folder of notes."""
HELD_S = 600.0


@dataclass(frozen=True)
class HeldMixture(MixtureLanguageModel):
    """Stands still on rank 1, once, until killed; the process id is in `notes`/held."""

    notes: Location | None = None
    hold_at_pass: int = 9

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm | Observed]:
        """Of one micro batch."""
        assert self.notes is not None
        held = self.notes / "held"
        PASSES[self.notes.uri] += 1
        is_due = PASSES[self.notes.uri] == self.hold_at_pass and os.environ["RANK"] == "1"
        if is_due and not held.exists():
            held.write_text(str(os.getpid()))
            time.sleep(HELD_S)
        return super().loss(model, batch)


def table(folder: Location, rows: int, seed: int) -> Location:
    """Documents of 300 bytes."""
    generator = np.random.default_rng(seed)
    schema = pa.schema([pa.field("tokens", pa.list_(pa.uint8()))])
    texts = [generator.integers(1, 256, 300, dtype=np.uint8) for _ in range(rows)]
    with TableWriter(folder, schema, {}) as writer:
        writer.write(pa.record_batch({"tokens": pa.array(texts, schema.field(0).type)}))
    return folder


def small_task(out: Location) -> MixtureLanguageModel:
    """The task, on tables below `out`."""
    return MixtureLanguageModel(
        name="lm",
        decoder=decoder_config(MODEL),
        balance=ALL_LOSSES,
        train=table(out / "train", 20, 0),
        test=table(out / "test", 20, 1),
        length=32,
        seed=0,
        validation_rows=16,
    )
