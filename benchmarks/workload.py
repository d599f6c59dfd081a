"""The training that all contenders do: the language model of `support_templates` at size `laptop`.

Same initial weights, same rows in the same order, same optimiser, batch and precision. Heliostat
reads its table on the fly, as it always does; the peers get the same rows cut beforehand and kept
in memory, which is as cheap as reading data can be.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heliostat.config.settings import settings
from heliostat.data.table import Table
from heliostat.storage import Location
from heliostat.train.config import (
    CheckpointConfig,
    EvaluationConfig,
    FitConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from heliostat.train.task import Batch
from jobs.corpora.tokenizer import FILE, TextCodec, codec_of, train_tokenizer
from jobs.support_templates.data import support_sim
from jobs.support_templates.data.sim_config import SimConfig
from jobs.support_templates.preparation import documents, redact_cases
from jobs.support_templates.split import SideRule
from jobs.support_templates.tasks import LanguageModelling
from models.decoder_config import gpt_neox_config
from models.losses import IGNORED

VOCABULARY = 2048
CASES = 1500
ROWS = 1024
"""Rows that the peers keep in memory and go round in."""


@dataclass(frozen=True)
class Size:
    """A model and its batch."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    seq_len: int = 128
    batch: int = 16
    micro_batch: int = 8


LAPTOP = Size()
TINY = Size(width=32, layers=1, heads=2, seq_len=16, batch=4, micro_batch=4)
WIDE = Size(width=384, layers=6, heads=6, seq_len=32, batch=2, micro_batch=2)
"""Little work and a large state: 12 million weights, 147 MB with the optimiser's."""
SIZES = {"laptop": LAPTOP, "tiny": TINY, "wide": WIDE}


@dataclass(frozen=True)
class StampedTask(LanguageModelling):
    """The task, which also notes the time of every optimiser step in a file of each rank."""

    stamps: str = ""

    def model(self) -> nn.Module:
        """The model; from here on every step is noted."""
        stamp_steps(self.stamps)
        return super().model()


def cache() -> Location:
    """Where the benchmarks keep their inputs."""
    return Location.of(settings().home) / "benchmarks"


def task(size: Size, stamps: str) -> StampedTask:
    """Next-token training on simulated transcripts, prepared once and kept."""
    codec, table = transcripts()
    return StampedTask(
        name="benchmark",
        decoder=gpt_neox_config(
            vocab_size=VOCABULARY,
            width=size.width,
            layers=size.layers,
            heads=size.heads,
            max_positions=512,
        ),
        documents=table.location,
        validation=table.location,
        seq_len=size.seq_len,
        end_of_text=codec.end_of_text,
        pad=codec.pad,
        seed=0,
        validation_rows=size.batch,
        stamps=stamps,
    )


def fit_config(size: Size, steps: int, save_every: int) -> FitConfig:
    """How it is trained; without evaluation until the end."""
    return FitConfig(
        batch=size.batch,
        micro_batch=size.micro_batch,
        steps=steps,
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(decay="constant", warmup_steps=0),
        evaluation=EvaluationConfig(every=steps),
        checkpoint=CheckpointConfig(every=save_every, keep=1),
        deterministic=False,
    )


def transcripts() -> tuple[TextCodec, Table]:
    """A tokenizer and the token documents of simulated cases, made once."""
    simulator = SimConfig(
        unlabelled_cases=CASES, labelled_cases=1, validation_cases=1, test_cases=1
    )
    raw = support_sim.cached_simulation(simulator, cache())
    redacted = redact_cases(
        [(raw / "cases-unlabelled.parquet", SideRule("unlabelled", "benchmark", 0.5, 0.05))],
        templates=frozenset(t.template_id for t in support_sim.templates(simulator)),
        presidio=False,
        cache=cache(),
        workers=0,
    )
    kept = cache() / f"{FILE}-{VOCABULARY}"
    if not kept.exists():
        texts = [m["text"] for case in redacted.column("messages").to_pylist() for m in case]
        kept.write_text(train_tokenizer(texts, VOCABULARY).json_text)
    codec = codec_of(kept.read_text(), kept.uri)
    return codec, documents(redacted, ("pretrain",), codec, cache(), 0)


def rows(of: LanguageModelling) -> Batch:
    """The first rows of the training stream, in memory."""
    stream = of.train_data()
    return of.collate(stream.samples(range(min(ROWS, stream.epoch_size))))


class WithLoss(nn.Module):
    """A language model whose forward pass gives its mean loss, as Hugging Face models do."""

    def __init__(self, of: LanguageModelling) -> None:
        super().__init__()
        self.model = of.model()
        self._sum: Callable[..., torch.Tensor] = of._sum

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, document_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The mean cross entropy of the batch."""
        batch = {"input_ids": input_ids, "labels": labels, "document_ids": document_ids}
        targets = (labels[:, 1:] != IGNORED).sum()
        return {"loss": self._sum(self.model, batch) / targets}


def stamp_steps(path: str) -> None:
    """From now on append time and processor time of this process after every optimiser step."""
    import torch.distributed as dist
    from torch.optim.optimizer import register_optimizer_step_post_hook

    rank = dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))
    # Open until the process ends: a line must be there the moment it is written.
    file = Path(f"{path}-{rank}").open("a", buffering=1)  # noqa: SIM115

    def note(*_: Any) -> None:
        file.write(f"{time.monotonic():.6f} {time.process_time():.6f}\n")

    register_optimizer_step_post_hook(note)
