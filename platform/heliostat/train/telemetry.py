"""Speed, memory and Prometheus metrics of a training.

Speed counts only targets (padding is no work anybody asked for) and only time spent in steps
(restarts are not speed). The share of the device's peak, MFU, is given only where that is known.
"""

from __future__ import annotations

import logging
import platform
import resource
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from heliostat.cluster.flops import model_flops_utilisation
from heliostat.errors import Fault
from heliostat.train.collectives import Ranks
from heliostat.train.monitor import Row
from heliostat.train.task import Batch, Task

logger = logging.getLogger(__name__)

PUBLISHED = {
    "loss": "Training loss of the global batch",
    "grad_norm": "Norm of the global gradient before clipping",
    "lr": "Learning rate",
    "step_s": "Seconds of an optimiser step",
    "data_wait_s": "Seconds of the step spent waiting for data",
    "mfu": "Share of the device's dense peak that the model's own FLOPs reach",
}


class Telemetry:
    """Derives speed from steps and publishes rank 0's metrics."""

    def __init__(self, task_name: str, ranks: Ranks, precision: str) -> None:
        self._ranks = ranks
        self._precision = precision
        self._device_name = (
            torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else None
        )
        self._gauges = _gauges(task_name) if ranks.rank == 0 else {}

    def speed(
        self,
        counts: Mapping[str, float],
        micro_batches: Sequence[Batch],
        task: Task,
        seconds: float,
    ) -> dict[str, float]:
        """Targets a second of each kind, achieved FLOP/s of a worker, and MFU where it is known."""
        speeds = {f"{name}_per_s": value / seconds for name, value in counts.items()}
        flops = sum(task.flops(batch) for batch in micro_batches)
        if flops:
            speeds["flops_per_s"] = flops / seconds
            speeds |= self._utilisation(flops, seconds)
        return speeds

    def _utilisation(self, flops: float, seconds: float) -> dict[str, float]:
        try:
            share = model_flops_utilisation(flops, seconds, 1, self._device_name, self._precision)
        except Fault as error:
            # More than the peak: the task counts its FLOPs wrongly. A wrong MFU is not shown.
            logger.warning("%s", error)
            self._device_name = None
            return {}
        return {"mfu": share} if share is not None else {}

    def publish(self, row: Row) -> None:
        """Set the Prometheus gauges of this training."""
        for name, gauge in self._gauges.items():
            if name in row:
                gauge.set(row[name])


@cache
def library_versions() -> dict[str, str]:
    """Versions that decide whether a checkpoint can be read; reading them takes milliseconds."""
    libraries = ("torch", "deepspeed", "ray")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory use so far: of the device on a GPU, else of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _gauges(task_name: str) -> dict[str, Any]:
    from ray.util.metrics import Gauge

    gauges = {}
    for name, description in PUBLISHED.items():
        gauge = Gauge(f"heliostat_{name}", description=description, tag_keys=("task",))
        gauge.set_default_tags({"task": task_name})
        gauges[name] = gauge
    return gauges
