"""Speed is work asked for by time spent on it, and a share of the peak only where that is known."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from heliostat.checkpoint.restore import random_state, restore_random_state
from heliostat.cluster.hardware import peak_flops
from heliostat.train.collectives import Ranks
from heliostat.train.progress import describe
from heliostat.train.telemetry import Telemetry, library_versions, peak_memory_bytes

CPU = Ranks(rank=1, world_size=1, local_rank=0, device=torch.device("cpu"))
H100 = "NVIDIA H100 80GB HBM3"


@dataclass(frozen=True)
class Counting:
    """The part of a task that speed needs."""

    def flops(self, batch: dict[str, torch.Tensor]) -> float:
        return 1e12 * len(batch["ids"])


BATCHES = [{"ids": torch.zeros(3)}, {"ids": torch.zeros(2)}]


def test_speed_is_counts_and_flops_by_seconds_and_a_cpu_has_no_mfu() -> None:
    speed = Telemetry("tiny", CPU, "fp32").speed({"tokens": 300.0}, BATCHES, Counting(), 2.0)
    assert speed == {"tokens_per_s": 150.0, "flops_per_s": 2.5e12}


def test_mfu_is_the_share_of_the_dense_peak_of_the_workers_own_work(monkeypatch) -> None:
    telemetry = Telemetry("tiny", CPU, "bf16")
    monkeypatch.setattr(telemetry, "_device_name", H100)
    speed = telemetry.speed({"tokens": 300.0}, BATCHES, Counting(), 2.0)
    peak = peak_flops(H100, "bf16")
    assert peak is not None
    assert speed["mfu"] == pytest.approx(2.5e12 / peak)


def test_more_than_the_peak_is_never_shown(monkeypatch, caplog) -> None:
    telemetry = Telemetry("tiny", CPU, "bf16")
    monkeypatch.setattr(telemetry, "_device_name", H100)
    assert "mfu" not in telemetry.speed({"tokens": 300.0}, BATCHES, Counting(), 1e-6)
    assert "the FLOP count, the time or the device is wrong" in caplog.text


def test_progress_weighs_speed_by_time_and_tells_the_share_of_waiting_for_data() -> None:
    rows = [
        {"loss": 2.0, "step_s": 1.0, "data_wait_s": 0.5, "tokens_per_s": 100.0},
        {"loss": 1.5, "step_s": 3.0, "data_wait_s": 0.5, "tokens_per_s": 20.0},
    ]
    assert describe(rows) == "loss 1.5000, 40 tokens/s, data wait 25%"


def test_versions_and_memory_are_those_of_this_process() -> None:
    assert library_versions()["torch"].startswith("2.")
    assert 10e6 < peak_memory_bytes(torch.device("cpu")) < 1e12


def test_random_states_go_on_exactly_where_they_were_saved(tmp_path) -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    random.gauss(0, 1)
    torch.save(random_state(), tmp_path / "random.pt")
    first = draw()
    draw()
    restore_random_state(tmp_path / "random.pt")
    assert draw() == first
