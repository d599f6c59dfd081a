"""Estimates of small and large trainings, and what they say when something is unknown."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import StringIO

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from heliostat.cluster.cluster_description import parse_cluster
from heliostat.cluster.compute_rate import measured_cpu_rate
from heliostat.cluster.estimate import estimate
from heliostat.cluster.estimate_view import duration, fact_rows, format_estimate, quantity, size
from heliostat.cluster.fit_plan import FitPlan
from heliostat.config.int_range import IntRange
from heliostat.config.resources import ResourcesConfig
from heliostat.errors import ConfigError, DataError
from heliostat.train.config import BatchRampConfig, CheckpointConfig, FitConfig, ZeroConfig
from heliostat.train.task import Batch, LossTerm
from models.counting import PYTHIA, lm_training_flops
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig, gpt_neox_config

SMALL = gpt_neox_config(vocab_size=500, width=64, layers=2, heads=4)
EIGHT_H100 = parse_cluster("cpus=96,gpus=8,memory=1000GB,device=H100 SXM")


@dataclass(frozen=True)
class Pretraining:
    """A language model on rows of one length, whose data are not prepared."""

    config: DecoderConfig = SMALL
    row: int = 64
    name: str = "dapt"

    def model(self) -> nn.Module:
        return DecoderLM(self.config, torch.Generator(device="cpu").manual_seed(0))

    def train_data(self) -> object:
        raise DataError("data/train has no dataset.json")

    def collate(self, samples: object) -> Batch:
        raise AssertionError("there are no samples")

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        logits = model(batch["ids"])
        total = F.cross_entropy(logits.flatten(0, 1), batch["ids"].flatten(), reduction="sum")
        return {"next": LossTerm(total, "tokens")}


@dataclass(frozen=True)
class WithExample(Pretraining):
    """The same, with a made-up batch."""

    def example_batch(self, samples: int) -> Batch:
        return {"ids": torch.zeros(samples, self.row, dtype=torch.long)}


@dataclass(frozen=True)
class ValueDependent(WithExample):
    """A loss that looks at values, which tensors on meta do not have."""

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        assert batch["ids"].max().item() < self.config.vocab_size
        return super().loss(model, batch)


def plan(task: Pretraining, fit: FitConfig, resources: ResourcesConfig) -> FitPlan:
    return FitPlan(
        name=task.name,
        task=task,  # type: ignore[arg-type]
        fit=fit,
        resources=resources,
        tokens_per_sample=task.row,
    )


LARGE = plan(
    WithExample(PYTHIA["1.4b"], row=2048),
    FitConfig(
        batch=1024,
        micro_batch=16,
        steps=14_500,
        precision="bf16",
        zero=ZeroConfig(stage=1),
        activation_checkpointing=True,
        checkpoint=CheckpointConfig(every=1450, keep=2),
    ),
    ResourcesConfig(workers=IntRange(8, 8), gpus_per_worker=1, accelerator_type="H100"),
)
LAPTOP = plan(WithExample(), FitConfig(batch=8, micro_batch=4, steps=10), ResourcesConfig())


def test_a_large_training_is_estimated_in_seconds_without_its_memory() -> None:
    start = time.monotonic()
    (found,) = estimate([LARGE], EIGHT_H100)
    assert time.monotonic() - start < 20
    assert found.parameters.total == 1_414_647_808
    assert found.memory[1].state.device == pytest.approx(7.78e9, rel=1e-3)
    assert found.work is not None
    whole = lm_training_flops(PYTHIA["1.4b"], batch=1024, tokens=2048)
    assert found.work.flops_per_step == pytest.approx(whole, rel=1e-3)
    assert found.seconds == pytest.approx(found.work.flops / (8 * 0.4 * 989e12))
    assert found.placement is not None
    assert found.placement.nodes == 1
    assert found.batch.accumulation == 8
    assert found.notes == ()


def test_memory_of_all_stages_is_given_and_checked_against_the_device() -> None:
    (found,) = estimate([LARGE], EIGHT_H100)
    assert [row.stage for row in found.memory] == [0, 1, 2, 3]
    assert found.memory_limit == 80e9
    assert found.activations is not None
    for row in found.memory:
        assert row.total == row.state.device + found.activations
        assert row.fits is (row.total <= 0.9 * 80e9)


def test_disk_counts_kept_checkpoints_the_best_one_and_the_weights() -> None:
    (found,) = estimate([LARGE], EIGHT_H100)
    n = found.parameters.total
    assert found.disk.checkpoints_kept == 3
    assert found.disk.total == 3 * 14 * n + 4 * n


def test_a_training_that_can_never_be_placed_is_estimated_and_says_so() -> None:
    (found,) = estimate([LARGE], parse_cluster("cpus=2"))
    assert found.placement is None
    assert found.refusal is not None
    assert "can never be placed" in found.refusal
    assert found.seconds is not None


def test_no_time_is_given_where_the_peak_is_unknown() -> None:
    (found,) = estimate(
        [replace(LARGE, resources=ResourcesConfig(workers=IntRange(8, 8), gpus_per_worker=1))],
        parse_cluster("cpus=8,gpus=8,device=NVIDIA H20"),
    )
    assert found.seconds is None
    assert any("nobody states a peak for NVIDIA H20" in note for note in found.notes)


def test_the_device_can_be_named() -> None:
    (found,) = estimate([LARGE], EIGHT_H100, device="A100 80GB")
    assert found.rate is not None
    assert found.rate.flops_per_s == 312e12


def test_a_cpu_training_is_timed_by_a_measured_rate_and_says_so() -> None:
    (found,) = estimate([LAPTOP], parse_cluster("cpus=2,memory=16GB"))
    assert found.rate is not None
    assert found.rate.is_per_machine
    assert "measured" in found.rate.source
    assert found.memory_limit == 16e9
    assert found.seconds is not None
    assert found.seconds > 0


def test_unprepared_data_fall_back_to_the_formula_with_a_note() -> None:
    (found,) = estimate([replace(LAPTOP, task=Pretraining())], parse_cluster("cpus=2"))  # type: ignore[arg-type]
    assert found.activations is None
    assert found.work is not None
    matrices = found.parameters.total - found.parameters.embedding
    assert found.work.flops_per_step == 6 * matrices * 8 * 64
    assert any("not prepared" in note for note in found.notes)


def test_a_loss_that_needs_values_is_measured_on_the_cpu() -> None:
    exact, (found,) = (
        estimate([LAPTOP], parse_cluster("cpus=2"))[0],
        estimate([replace(LAPTOP, task=ValueDependent())], parse_cluster("cpus=2")),  # type: ignore[arg-type]
    )
    assert found.work is not None
    assert exact.work is not None
    assert found.work.flops == exact.work.flops
    assert found.activations == exact.activations
    assert any("measured on this CPU" in note for note in found.notes)


def test_epochs_over_unknown_data_leave_steps_open_and_known_data_settle_them() -> None:
    by_epochs = replace(LAPTOP, fit=FitConfig(batch=8, micro_batch=4, epochs=2.0))
    (unknown,) = estimate([by_epochs], parse_cluster("cpus=2"))
    assert unknown.steps is None
    assert any("epochs" in note for note in unknown.notes)
    (known,) = estimate([replace(by_epochs, samples_per_epoch=100)], parse_cluster("cpus=2"))
    assert known.steps == 2 * 100 // 8


def test_the_small_batches_of_a_ramp_are_less_work() -> None:
    ramp = BatchRampConfig(start=4, increment=4, every=6)
    rising = replace(LAPTOP, fit=replace(LAPTOP.fit, batch_ramp=ramp))
    whole, found = estimate([LAPTOP, rising], parse_cluster("cpus=4"))
    assert whole.work is not None
    assert found.work is not None
    assert found.work.flops_per_step == whole.work.flops_per_step
    assert found.work.flops == pytest.approx(whole.work.flops * (6 * 4 + 4 * 8) / (10 * 8))
    assert dict(fact_rows(found))["batch"].endswith("at first 4 and 4 more every 6 steps")


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    uneven = replace(LAPTOP, fit=FitConfig(batch=10, micro_batch=4, steps=1))
    with pytest.raises(ConfigError, match="cannot be cut"):
        estimate([uneven], parse_cluster("cpus=2"))


def test_the_view_shows_every_fact() -> None:
    (found,) = estimate([LARGE], EIGHT_H100)
    console = Console(file=StringIO(), width=160)
    console.print(format_estimate([found]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for fact in ("1.41B", "14,500", "7.78 GB", "40% of 989 TFLOP/s", "8 workers on 1 node", "* 1"):
        assert fact in text
    assert dict(fact_rows(found))["batch"] == "1024 = 16 a pass x 8 accumulated x 8 workers"


def test_figures_are_rounded_for_people() -> None:
    assert (size(2.23e9), size(999), quantity(405_334_016)) == ("2.23 GB", "999 B", "405M")
    assert [duration(s) for s in (5, 90, 7200, 3e5)] == ["5 s", "1.5 min", "2 h", "3.47 days"]


def test_the_measured_rate_is_that_of_matrix_products() -> None:
    rate = measured_cpu_rate("fp32", seconds=0.05)
    assert 1e8 < rate.flops_per_s < 1e14
