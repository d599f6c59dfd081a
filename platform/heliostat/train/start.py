"""The beginning of every worker: seeds, model, engine, and the newest whole checkpoint."""

from __future__ import annotations

import random
import tempfile
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heliostat.checkpoint.buffers import BUFFERS_NAME, restore_buffers
from heliostat.checkpoint.manifest import Manifest, TrainState
from heliostat.checkpoint.restore import (
    fetch,
    load,
    must_reshard,
    newest_whole,
    reshard,
    restore_random_state,
    whole,
)
from heliostat.checkpoint.retention import collect_orphans
from heliostat.data.reader import batch_plan
from heliostat.data.stream import Stream
from heliostat.errors import CheckpointError
from heliostat.storage import Location
from heliostat.train.collectives import Ranks
from heliostat.train.engine import DTYPES, build_engine, build_optimizer
from heliostat.train.shared_weights import FILES_PREFIX, SharedWeights
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
    shared: SharedWeights | None
    """The weights that DeepSpeed does not know; None: there are none."""
    state: TrainState
    stream: Stream
    attempt_name: str
    """Unique for this start of the worker group, the same on every rank."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about it."""
    committed_step: int | None = None
    """Step of the newest checkpoint of this very training."""


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
    # That would also fill every new buffer with NaN, to show up who reads one before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
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
    own = found[1].state.step if found is not None else None
    if found is not None:
        _check_belongs(spec, stream, *found)
    elif spec.branch_from is not None:
        found = whole(spec.branch_from, ranks.rank, ranks.world_size, ranks.broadcast, ranks.gather)
        _check_data(stream, *found)
        notes.append(f"branches off from {spec.branch_from.uri}")
    universal = found is not None and must_reshard(found[1], ranks.world_size)
    model = spec.task.model()
    if found is None and spec.start_from is not None:
        load_weights(model, spec.start_from)
    plan = batch_plan(spec.config.batch, spec.config.micro_batch, ranks.world_size)
    shared = None
    if spec.expert_parallel is not None:
        shared = SharedWeights(
            model, ranks, spec.expert_parallel, spec.expert_timeout_s, spec.config, build_optimizer,
            DTYPES[spec.config.precision],
        )  # fmt: skip
    engine = build_engine(spec.task, model, spec.config, plan, universal=universal)
    if found is None:
        # The optimiser's state is made lazily; dropout must not depend on how the model was made.
        seed_everything(spec.config.seed + ranks.rank)
        return Start(engine, shared, BEGINNING, stream, attempt_name, notes)
    folder, manifest = found
    with tempfile.TemporaryDirectory(prefix="heliostat-restore-") as scratch:
        # Ranks of a node share the folder that its first rank made.
        scratch_here = Path(_per_node(ranks, scratch))
        _restore(engine, folder, manifest, ranks, scratch_here, shared)
        ranks.barrier()
    state = manifest.state if own is not None else _branched(manifest.state)
    return Start(engine, shared, state, stream, attempt_name, notes, own)


def seed_everything(seed: int) -> None:
    """Seed the process's generators: a train function owns its process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _restore(
    engine: Any,
    folder: Location,
    manifest: Manifest,
    ranks: Ranks,
    scratch: Path,
    shared: SharedWeights | None,
) -> None:
    is_first = ranks.local_rank == 0
    parent = fetch(folder, scratch, is_first)
    ranks.barrier()
    source = parent
    if must_reshard(manifest, ranks.world_size):
        source = reshard(parent, manifest.tag, scratch, is_first)
        ranks.barrier()
    load(engine, source, manifest.tag)
    has_shared = any(record.name.startswith(FILES_PREFIX) for record in manifest.files)
    if has_shared != (shared is not None):
        raise CheckpointError(
            f"checkpoint {folder.uri} was written with "
            + ("experts that are shared out" if has_shared else "experts on every worker")
            + f": set resources.expert_parallel to {'a number' if has_shared else 'null'}"
        )
    if shared is not None:
        shared.restore(parent / manifest.tag)
    buffers = parent / manifest.tag / BUFFERS_NAME
    if buffers.exists():
        restore_buffers(engine.module, buffers)
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


def _branched(state: TrainState) -> TrainState:
    """The donor's state without its best weights, which are not here."""
    return replace(state, best_value=None, best_step=None, evaluations_since_best=0)


def _check_belongs(spec: FitSpec, stream: Stream, folder: Location, manifest: Manifest) -> None:
    if manifest.config_digest != spec.digest:
        raise CheckpointError(
            f"checkpoint {folder.uri} belongs to another training (config {manifest.config_digest}"
            f", now {spec.digest}): start a new run for the new config"
        )
    _check_data(stream, folder, manifest)


def _check_data(stream: Stream, folder: Location, manifest: Manifest) -> None:
    if manifest.stream_fingerprint != stream.fingerprint:
        raise CheckpointError(
            f"the training data changed since checkpoint {folder.uri}: its stream was "
            f"{manifest.stream_fingerprint}, now it is {stream.fingerprint}"
        )
