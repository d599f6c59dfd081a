"""The loss terms, what is observed of the routing, and what follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from mixture_task import ALL_LOSSES, MODEL, small_task

from heliostat.data.table import TableWriter
from heliostat.storage import Location
from heliostat.train.task import Batch, LossTerm, Observed, Steered, Task
from jobs.mla_moe.config import BalanceConfig
from jobs.mla_moe.data import HeldOutRows
from jobs.mla_moe.model_config import decoder_config
from jobs.mla_moe.tasks import MixtureLanguageModel
from models.decoder import DecoderLM


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> MixtureLanguageModel:
    return small_task(Location.of(tmp_path_factory.mktemp("tables")))


def batch_of(task: MixtureLanguageModel, rows: int) -> Batch:
    return task.collate(task.train_data().samples(range(rows)))


def normalised(terms: Mapping[str, LossTerm | Observed], counts: Mapping[str, int]) -> float:
    parts = [one.total / counts[one.per] for one in terms.values() if isinstance(one, LossTerm)]
    return float(torch.stack(parts).sum().detach())


def test_it_is_a_task_that_steers(task: MixtureLanguageModel) -> None:
    assert isinstance(task, Task)
    assert isinstance(task, Steered)


def test_terms_of_micro_batches_add_to_those_of_the_batch(task: MixtureLanguageModel) -> None:
    model = task.model()
    batch = batch_of(task, 8)
    counts = task.counts(batch)
    assert counts == {"tokens": 8 * 31, "sequences": 8}
    whole = task.loss(model, batch)
    assert set(whole) == {
        "lm",
        "balance_expert",
        "balance_device",
        "balance_communication",
        "load",
        "dropped",
        "logits",
    }
    halves = [
        task.loss(model, {name: value[cut] for name, value in batch.items()})
        for cut in (slice(0, 3), slice(3, 8))
    ]
    assert sum(normalised(half, counts) for half in halves) == pytest.approx(
        normalised(whole, counts), abs=1e-5
    )
    loads = [half["load"].values for half in halves]
    assert torch.equal(loads[0] + loads[1], whole["load"].values)
    assert whole["load"].values.sum(1).tolist() == [8 * 32 * 2] * 2


def test_a_balance_loss_without_a_factor_is_no_term(task: MixtureLanguageModel) -> None:
    plain = dataclasses.replace(task, balance=BalanceConfig())
    assert set(plain.loss(plain.model(), batch_of(task, 2))) == {
        "lm",
        "load",
        "dropped",
        "logits",
    }


def test_a_router_that_gives_no_numbers_is_named(task: MixtureLanguageModel) -> None:
    model = task.model()
    assert isinstance(model, DecoderLM)
    batch = batch_of(task, 2)

    def faults() -> Sequence[str]:
        terms = task.loss(model, batch).items()
        return task.faults({name: one[0] for name, one in terms if isinstance(one, Observed)})

    assert faults() == []
    routers = [one for name, one in model.named_parameters() if name.endswith("router.weight")]
    routers[-1].data[3] = float("nan")
    assert faults() == ["the router of layer of experts 1 gave no finite logits"]
    routers[0].data[0] = float("inf")
    assert faults() == ["the router of layer of experts 0 gave no finite logits"]


def test_a_router_is_named_whose_infinite_logits_the_gate_makes_finite(
    task: MixtureLanguageModel,
) -> None:
    assert task.decoder.experts is not None
    experts = dataclasses.replace(task.decoder.experts, gate="sigmoid")
    sigmoid = dataclasses.replace(task, decoder=dataclasses.replace(task.decoder, experts=experts))
    model = sigmoid.model()
    routers = [one for name, one in model.named_parameters() if name.endswith("router.weight")]
    routers[1].data[0] = 3e38
    terms = sigmoid.loss(model, batch_of(task, 2))
    assert terms["lm"].total.isfinite()
    observed = {name: one[0] for name, one in terms.items() if isinstance(one, Observed)}
    assert sigmoid.faults(observed) == ["the router of layer of experts 1 gave no finite logits"]


def test_the_bias_moves_by_the_loads_and_stays_after_its_share(task: MixtureLanguageModel) -> None:
    brief = dataclasses.replace(task, balance=dataclasses.replace(ALL_LOSSES, gamma_share=0.5))
    model = brief.model()
    assert isinstance(model, DecoderLM)
    biases = dict(model.named_buffers())
    load = torch.tensor([[5.0, 3, 1, 3, 3, 3, 3, 3]] * 2, dtype=torch.float64)
    observed = {"load": load, "dropped": torch.zeros(2, dtype=torch.float64)}
    steering = brief.after_update(model, observed, 1, 10)
    for bias in biases.values():
        torch.testing.assert_close(bias, torch.tensor([-0.01, 0, 0.01, 0, 0, 0, 0, 0]))
    assert steering.metrics["max_violation/0"] == pytest.approx(5 / 3 - 1)
    assert steering.metrics["load/1/2"] == pytest.approx(1 / 3)
    brief.after_update(model, observed, 6, 10)
    for bias in biases.values():
        torch.testing.assert_close(bias, torch.tensor([-0.01, 0, 0.01, 0, 0, 0, 0, 0]))


def test_dead_experts_imbalance_and_dropping_are_warned_of(task: MixtureLanguageModel) -> None:
    experts = dataclasses.replace(MODEL.experts, capacity_factor=1.0)
    capped = dataclasses.replace(
        task, decoder=decoder_config(dataclasses.replace(MODEL, experts=experts))
    )
    model = capped.model()
    load = torch.tensor([[80.0, 1, 1, 1, 1, 0, 1, 1], [1.0] * 8], dtype=torch.float64)
    observed = {"load": load, "dropped": torch.tensor([40.0, 0.0], dtype=torch.float64)}
    notes: list[str] = []
    for step in range(1, 501):
        notes += capped.after_update(model, observed, step, 1000).notes
    assert len(notes) == 3
    assert "expert 5 of layer of experts 0 has had no token for 500 steps" in notes[0]
    assert "6.4 times the mean load above it" in notes[1]
    assert "47% of the assignments of layer of experts 0 were dropped" in notes[2]


def test_validation_and_test_rows_are_the_test_side_once(task: MixtureLanguageModel) -> None:
    validation = task.eval_data()
    test = HeldOutRows(task.test, 32, 16, is_validation=False)
    ids = [
        [int(row["id"]) for row in side.samples(range(side.epoch_size))]
        for side in (validation, test)
    ]
    assert len(ids[0]) == 16
    assert not set(ids[0]) & set(ids[1])
    assert len(ids[0]) + len(ids[1]) == -(-20 * 301 // 32)
    few = HeldOutRows(task.test, 32, 16, is_validation=False, limit=5)
    assert [int(row["id"]) for row in few.samples(range(5))] == [
        ids[1][index * len(ids[1]) // 5] for index in range(5)
    ]


def test_what_is_measured_of_a_row_adds_up(task: MixtureLanguageModel) -> None:
    model = task.model().eval()
    batch = batch_of(task, 4)
    with torch.no_grad():
        found = task.measured(model, batch)
        loss = task.evaluate(model, batch)["loss"]
    assert found.shape == (4, 2 + 2 * 8 + 2 * 4 + 2)
    assert float(found[:, 0].sum()) == pytest.approx(float(loss.total), rel=1e-6)
    assert found[:, 1].tolist() == [4 * 31, 0, 0, 0]
    assert found[:, 2:18].sum(1).tolist() == [2 * 32 * 2] * 4
    assert found[:, -2:].max() <= 2


def test_only_answers_are_learnt_where_a_column_names_them(tmp_path: Path) -> None:
    schema = pa.schema([("tokens", pa.list_(pa.uint8())), ("is_answer", pa.list_(pa.bool_()))])
    generator = np.random.default_rng(0)
    questions = [generator.integers(1, 256, 20) for _ in range(12)]
    rows = {
        "tokens": questions,
        "is_answer": [[place >= 14 for place in range(20)] for _ in questions],
    }
    for side in ("train", "test"):
        with TableWriter(Location.of(tmp_path / side), schema, {}) as writer:
            writer.write(pa.RecordBatch.from_pydict(rows, schema=schema))
    task = dataclasses.replace(
        small_task(Location.of(tmp_path / "other")),
        train=Location.of(tmp_path / "train"),
        test=Location.of(tmp_path / "test"),
        length=21,
        validation_rows=4,
        targets="is_answer",
        balance=BalanceConfig(),
    )
    model = task.model()
    batch = batch_of(task, 5)
    # A row is one conversation with its end: six tokens of the answer, and the end.
    assert task.counts(batch) == {"tokens": 5 * 7, "sequences": 5}
    with torch.no_grad():
        logits = model(batch["input_ids"])
        losses = F.cross_entropy(logits[:, :-1].mT, batch["input_ids"][:, 1:], reduction="none")
        found = task.loss(model, batch)["lm"]
        measured = task.measured(model.eval(), batch)
    assert isinstance(found, LossTerm)
    assert float(found.total) == pytest.approx(float(losses[:, 13:].sum()), rel=1e-5)
    assert float(measured[:, 1].sum()) == 5 * 7
    assert task.eval_data().samples([0])[0]["labels"].tolist()[:14] == [-100] * 14


def test_conversations_of_one_row_do_not_see_each_other(tmp_path: Path) -> None:
    schema = pa.schema([("tokens", pa.list_(pa.uint8())), ("is_answer", pa.list_(pa.bool_()))])
    generator = np.random.default_rng(0)
    texts = [generator.integers(1, 256, size) for size in (9, 17)]
    rows = {"tokens": texts, "is_answer": [[False] * 4 + [True] * (len(t) - 4) for t in texts]}
    with TableWriter(Location.of(tmp_path / "both"), schema, {}) as writer:
        writer.write(pa.RecordBatch.from_pydict(rows, schema=schema))
    task = dataclasses.replace(
        small_task(Location.of(tmp_path / "other")),
        train=Location.of(tmp_path / "both"),
        length=28,
        targets="is_answer",
        balance=BalanceConfig(),
    )
    model = task.model()
    batch = batch_of(task, 1)
    assert task.counts(batch) == {"tokens": 5 + 1 + 13 + 1, "sequences": 1}
    with torch.no_grad():
        found = task.loss(model, batch)["lm"]
        alone = []
        for text in texts:
            ids = torch.tensor([[*text, 0]])
            logits = model(ids)
            alone.append(F.cross_entropy(logits[0, 3:-1], ids[0, 4:], reduction="sum"))
    assert isinstance(found, LossTerm)
    assert float(found.total) == pytest.approx(float(torch.stack(alone).sum()), rel=1e-5)


def test_operations_are_those_of_the_formula(task: MixtureLanguageModel) -> None:
    batch = batch_of(task, 4)
    h, d = 2, 32
    attention = 3 * (d * h * 16 + d * 24 + 16 + 16 * h * 16 + h * 8 * d)
    dense, experts = 3 * 48 * d, 2 * (3 * d * 16 * (2 + 1) + 8 * d)
    weights = attention + dense + experts + 3 * 2 * d + d + 256 * d
    assert task.flops(batch) == 4 * 32 * (6 * weights + 3 * 3 * h * 32 * (8 + 8 + 8))
