"""Buffers that follow observed sums: the same however the work is cut, and kept by checkpoints."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from steered_task import GAMMA, SteeredTask
from trainings import CONFIG, STEPS, ZERO, Trainings, losses, stop_at

from heliostat.errors import TrainingFailed
from heliostat.train.step import batch_hash
from heliostat.train.weights import read_weights
from tiny_task import LENGTH, TinyTask


@pytest.fixture
def task(tiny_task: TinyTask) -> SteeredTask:
    return SteeredTask(train=tiny_task.train, evaluation=tiny_task.evaluation, wait_s=0.06)


def shift_by_hand(task: SteeredTask) -> torch.Tensor:
    """Whole batches, one after the other."""
    shift = torch.full((task.width,), 0.25)
    stream = task.train_data()
    for step in range(STEPS):
        positions = range(step * CONFIG.batch, (step + 1) * CONFIG.batch)
        tokens = task.collate(stream.samples(list(positions)))["tokens"]
        load = torch.bincount(tokens.flatten() % task.width, minlength=task.width).double()
        shift += GAMMA * (load.mean() - load).sign().float()
    return shift


def test_sums_run_over_micro_batches_and_ranks_and_survive_a_stop(
    train: Trainings, task: SteeredTask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    whole = train(task, replace(CONFIG, micro_batch=12))
    config = replace(CONFIG, zero=ZERO[1])
    stop_at(8, train, task, config, 2, "r")
    cut = train(task, config, workers=1, run="r")
    expected = shift_by_hand(task)
    for result in (whole, cut):
        torch.testing.assert_close(read_weights(result.last)["shift"], expected)
        rows = [row for row in result.history() if "loss" in row]
        assert {row["tokens_observed"] for row in rows} == {CONFIG.batch * LENGTH}
        assert result.metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=1e-5)
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-5)
    assert "steered at step 3" in caplog.text


def test_a_loss_that_is_not_a_number_ends_in_what_the_task_makes_of_it(
    train: Trainings, task: SteeredTask
) -> None:
    first = task.train_data().samples([2 * CONFIG.batch])[0]["id"]
    poisoned = replace(task, poison_id=int(first))
    with pytest.raises(TrainingFailed) as caught:
        train(poisoned, CONFIG, run="r")
    text = str(caught.value)
    assert "the loss of step 3 is not finite" in text
    assert f"; on worker 0 {CONFIG.batch * LENGTH} tokens had channels" in text


def test_what_was_observed_must_be_numbers_even_where_the_loss_is_one(
    train: Trainings, task: SteeredTask
) -> None:
    samples = task.train_data().samples(list(range(2 * CONFIG.batch, 3 * CONFIG.batch)))
    with pytest.raises(TrainingFailed) as caught:
        train(replace(task, overflow_id=int(samples[1]["id"])), CONFIG, workers=2, run="r")
    text = str(caught.value)
    hashes = ", ".join(batch_hash(task.collate(samples[rank::2])) for rank in range(2))
    assert "what was observed in step 3 is not finite, though its loss is " in text
    assert "its batch is at positions 24 to 35 of the training stream (hash by worker: " in text
    assert f"{hashes}); on worker 0 {CONFIG.batch // 2 * LENGTH} tokens had channels" in text
    assert "; on worker 1 inf tokens had channels" in text


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_sharding_keeps_the_buffers(train: Trainings, task: SteeredTask, stage: int) -> None:
    config = replace(CONFIG, zero=ZERO[stage])
    stop_at(8, train, task, config, 2, "r")
    result = train(task, config, workers=2 if stage == 0 else 1, run="r")
    torch.testing.assert_close(read_weights(result.last)["shift"], shift_by_hand(task))
