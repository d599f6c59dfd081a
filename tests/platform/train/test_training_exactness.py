"""The loss, the weights and the metrics do not depend on how the work is cut or sharded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from trainings import CONFIG, EVAL_ROWS, RISING, STEPS, ZERO, losses, steps_of

from heliostat.storage import Location
from heliostat.train.batch_schedule import samples_in
from heliostat.train.config import FitConfig
from heliostat.train.engine import build_optimizer
from heliostat.train.fit import FitResult
from heliostat.train.schedule import lr_factor
from heliostat.train.weights import load_weights, read_weights
from tiny_task import TinyTask

ONE_BIG_BATCH = replace(CONFIG, micro_batch=12)


def by_hand(task: TinyTask, config: FitConfig) -> tuple[list[float], torch.nn.Module]:
    """The same training as a plain torch loop over global batches."""
    model, stream = task.model(), task.train_data()
    optimizer = build_optimizer(task.parameter_groups(model), config.optimizer)
    values = []
    for step in range(1, STEPS + 1):
        positions = range(samples_in(config, step - 1), samples_in(config, step))
        batch = task.collate(stream.samples(list(positions)))
        loss = task.loss(model, batch)["lm"].total / task.counts(batch)["tokens"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * lr_factor(config.schedule, step, STEPS)
        optimizer.step()
        values.append(loss.item())
    return values, model


def largest_difference(one: FitResult, two: FitResult) -> float:
    first, second = read_weights(one.last), read_weights(two.last)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_a_training_equals_a_plain_torch_loop(trained, tiny_task: TinyTask) -> None:
    values, model = by_hand(tiny_task, CONFIG)
    result = trained(ONE_BIG_BATCH)
    assert losses(result) == pytest.approx(values, abs=1e-6)
    state = model.state_dict()
    weights = read_weights(result.last)
    assert weights.keys() == state.keys()
    assert all(torch.allclose(weights[name], state[name], atol=1e-6, rtol=0) for name in state)


@pytest.mark.parametrize(
    ("config", "workers"),
    [
        pytest.param(CONFIG, 1, id="2x6 on 1 worker"),
        pytest.param(replace(CONFIG, micro_batch=3, zero=ZERO[2]), 2, id="3x2 on 2, ZeRO 2"),
        pytest.param(
            replace(CONFIG, zero=ZERO[3], activation_checkpointing=True),
            2,
            id="2x3 on 2, ZeRO 3, activations recomputed",
        ),
        pytest.param(
            replace(CONFIG, micro_batch=6, zero=ZERO[1]),
            2,
            id="6x1 on 2, ZeRO 1",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            replace(CONFIG, micro_batch=1), 3, id="1x4 on 3 workers", marks=pytest.mark.slow
        ),
    ],
)
def test_however_the_batch_is_cut_losses_and_weights_are_those_of_one_big_batch(
    trained, config: FitConfig, workers: int
) -> None:
    reference, result = trained(ONE_BIG_BATCH), trained(config, workers=workers)
    assert losses(result) == pytest.approx(losses(reference), abs=1e-6)
    assert largest_difference(result, reference) < 2e-6
    assert result.metrics["loss"] == pytest.approx(reference.metrics["loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("stage", "workers"),
    [(0, 1), (0, 2), (1, 2), pytest.param(2, 2, marks=pytest.mark.slow), (3, 2)],
)
def test_a_batch_ramp_gives_the_losses_and_counts_of_a_plain_torch_loop(
    trained, tiny_task: TinyTask, stage: int, workers: int
) -> None:
    """On two workers the first steps have one micro batch each, later ones two, then three."""
    values, model = by_hand(tiny_task, RISING)
    result = trained(replace(RISING, zero=ZERO[stage]), workers=workers)
    assert losses(result) == pytest.approx(values, abs=2e-6)
    weights = read_weights(result.last)
    state = model.state_dict()
    assert all(torch.allclose(weights[name], state[name], atol=2e-6, rtol=0) for name in state)
    samples = tiny_task.train_data().samples(list(range(samples_in(RISING, STEPS))))
    assert result.outcome.counts["tokens"] == sum(int(sample["n"]) for sample in samples)


def test_evaluation_counts_every_row_exactly_once_on_any_number_of_workers(trained) -> None:
    for workers in (1, 2):
        zero = ZERO[0] if workers == 1 else ZERO[2]
        config = replace(CONFIG, micro_batch=3, zero=zero) if workers == 2 else CONFIG
        assert trained(config, workers=workers).metrics["mean_id"] == (EVAL_ROWS - 1) / 2


def test_history_holds_every_step_once_and_evaluations_where_they_are_due(trained) -> None:
    result = trained(CONFIG)
    assert steps_of(result) == list(range(1, STEPS + 1))
    assert [row["step"] for row in result.history() if "eval/loss" in row] == [10, 20]


def test_tokens_per_second_times_seconds_are_the_targets_trained_on(
    trained, tiny_task: TinyTask
) -> None:
    result = trained(CONFIG)
    rows = [row for row in result.history() if "loss" in row]
    counted = sum(row["tokens_per_s"] * row["step_s"] for row in rows)
    samples = tiny_task.train_data().samples(list(range(STEPS * CONFIG.batch)))
    targets = sum(int(sample["n"]) for sample in samples)
    assert counted == pytest.approx(targets, rel=0.01)
    assert result.outcome.counts["tokens"] == targets
    assert result.outcome.trained_s == pytest.approx(sum(row["step_s"] for row in rows))


def test_warmup_counts_optimiser_steps_not_micro_batches(trained) -> None:
    config = replace(CONFIG, micro_batch=3, zero=ZERO[2])
    rates = [row["lr"] for row in trained(config, workers=2).history() if "loss" in row]
    expected = [1e-2 * lr_factor(config.schedule, step, STEPS) for step in range(1, STEPS + 1)]
    assert rates == pytest.approx(expected)


def test_a_tied_model_with_a_frozen_weight_exports_whole_from_zero_3(
    trained, tiny_task: TinyTask
) -> None:
    values, plain = by_hand(replace(tiny_task, tied=True), CONFIG)
    sharded = trained(replace(CONFIG, zero=ZERO[3]), workers=2, tied=True)
    assert losses(sharded) == pytest.approx(values, abs=1e-5)
    weights = read_weights(sharded.last)
    assert torch.equal(weights["output.weight"], weights["embedding.weight"])
    model = replace(tiny_task, tied=True).model()
    load_weights(model, sharded.last)
    state, expected = model.state_dict(), plain.state_dict()
    assert all(torch.allclose(state[name], expected[name], atol=1e-5, rtol=0) for name in state)


@pytest.mark.parametrize("stage", [0, 1])
def test_bf16_trains_to_nearly_the_same_losses_and_exports_its_fp32_masters(
    trained, stage: int
) -> None:
    config = replace(CONFIG, precision="bf16", zero=ZERO[stage])
    result = trained(config, workers=2)
    assert losses(result) == pytest.approx(losses(trained(ONE_BIG_BATCH)), abs=0.05)
    weights = read_weights(result.last)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    hidden = weights["hidden.weight"]
    assert not torch.equal(hidden, hidden.bfloat16().float())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, pytest.param(3, id="parameters too")])
def test_offload_gives_the_same_losses(trained, stage: int) -> None:
    zero = replace(ZERO[stage], offload_optimizer=True, offload_parameters=stage == 3)
    result = trained(replace(CONFIG, zero=zero), workers=2)
    assert losses(result) == pytest.approx(losses(trained(ONE_BIG_BATCH)), abs=1e-6)


def test_the_best_weights_are_those_of_the_best_evaluation(trained) -> None:
    result: FitResult = trained(CONFIG)
    found = [(row["eval/loss"], row["step"]) for row in result.history() if "eval/loss" in row]
    best = min(found)[1]
    assert result.outcome.best_step == best
    assert f'"step": {best}' in (result.best / "about.json").read_text()


def test_a_finished_training_leaves_weights_history_and_the_newest_checkpoints_only(
    trained,
) -> None:
    folder: Location = trained(CONFIG).folder
    assert [entry.name for entry in folder.list()] == ["checkpoints", "metrics", "weights"]
    assert [entry.name for entry in (folder / "checkpoints").list()] == [
        "step-00000016",
        "step-00000020",
    ]
    assert [entry.name for entry in (folder / "weights").list()] == ["best", "last"]
