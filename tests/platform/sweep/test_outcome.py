"""The best trial, the trials that none beats, and what is written down of a sweep."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from heliostat.config.jobs import JobEntry
from heliostat.config.load import load_config
from heliostat.storage import Location
from heliostat.sweep.config import RangeConfig, SweepConfig
from heliostat.sweep.ledger import Ledger, Point, TrialRecord, trial_name
from heliostat.sweep.outcome import judge_sweep
from heliostat.sweep.plan import SweepPlan
from heliostat.sweep.plots import plot_curves, plot_front, plot_keys
from heliostat.sweep.tables import trial_table, write_best, write_tables

LOSS = SweepConfig(
    metric="loss",
    mode="min",
    second={"cost": "min", "speed": "max"},
    searcher="grid",
    space={"window": RangeConfig(grid=[1, 2, 4, 8])},
)
PNG = b"\x89PNG\r\n\x1a\n"


def trial(number: int, loss: float, status: str = "finished", **metrics: float) -> TrialRecord:
    return TrialRecord(
        trial_name(number),
        number,
        {"window": 2**number},
        status=status,  # type: ignore[arg-type]
        metrics={"loss": loss, **metrics},
        points=(Point(10, 20, 1, {"loss": loss + 1}), Point(20, 20, 2, {"loss": loss})),
        steps=20,
    )


def test_the_best_is_a_finished_trial_before_a_stopped_one() -> None:
    records = [trial(0, 0.5), trial(1, 0.1, "stopped"), trial(2, 0.4), trial(3, 0.2, "failed")]
    outcome = judge_sweep(LOSS, records)
    assert outcome.best is not None
    assert outcome.best.name == "t002"
    assert [record.name for record in outcome.records] == ["t001", "t002", "t000", "t003"]


def test_a_value_that_is_no_number_is_never_the_best() -> None:
    outcome = judge_sweep(LOSS, [trial(0, math.nan), trial(1, 3.0)])
    assert outcome.best is not None
    assert outcome.best.name == "t001"
    assert judge_sweep(LOSS, [trial(0, math.nan)]).best is None


def test_the_best_keeps_to_every_limit() -> None:
    settings = SweepConfig(metric="loss", at_most={"cost": 2.0})
    records = [trial(0, 0.1, cost=3.0), trial(1, 0.2, cost=2.0), trial(2, 0.05)]
    best = judge_sweep(settings, records).best
    assert best is not None
    assert best.name == "t001", "one is too dear, of the other nobody knows"


@pytest.mark.parametrize("seed", range(4))
def test_the_front_is_what_comparing_all_pairs_leaves(seed: int) -> None:
    generator = random.Random(seed)
    records = [
        trial(
            number,
            generator.choice([0.1, 0.2, 0.3]),
            cost=generator.choice([1.0, 2.0, 3.0]),
            speed=generator.choice([5.0, 6.0]),
        )
        for number in range(12)
    ]
    beaten = set()
    for a, b in itertools.permutations(records, 2):
        mine = (a.metrics["loss"], a.metrics["cost"], -a.metrics["speed"])
        other = (b.metrics["loss"], b.metrics["cost"], -b.metrics["speed"])
        if all(x <= y for x, y in zip(other, mine, strict=True)) and other != mine:
            beaten.add(a.name)
    assert judge_sweep(LOSS, records).front == {r.name for r in records} - beaten


def test_every_trial_is_one_row_of_the_table(tmp_path: Path) -> None:
    records = [trial(0, 0.5, cost=1.0), trial(1, 0.4, cost=2.0), trial(2, 0.1, "stopped")]
    folder = Location.of(tmp_path)
    write_tables(folder, judge_sweep(LOSS, records))
    table = pq.read_table(tmp_path / "sweep.parquet").to_pydict()
    assert table["trial"] == ["t002", "t001", "t000"]
    assert table["values.window"] == [4, 2, 1]
    assert table["metrics.loss"] == [0.1, 0.4, 0.5]
    assert table["metrics.cost"] == [None, 2.0, 1.0]
    assert table["is_best"] == [False, True, False]
    assert table["folder"][0].endswith("/trials/t002")
    evaluations = pq.read_table(tmp_path / "evaluations.parquet")
    assert evaluations.num_rows == 6


def test_values_of_several_kinds_can_be_one_column(tmp_path: Path) -> None:
    space = {"window": RangeConfig(choice=[1, "wide", None])}
    settings = SweepConfig(metric="loss", searcher="grid", space=space)
    records = [
        TrialRecord(trial_name(n), n, {"window": value}, status="finished", metrics={"loss": 1.0})
        for n, value in enumerate([1, "wide", None])
    ]
    table = trial_table(Location.of(tmp_path), judge_sweep(settings, records))
    assert table["values.window"].to_pylist() == ["1", "wide", None]


def test_the_best_config_loads_as_the_config_of_the_trial(
    plan_of: Callable[..., SweepPlan], tiny_job: JobEntry, tmp_path: Path
) -> None:
    plan = plan_of("sweep=knobs", "seed=3")
    file = write_best(Location.of(tmp_path), plan, trial(3, 0.5), "tiny")
    again = load_config(tiny_job, None, [], [file.local_path])
    assert again.digest == plan.config_of({"window": 8}).digest
    assert again.config.seed == 3


def test_the_figures_are_drawn() -> None:
    records = [trial(n, 0.5 - n / 10, cost=float(n), speed=1.0) for n in range(4)]
    child = TrialRecord(
        "t000-1", 0, {"window": 8}, status="finished", generation=1, parent="t001", parent_step=10,
        points=(Point(20, 20, 2, {"loss": 0.1}),), metrics={"loss": 0.1, "cost": 1.0, "speed": 1.0},
    )  # fmt: skip
    outcome = judge_sweep(LOSS, [*records, child])
    for png in (plot_keys(outcome), plot_curves(outcome), plot_front(outcome, "cost")):
        assert png.startswith(PNG)


def test_a_ledger_read_again_holds_what_was_written(tmp_path: Path) -> None:
    ledger = Ledger(Location.of(tmp_path))
    written = [trial(1, 0.5), trial(0, math.nan, "failed", cost=1.0)]
    for record in written:
        ledger.write(record)
    again = Ledger(Location.of(tmp_path)).records()
    assert [record.name for record in again] == ["t000", "t001"]
    assert again[1] == written[0]
    assert math.isnan(again[0].metrics["loss"])
