"""Experts that are shared out train like DeepSpeed's AutoEP: same weights, batches and optimiser.

AutoEP (deepspeed 0.19.8) replaces the experts of a transformers model, here one that our exporter
wrote. Two processes hold half of the experts each, on both sides.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mixture_task import MODEL, small_task
from torch import nn
from trainings import Trainings, losses

from heliostat.config.int_range import IntRange
from heliostat.config.resources import ResourcesConfig
from heliostat.data.reader import batch_plan, step_positions
from heliostat.storage import Location
from heliostat.train.config import FitConfig, OptimizerConfig, ScheduleConfig, ZeroConfig
from heliostat.train.engine import (
    build_optimizer,
    decay_groups,
    deepspeed_config,
    prepare_deepspeed,
)
from heliostat.train.fit import fit
from jobs.mla_moe.bundle import export_decoder
from jobs.mla_moe.config import BalanceConfig
from jobs.mla_moe.model_config import decoder_config
from jobs.mla_moe.tasks import MixtureLanguageModel
from models.decoder import DecoderLM

pytestmark = pytest.mark.slow

WORKERS = 2
STEPS = 4
CONFIG = FitConfig(
    batch=8,
    micro_batch=4,
    steps=STEPS,
    optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.1),
    schedule=ScheduleConfig(decay="constant", warmup_fraction=0.0),
    clip=None,
    zero=ZeroConfig(stage=1),
)
EXPERTS = dataclasses.replace(MODEL.experts, groups_per_token=2)
MIXTURES = {
    "deepseek_v2": dataclasses.replace(EXPERTS, gate="softmax", normalised=False, scale=1.5),
    "deepseek_v3": dataclasses.replace(EXPERTS, gate="sigmoid", normalised=True, scale=2.5),
}


def moe_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Ours, with AutoEP's experts apart."""
    from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

    groups = [{"name": str(index), **one} for index, one in enumerate(decay_groups(model))]
    return split_params_into_different_moe_groups_for_optimizer(groups)


def train_with_autoep(
    rank: int, port: int, kind: str, task: MixtureLanguageModel, folder: Path
) -> None:
    """What one of two processes does; rank 0 saves the loss of each step, the mean over both."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORKERS), DS_ACCELERATOR="cpu",
    )  # fmt: skip
    torch.set_num_threads(1)
    prepare_deepspeed()
    import deepspeed
    from transformers import AutoModelForCausalLM

    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    model = AutoModelForCausalLM.from_pretrained(folder / kind, dtype=torch.float32).train()
    plan = batch_plan(CONFIG.batch, CONFIG.micro_batch, WORKERS)
    trained = sum(one.numel() for one in model.parameters())
    sharing = {"enabled": True, "autoep_size": WORKERS, "preset_model": kind}
    engine, *_ = deepspeed.initialize(
        model=model,
        # Called when the experts are AutoEP's; ZeRO wants them in groups of their own.
        optimizer=lambda _: build_optimizer(moe_groups(model), CONFIG.optimizer),
        config={
            **deepspeed_config(CONFIG, plan, trained=trained, universal=False),
            "expert_parallel": sharing,
        },
    )
    stream = task.train_data()
    found = []
    for step in range(STEPS):
        (positions,) = step_positions(plan, rank, step * CONFIG.batch)
        ids = task.collate(stream.samples(positions))["input_ids"]
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        mean = loss.detach() / WORKERS
        dist.all_reduce(mean)
        found.append(float(mean))
    if rank == 0:
        held = sum(one.numel() for name, one in model.named_parameters() if ".experts." in name)
        torch.save({"losses": found, "held": held}, folder / f"{kind}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", MIXTURES)
def test_losses_are_those_of_autoep(ray_cluster: None, tmp_path: Path, kind: str) -> None:
    config = decoder_config(dataclasses.replace(MODEL, experts=MIXTURES[kind]))
    task = dataclasses.replace(
        small_task(Location.of(tmp_path)), decoder=config, balance=BalanceConfig(gamma=0.0)
    )
    model = task.model()
    assert isinstance(model, DecoderLM)
    (tmp_path / kind).mkdir()
    export_decoder(model, tmp_path / kind)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(train_with_autoep, args=(port, kind, task, tmp_path), nprocs=WORKERS)
    peer = torch.load(tmp_path / f"{kind}.pt")
    resources = ResourcesConfig(
        workers=IntRange(WORKERS, WORKERS), cpus_per_worker=0.5, expert_parallel=WORKERS
    )
    with Trainings(Location.of(tmp_path / "runs")).run() as run:
        ours = fit(task, CONFIG, run=run, resources=resources)
    experts = sum(one.numel() for name, one in model.named_parameters() if ".experts." in name)
    assert peer["held"] == experts / WORKERS
    assert losses(ours) == pytest.approx(peer["losses"], abs=1e-5)
    assert peer["losses"][0] - peer["losses"][-1] > 0.1
