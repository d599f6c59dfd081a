"""Experts on two processes compute what they compute on one: outputs, gradients, dropping.

Where one of the two does not come to an exchange, the other says which layer it waited in.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from models.decoder_config import DecoderConfig, deepseek_config
from models.expert_config import ExpertsConfig
from models.expert_parallel import ExchangeError
from models.initialise import initialise
from models.mixture import MixtureOfExperts

EXPERTS = ExpertsConfig(
    routed=8, shared=1, per_token=3, width=10, groups=4, groups_per_token=2, gate="sigmoid"
)
CASES = {
    "even": EXPERTS,
    "capped": dataclasses.replace(EXPERTS, capacity_factor=0.8),
    "one process idle": EXPERTS,
    "no rows on one": EXPERTS,
}
SIZE = 2
LIMIT_S = 2.0


def decoder(experts: ExpertsConfig) -> DecoderConfig:
    return deepseek_config(
        vocab_size=2,
        width=24,
        layers=1,
        heads=2,
        head_width=8,
        feed_forward_width=8,
        latent=None,
        experts=experts,
    )


def layer(case: str) -> MixtureOfExperts:
    mixture = MixtureOfExperts(decoder(CASES[case]), 0)
    initialise(mixture, std=0.3, generator=torch.Generator().manual_seed(0))
    if case == "one process idle":
        # All tokens choose experts of the first process only.
        mixture.selection_bias[:4] = 10.0
    return mixture.double()


def inputs(case: str) -> list[torch.Tensor]:
    """What each process has: sequences of 7 tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = [3, 0] if case == "no rows on one" else [3, 3]
    return [torch.randn(count, 7, 24, generator=generator).double() for count in rows]


def apply(
    mixture: MixtureOfExperts, x: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """The output, and how many assignments were dropped."""
    if mixture.config.capacity_factor is None:
        return mixture(x), 0.0
    out, seen = mixture.observed(x, ids)
    return out, float(seen.dropped)


def work(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=SIZE)
    for case in CASES:
        mixture = layer(case)
        shared = mixture.share_out(dist.group.WORLD, rank, SIZE, torch.float64)
        assert not any("experts" in name for name, _ in mixture.named_parameters())
        x = inputs(case)[rank].requires_grad_()
        out, dropped = apply(mixture, x, torch.arange(len(x)) + 10 * rank)
        (out**2).sum().backward()
        saved = {"out": out.detach(), "x": x.grad, "dropped": dropped}
        saved |= {name: one.tensor.grad for name, one in shared.items()}
        saved |= {f"own/{name}": p.grad for name, p in mixture.named_parameters()}
        torch.save(saved, Path(folder) / f"{case}-{rank}.pt")
    dist.destroy_process_group()


def spawned(target: Callable[[int, int, str], None], place: Path) -> Path:
    """The folder, once every rank has done its work there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(target, args=(port, str(place)), nprocs=SIZE)
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spawned(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_does(folder: Path, case: str) -> None:
    ranks = [torch.load(folder / f"{case}-{rank}.pt") for rank in range(SIZE)]
    mixture = layer(case)
    given = inputs(case)
    x = torch.cat(given).requires_grad_()
    ids = torch.cat([torch.arange(len(part)) + 10 * rank for rank, part in enumerate(given)])
    out, expected_dropped = apply(mixture, x, ids)
    (out**2).sum().backward()
    cut = [len(part) for part in given]
    for name, whole in (("out", out.detach()), ("x", x.grad)):
        for rank, part in zip(ranks, whole.split(cut), strict=True):
            torch.testing.assert_close(rank[name], part, atol=1e-10, rtol=1e-10)
    for name in ("gate_up", "down"):
        joined = torch.cat([rank[f"experts.{name}"] for rank in ranks])
        expected = getattr(mixture.experts, name).grad
        torch.testing.assert_close(joined, expected, atol=1e-10, rtol=1e-10)
    for name, parameter in mixture.named_parameters():
        if not name.startswith("experts."):
            total = sum(rank[f"own/{name}"] for rank in ranks)
            # The router works in float32 by design, so its sums are rounded in another order.
            limit = 1e-5 * float(parameter.grad.abs().max()) if "router" in name else 1e-10
            torch.testing.assert_close(total, parameter.grad, atol=limit, rtol=0.0)
    dropped = sum(rank["dropped"] for rank in ranks)
    assert dropped == expected_dropped
    assert (dropped > 0) == (case == "capped")


def pass_through(layers: list[MixtureOfExperts], x: torch.Tensor) -> torch.Tensor:
    for one in layers:
        x = one(x)
    return x


def stay_away_from_forward(rank: int, layers: list[MixtureOfExperts], x: torch.Tensor) -> None:
    """Rank 1 never comes to the second layer."""
    pass_through(layers if rank == 0 else layers[:1], x)


def stay_away_from_backward(rank: int, layers: list[MixtureOfExperts], x: torch.Tensor) -> None:
    """Rank 1 leaves out the backward pass."""
    total = pass_through(layers, x).sum()
    if rank == 0:
        total.backward()


def leave_out_a_layer(rank: int, layers: list[MixtureOfExperts], x: torch.Tensor) -> None:
    """Rank 1 goes to the second layer at once."""
    pass_through(layers if rank == 0 else layers[1:], x)


def drop_elsewhere(rank: int, layers: list[MixtureOfExperts], x: torch.Tensor) -> None:
    """Only rank 0 decides what to drop."""
    if rank == 0:
        layers[1].observed(x, None)


FAULTS = (stay_away_from_forward, stay_away_from_backward, leave_out_a_layer, drop_elsewhere)


def fail(rank: int, port: int, folder: str) -> None:
    """Save, for every fault, what it raised on this rank and after how many seconds."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=SIZE)
    limit = timedelta(seconds=LIMIT_S)
    groups = [dist.new_group(list(range(SIZE)), timeout=limit) for _ in FAULTS]
    for fault, group in zip(FAULTS, groups, strict=True):
        capped = dataclasses.replace(EXPERTS, capacity_factor=0.8)
        layers = [MixtureOfExperts(decoder(capped), number) for number in range(2)]
        for one in layers:
            initialise(one, std=0.3, generator=torch.Generator().manual_seed(0))
            one.share_out(group, rank, SIZE, torch.float32)
        x = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(rank)).requires_grad_()
        raised = ""
        began = time.monotonic()
        try:
            fault(rank, layers, x)
        except ExchangeError as error:
            raised = str(error)
        saved = {"raised": raised, "seconds": time.monotonic() - began}
        torch.save(saved, Path(folder) / f"{fault.__name__}-{rank}.pt")
        # Whoever stayed away must not be taken for one that is gone.
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spawned(fail, tmp_path_factory.mktemp("failures"))


@pytest.mark.parametrize(
    ("fault", "exchange"),
    [
        (stay_away_from_forward, "row counts"),
        (stay_away_from_backward, "slopes of partial sums"),
        (drop_elsewhere, "affinities"),
    ],
)
def test_who_waits_in_vain_fails_within_the_limit_and_names_the_layer(
    failures: Path, fault: Callable[..., None], exchange: str
) -> None:
    waited, absent = (torch.load(failures / f"{fault.__name__}-{rank}.pt") for rank in range(SIZE))
    assert re.match(
        rf"layer of experts 1, exchange of {exchange}: rank 0 waited \d+\.\d s in vain for its "
        r"group of 2: .*Timed out waiting 2000ms",
        waited["raised"],
    )
    assert LIMIT_S <= waited["seconds"] < 60.0
    assert absent["raised"] == ""


def test_ranks_in_different_layers_both_fail_at_once(failures: Path) -> None:
    for rank in range(SIZE):
        found = torch.load(failures / f"leave_out_a_layer-{rank}.pt")
        assert found["raised"] == (
            f"layer of experts {rank}, exchange of row counts: rank {rank} is there, but the 2 "
            "processes of its group are in layers [0, 1]"
        )
        assert found["seconds"] < LIMIT_S
