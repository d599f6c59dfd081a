"""The beginning of every worker: seeds, model, engine, and the newest whole checkpoint."""

from __future__ import annotations

import random
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heliostat.checkpoint.manifest import Manifest, TrainState
from heliostat.checkpoint.restore import (
    fetch,
    load,
    must_reshard,
    newest_whole,
    reshard,
    restore_random_state,
)
from heliostat.checkpoint.retention import collect_orphans
from heliostat.data.reader import batch_plan
from heliostat.data.stream import Stream
from heliostat.errors import CheckpointError
from heliostat.storage import Location
from heliostat.train.collectives import Ranks
from heliostat.train.engine import build_engine
from heliostat.train.spec import FitSpec
from heliostat.train.weights import load_weights

BEGINNING = TrainState(
    step=0,
    position=0,
    counts={},
    best_value=None,
    best_step=None,
    evaluations_since_best=0,
    metrics={},
    trained_s=0.0,
)


@dataclass(frozen=True)
class Start:
    """What the loop goes on from."""

    engine: Any
    state: TrainState
    stream: Stream
    attempt_name: str
    """Unique for this start of the worker group, the same on every rank."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about it."""


def current_ranks(spec: FitSpec) -> Ranks:
    """This worker's place, from Ray Train."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    device = ray.train.torch.get_device() if spec.gpus_per_worker else torch.device("cpu")
    return Ranks(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        device=device,
    )


def start(spec: FitSpec, ranks: Ranks, attempt: int) -> Start:
    """Build the engine and restore the newest checkpoint. Called by all ranks."""
    seed_everything(spec.config.seed + ranks.rank)
    torch.use_deterministic_algorithms(spec.config.deterministic, warn_only=True)
    attempt_name = ranks.broadcast(f"{attempt:03d}{uuid.uuid4().hex[:8]}")
    orphans = collect_orphans(spec.checkpoints) if ranks.rank == 0 else []
    # The broadcast in it keeps the other ranks from looking before the orphans are gone.
    found, notes = newest_whole(
        spec.checkpoints, ranks.rank, ranks.world_size, ranks.broadcast, ranks.gather
    )
    if orphans:
        notes.append(f"removed unfinished checkpoints: {', '.join(orphans)}")
    if found is not None or attempt > 1:
        place = found[1].tag if found is not None else "the beginning"
        notes.append(f"goes on from {place}, on {ranks.world_size} workers")
    stream = spec.task.train_data()
    if found is not None:
        _check_belongs(spec, stream, *found)
    universal = found is not None and must_reshard(found[1], ranks.world_size)
    model = spec.task.model()
    if found is None and spec.start_from is not None:
        load_weights(model, spec.start_from)
    plan = batch_plan(spec.config.batch, spec.config.micro_batch, ranks.world_size)
    engine = build_engine(spec.task, model, spec.config, plan, universal=universal)
    if found is None:
        # The optimiser's state is made lazily; dropout must not depend on how the model was made.
        seed_everything(spec.config.seed + ranks.rank)
        return Start(engine, BEGINNING, stream, attempt_name, notes)
    folder, manifest = found
    with tempfile.TemporaryDirectory(prefix="heliostat-restore-") as scratch:
        # Ranks of a node share the folder that its first rank made.
        shared = Path(_per_node(ranks, scratch))
        _restore(engine, folder, manifest, ranks, shared)
        ranks.barrier()
    return Start(engine, manifest.state, stream, attempt_name, notes)


def seed_everything(seed: int) -> None:
    """Seed the process's generators: a train function owns its process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _restore(
    engine: Any, folder: Location, manifest: Manifest, ranks: Ranks, scratch: Path
) -> None:
    is_first = ranks.local_rank == 0
    parent = fetch(folder, scratch, is_first)
    ranks.barrier()
    source = parent
    if must_reshard(manifest, ranks.world_size):
        source = reshard(parent, manifest.tag, scratch, is_first)
        ranks.barrier()
    load(engine, source, manifest.tag)
    mine = parent / manifest.tag / f"random-{ranks.rank:05d}.pt"
    if mine.exists():
        restore_random_state(mine)
    else:
        # A rank that did not exist before: a state of its own, the same at every such restart.
        seed_everything(manifest.state.step * 1009 + ranks.rank)


def _per_node(ranks: Ranks, scratch: str) -> str:
    """The scratch folder of the first rank on this node."""
    import socket

    places = ranks.gather((socket.gethostname(), ranks.local_rank, scratch))
    here = socket.gethostname()
    return str(next(path for host, local, path in places if host == here and local == 0))


def _check_belongs(spec: FitSpec, stream: Stream, folder: Location, manifest: Manifest) -> None:
    if manifest.config_digest != spec.digest:
        raise CheckpointError(
            f"checkpoint {folder.uri} belongs to another training (config {manifest.config_digest}"
            f", now {spec.digest}): start a new run for the new config"
        )
    if manifest.stream_fingerprint != stream.fingerprint:
        raise CheckpointError(
            f"the training data changed since checkpoint {folder.uri}: its stream was "
            f"{manifest.stream_fingerprint}, now it is {stream.fingerprint}"
        )
