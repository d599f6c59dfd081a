"""Apply a trained model to every row of a stream, in parallel, without a process group.

Prediction needs no gradient, no sharding and no order, so it runs as plain Ray tasks: worker r of n
takes rows r, r + n, ... and the driver puts them back in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from heliostat.cluster.ray_cluster import enter_worker, worker_runtime_env
from heliostat.config.resources import ONE, ResourcesConfig
from heliostat.data.stream import Sample, Stream
from heliostat.errors import DataError
from heliostat.storage import Location
from heliostat.train.engine import to_device
from heliostat.train.task import Batch
from heliostat.train.weights import load_weights


class Predictor(Protocol):
    """The part of a task that prediction needs."""

    def model(self) -> nn.Module:
        """The model; its weights are replaced."""
        ...

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack samples."""
        ...


Output = Callable[[nn.Module, Batch], torch.Tensor]


def predict(
    task: Predictor,
    output: Output,
    weights: Location,
    stream: Stream,
    *,
    resources: ResourcesConfig,
    batch_size: int,
) -> NDArray[np.float32]:
    """One output row for each row of the stream's first epoch, in its order.

    Raises `InfeasibleError` when the cluster can never hold one worker, `DataError` without rows.

    Args:
        task: builds the model and collates; picklable.
        output: what to keep of a batch, [B, ...]; picklable, usually a method of the task.
        weights: a weights folder.
        stream: the rows.
        resources: workers and what each of them needs.
        batch_size: rows of one forward pass.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from heliostat.cluster.feasibility import ResourceRequest, read_cluster, require_feasible

    if stream.epoch_size == 0:
        raise DataError("there is nothing to predict: the stream has no rows")
    one = replace(resources, workers=ONE)
    require_feasible(ResourceRequest.of(one), read_cluster())
    workers = min(resources.workers.high, -(-stream.epoch_size // batch_size))
    share = ray.remote(
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
        # Who calls from an actor that Ray Tune placed must not look for room in that place.
        scheduling_strategy=PlacementGroupSchedulingStrategy(None),
        runtime_env=worker_runtime_env(gpu=bool(resources.gpus_per_worker)),
    )(predict_share)
    parts = ray.get(
        [
            share.remote(task, output, weights, stream, range(r, stream.epoch_size, workers),
                         batch_size, bool(resources.gpus_per_worker))
            for r in range(workers)
        ]
    )  # fmt: skip
    first = parts[0]
    rows = np.empty((stream.epoch_size, *first.shape[1:]), dtype=np.float32)
    for rank, part in enumerate(parts):
        rows[rank::workers] = part
    return rows


def predict_share(
    task: Predictor,
    output: Output,
    weights: Location,
    stream: Stream,
    positions: range,
    batch_size: int,
    use_gpu: bool,
) -> NDArray[np.float32]:
    """The outputs for some positions, in their order."""
    enter_worker(gpu=use_gpu)
    device = torch.device("cuda" if use_gpu else "cpu")
    model = task.model()
    load_weights(model, weights)
    model.to(device).eval()
    outputs = []
    with torch.inference_mode():
        for start in range(0, len(positions), batch_size):
            samples = stream.samples(list(positions[start : start + batch_size]))
            batch = to_device(task.collate(samples), device)
            outputs.append(output(model, batch).float().cpu().numpy())
    return np.concatenate(outputs)
