"""Experts on two processes: our layer against DeepSpeed's AutoEP, same weights and rows.

Two processes of one thread each hold half of the experts of every layer (gloo, float32). Both sides
live in the same two processes and take turns, every other round in the other order; a sample is the
wall-clock time from one barrier to the next, or the processor time of both processes in it, a ratio
that of two samples of one round. AutoEP replaces the experts of transformers' deepseek_v2.

- training step: the whole model, forward, backward and AdamW by DeepSpeed without ZeRO; it has the
  attention of transformers in it on their side and ours on ours
- layer of experts: one of them alone, forward and backward

4096 tokens in rows of 128, half of them for each process, at the `laptop` size of mla_moe and 4
times as wide (`language_models`). That the losses are equal is checked before anything is measured.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from benchmarks.language_models import ROW, TOKENS, both, training_model
from benchmarks.result import Measure, at_least, options, report
from benchmarks.turns import free_port
from heliostat.data.reader import batch_plan
from heliostat.train.collectives import Ranks
from heliostat.train.config import FitConfig, OptimizerConfig
from heliostat.train.engine import (
    build_optimizer,
    decay_groups,
    deepspeed_config,
    prepare_deepspeed,
)
from heliostat.train.shared_weights import SharedWeights
from models.decoder import DecoderLM
from models.losses import next_token_targets

WORKERS = 2
LABELS = {1: "laptop size", 4: "4 times as wide"}
STEPS_ALIKE = 3
"""Steps whose losses are compared."""
TIMEOUT_S = 300.0
CONFIG = FitConfig(
    batch=TOKENS // ROW,
    micro_batch=TOKENS // ROW // WORKERS,
    steps=1,
    optimizer=OptimizerConfig(lr=1e-4),
    clip=None,
)

Call = Callable[[], object]
Times = Mapping[str, Sequence[Sequence[tuple[float, float]]]]
"""By what was measured, of ours and of theirs: wall-clock and processor time by round, seconds."""


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=20)
    parser.add_argument("--scales", type=int, nargs="+", choices=LABELS, default=[*LABELS])
    given = parser.parse_args()
    measures: list[Measure] = []
    for scale in given.scales:
        for name, sides in measure(scale, given.pairs).items():
            title = f"{name}, {WORKERS} processes, {LABELS[scale]}: AutoEP / ours"
            (wall, cpu), (peer_wall, peer_cpu) = (zip(*side, strict=True) for side in sides)
            measures.append(at_least(title, wall, peer_wall, 1.0))
            measures.append(at_least(f"{title}, processor time", cpu, peer_cpu, 1.0))
    report("expert_parallel", measures, {}, given.out)


def measure(scale: int, rounds: int) -> Times:
    """The times of one size."""
    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as folder:
        times = Path(folder) / "times.json"
        mp.spawn(work, args=(free_port(), scale, rounds, times), nprocs=WORKERS)
        found: Times = json.loads(times.read_text(encoding="utf-8"))
        return found


def work(rank: int, port: int, scale: int, rounds: int, times: Path) -> None:
    """What each process does; rank 0 writes the times."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORKERS), DS_ACCELERATOR="cpu",
    )  # fmt: skip
    torch.set_num_threads(1)
    prepare_deepspeed()
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    config = training_model(scale)
    ours, theirs = both(config)
    rows = torch.randint(256, (CONFIG.batch, ROW), generator=torch.Generator().manual_seed(1))
    mine = rows[rank::WORKERS]
    step_ours, step_theirs = our_step(rank, ours, mine), autoep_step(theirs, mine)
    for _ in range(STEPS_ALIKE):
        difference = abs(step_ours() - step_theirs())
        assert difference < 1e-4, difference
    generator = torch.Generator().manual_seed(rank)
    x, slopes = torch.randn(2, *mine.shape, config.width, generator=generator)
    layers = (ours.decoder.blocks[1].feed_forward, theirs.model.layers[1].mlp)
    found = {
        "training step": in_turns(step_ours, step_theirs, rounds),
        "layer of experts": in_turns(*(layer_pass(one, x, slopes) for one in layers), rounds),
    }
    if rank == 0:
        times.write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def our_step(rank: int, model: DecoderLM, ids: torch.Tensor) -> Callable[[], float]:
    """A training step of ours, as `heliostat.train.step` takes it."""
    ranks = Ranks(rank, WORKERS, rank, torch.device("cpu"))
    shared = SharedWeights(model, ranks, WORKERS, TIMEOUT_S, CONFIG, build_optimizer, torch.float32)
    engine = initialized(model, build_optimizer(decay_groups(model), CONFIG.optimizer), {})
    targets = next_token_targets(ids)
    count = int((targets >= 0).sum())

    def step() -> float:
        loss = engine(ids, targets_BT=targets) / count
        engine.backward(loss)
        shared.reduce_gradients()
        engine.step()
        shared.step(CONFIG.optimizer.lr, 1.0)
        return float(loss.detach())

    return step


def autoep_step(model: Any, ids: torch.Tensor) -> Callable[[], float]:
    """A training step of transformers' model with its experts replaced by AutoEP's."""
    sharing = {"enabled": True, "autoep_size": WORKERS, "preset_model": "deepseek_v2"}
    engine = initialized(
        model.train(),
        # Called when the experts have been replaced.
        lambda _: build_optimizer(decay_groups(model), CONFIG.optimizer),
        {"expert_parallel": sharing},
    )

    def step() -> float:
        loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
        engine.backward(loss)
        engine.step()
        return float(loss.detach())

    return step


def initialized(model: nn.Module, optimizer: Any, extra: Mapping[str, object]) -> Any:
    """DeepSpeed's engine, the same for both."""
    import deepspeed

    plan = batch_plan(CONFIG.batch, CONFIG.micro_batch, WORKERS)
    trained = sum(one.numel() for one in model.parameters())
    config = deepspeed_config(CONFIG, plan, trained=trained, universal=False)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config={**config, **extra})
    return engine


def layer_pass(layer: nn.Module, x: torch.Tensor, slopes: torch.Tensor) -> Call:
    """Forward and backward of one layer."""
    leaf = x.clone().requires_grad_()

    def call() -> None:
        layer(leaf).backward(slopes)

    return call


def in_turns(ours: Call, theirs: Call, rounds: int) -> list[list[tuple[float, float]]]:
    """The times of both in every round, after one to warm up."""
    calls = (ours, theirs)
    taken: list[list[tuple[float, float]]] = [[], []]
    ours(), theirs()
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            taken[side].append(times_s(calls[side]))
    return taken


def times_s(call: Call) -> tuple[float, float]:
    """Wall-clock time until all processes have done it, and the processor time of all of them."""
    dist.barrier()
    began, used = time.perf_counter(), time.process_time()
    call()
    used_s = torch.tensor(time.process_time() - used, dtype=torch.float64)
    # Nobody has the sum before all are there.
    dist.all_reduce(used_s)
    return time.perf_counter() - began, float(used_s)


if __name__ == "__main__":
    main()
