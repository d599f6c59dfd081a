"""Prediction gives every row's output in the stream's order, on any number of workers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from trainings import EVAL_ROWS, resources

from heliostat.config.resources import ResourcesConfig
from heliostat.errors import InfeasibleError
from heliostat.train.predict import predict
from heliostat.train.weights import load_weights, write_weights
from tiny_task import TinyTask


def ids_and_logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(batch["tokens"])[:, -1]
    return torch.cat([batch["ids"][:, None].float(), logits], dim=1)


def test_rows_come_back_in_order_and_as_from_one_model(
    ray_cluster: None, tiny_task: TinyTask, tmp_path
) -> None:
    from heliostat.storage import Location

    weights = Location.of(tmp_path / "weights")
    trained = replace(tiny_task, seed=5).model()
    write_weights(weights, trained.state_dict(), {})
    stream = tiny_task.eval_data()
    rows = predict(tiny_task, ids_and_logits, weights, stream, resources=resources(2), batch_size=5)
    model = tiny_task.model()
    load_weights(model, weights)
    batch = tiny_task.collate(stream.samples(range(EVAL_ROWS)))
    with torch.inference_mode():
        expected = ids_and_logits(model.eval(), batch).numpy()
    assert rows[:, 0].tolist() == list(range(EVAL_ROWS))
    assert np.allclose(rows, expected, atol=1e-5)


def test_a_worker_that_never_fits_is_refused(ray_cluster: None, tiny_task: TinyTask) -> None:
    huge = ResourcesConfig(cpus_per_worker=500)
    with pytest.raises(InfeasibleError, match="can never be placed"):
        predict(
            tiny_task,
            ids_and_logits,
            tiny_task.evaluation,
            tiny_task.eval_data(),
            resources=huge,
            batch_size=5,
        )
