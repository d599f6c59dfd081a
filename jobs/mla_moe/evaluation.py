"""A trained model on the test side: its loss, and how evenly its experts were used over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from heliostat.config.resources import ResourcesConfig
from heliostat.data.stream import Stream
from heliostat.errors import DataError
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.predict import predict
from jobs.mla_moe.config import DataConfig
from jobs.mla_moe.tasks import MixtureLanguageModel
from models.balance import max_violation
from models.contiguous_cache import ContiguousCache
from models.decoder import DecoderLM

BATCH = 32


@dataclass(frozen=True)
class Evaluation:
    """What a model reached."""

    loss: float
    """Nats a token."""
    tokens: int
    """Targets that it was measured on."""
    load: list[list[float]]
    """By layer of experts, the assignments of each expert."""
    groups_per_token: list[float]
    """By layer of experts, groups that a token is sent to on average."""
    most_groups_per_token: int
    """Groups that any one token was sent to at most, of all tokens and layers."""
    cache_bytes_per_token: int
    """Of a live cache in float32."""

    @property
    def max_violations(self) -> list[float]:
        """MaxVio of each layer over the whole test side."""
        return [max_violation(torch.tensor(load)) for load in self.load]

    @property
    def max_violation(self) -> float:
        """The largest of them; 0 without experts."""
        return max(self.max_violations, default=0.0)

    def metrics(self) -> dict[str, float]:
        """The figures of a run."""
        groups = self.groups_per_token
        return {
            "loss": self.loss,
            "bits_per_token": self.loss / float(np.log(2)),
            "maxvio_global": self.max_violation,
            "groups_per_token": sum(groups) / len(groups) if groups else 0.0,
            "cache_bytes_per_token": float(self.cache_bytes_per_token),
        }


def evaluate(
    name: str,
    task: MixtureLanguageModel,
    weights: Location,
    data: DataConfig,
    *,
    run: Run,
    resources: ResourcesConfig,
) -> Evaluation:
    """Measure weights on the test rows, as a stage of the run."""
    rows = task.held_out(is_validation=False, limit=data.test_rows)

    def work(folder: Location) -> dict[str, Any]:
        return asdict(measure(task, weights, rows, resources))

    digest = {"weights": weights.uri, "rows": rows.fingerprint, "task": repr(task)}
    return evaluation_from(run.stage(name, digest, work))


def measure(
    task: MixtureLanguageModel, weights: Location, rows: Stream, resources: ResourcesConfig
) -> Evaluation:
    """Measure weights on some rows."""
    found = predict(task, task.measured, weights, rows, resources=resources, batch_size=BATCH)
    return evaluation_from(_summed(task, found.astype(np.float64)))


def evaluation_from(values: Mapping[str, Any]) -> Evaluation:
    """The evaluation that a stage has kept."""
    return Evaluation(**values)


def live_cache_bytes(model: DecoderLM) -> int:
    """Bytes that a token takes in a cache of float32, of the cache's own tensors."""
    return ContiguousCache(model.cache_layouts(), capacity=16).bytes_per_token


def _summed(task: MixtureLanguageModel, found: np.ndarray) -> dict[str, Any]:
    config = task.decoder
    experts = config.experts
    assert experts is not None
    layers = config.layers - min(experts.dense_layers, config.layers)
    cuts = np.cumsum([2, layers * experts.routed, layers * experts.groups])
    totals, loads, sent, most = np.split(found, cuts, axis=1)
    rows = len(found)
    if not totals[:, 1].any():
        raise DataError(f"{task.test}: no token of the {rows} rows measured is a target")
    model = task.meta_model()
    assert isinstance(model, DecoderLM)
    by_layer = sent.reshape(rows, layers, experts.groups)
    return {
        "loss": float(totals[:, 0].sum() / totals[:, 1].sum()),
        "tokens": int(totals[:, 1].sum()),
        "load": loads.sum(0).reshape(layers, experts.routed).tolist(),
        "groups_per_token": (by_layer.sum((0, 2)) / (rows * task.length)).tolist(),
        "most_groups_per_token": int(most.max(initial=0)),
        "cache_bytes_per_token": live_cache_bytes(model),
    }
