"""Evaluation during training: every row counted exactly once, on any number of workers."""

from __future__ import annotations

from typing import Any

import torch

from heliostat.data.reader import evaluation_batches
from heliostat.data.stream import Stream
from heliostat.train.collectives import Ranks
from heliostat.train.engine import to_device
from heliostat.train.task import Task


def evaluate(
    task: Task, engine: Any, stream: Stream, *, batch_size: int, ranks: Ranks
) -> dict[str, float]:
    """Metrics over the whole stream: sum of totals by sum of counts. Called by all ranks.

    Every rank runs the same number of batches, since a sharded model needs all ranks for every
    forward pass; those that only fill up are not counted.
    """
    engine.eval()
    totals: dict[str, float] = {}
    counts: dict[str, float] = {}
    rows = 0
    with torch.no_grad():
        for samples, is_filler in evaluation_batches(
            stream, batch_size, ranks.rank, ranks.world_size
        ):
            batch = to_device(task.collate(samples), ranks.device)
            tallies = task.evaluate(engine, batch)
            for name, tally in tallies.items():
                # A filler only makes the name known: its value, even NaN, must not count.
                total, count = (0.0, 0.0) if is_filler else (float(tally.total), float(tally.count))
                totals[name] = totals.get(name, 0.0) + total
                counts[name] = counts.get(name, 0.0) + count
            rows += 0 if is_filler else len(samples)
    engine.train()
    names = sorted(totals)
    summed = ranks.sum(
        [*(totals[name] for name in names), *(counts[name] for name in names), float(rows)]
    )
    if round(summed[-1]) != stream.epoch_size:
        raise AssertionError(f"evaluated {summed[-1]:.0f} rows of {stream.epoch_size}")
    width = len(names)
    return {
        name: summed[index] / summed[width + index] if summed[width + index] else float("nan")
        for index, name in enumerate(names)
    }
