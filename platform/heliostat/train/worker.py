"""What Ray Train runs on every worker: begin, train, and tell the monitor when it breaks."""

from __future__ import annotations

import logging
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from heliostat.cluster.ray_cluster import enter_worker
from heliostat.train.collectives import Ranks
from heliostat.train.engine import prepare_deepspeed
from heliostat.train.failure import is_collateral
from heliostat.train.loop import Loop
from heliostat.train.monitor import Attempt, Monitor, WorkerFailure
from heliostat.train.spec import FitSpec, Outcome
from heliostat.train.start import current_ranks, start

logger = logging.getLogger(__name__)


def train_worker(loop_config: dict[str, FitSpec]) -> dict[str, Any]:
    """The train function of Ray Train; returns an `Outcome` as a dict."""
    spec = loop_config["spec"]
    prepare_process(gpu=bool(spec.gpus_per_worker))
    ranks = current_ranks(spec)
    attempt: Attempt = ranks.broadcast(
        spec.monitor.call(Monitor.begin_attempt) if ranks.rank == 0 else None
    )
    # An exception would only make Ray Train start the workers once more.
    if attempt.has_habit:
        return asdict(Outcome("repeated", 0, attempts=attempt.number))
    if attempt.is_stopping:
        return asdict(Outcome("not begun", 0, attempts=attempt.number))
    loop: Loop | None = None
    try:
        loop = Loop(spec, ranks, start(spec, ranks, attempt.number), attempt.number)
        outcome = asdict(loop.run())
        # Its hooks sit in the graph of gradients, where no garbage collector finds them.
        loop.engine.destroy()
        return outcome
    except Exception as error:
        _tell(spec, ranks, attempt, loop.state.step if loop is not None else 0, error)
        raise
    finally:
        if loop is not None:
            loop.close()


def prepare_process(*, gpu: bool) -> None:
    """Variables and imports of a worker, before it knows what it will train."""
    enter_worker(gpu=gpu)
    # DeepSpeed's autotuner, which is never called, imports mlflow wherever it finds it: a fifth of
    # the time that a worker takes to begin.
    with _hidden("mlflow"):
        prepare_deepspeed()


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Let imports of a module that is not loaded yet fail, as if it were not installed."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def _tell(spec: FitSpec, ranks: Ranks, attempt: Attempt, step: int, error: Exception) -> None:
    """Record why this worker failed; nothing that goes wrong here hides the error itself."""
    failure = WorkerFailure(
        attempt=attempt.number,
        rank=ranks.rank,
        node=socket.gethostname(),
        step=step,
        kind=type(error).__name__,
        message=str(error),
        traceback=traceback.format_exc(),
        is_collateral=is_collateral(error),
    )
    try:
        spec.monitor.call(Monitor.record_failure, failure)
    except Exception as trouble:
        logger.warning("the driver was not told of a failure: %s", trouble)
