"""Schedulers, compared with slow formulations of their papers' rules."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from heliostat.sweep.config import AshaConfig, BudgetConfig, PbtConfig, SweepConfig
from heliostat.sweep.ledger import Point, TrialRecord, trial_name
from heliostat.sweep.policy import Halving, Patience, Population, Replacement, make_policy

ASHA = SweepConfig(metric="loss", mode="min", scheduler="asha", asha=AshaConfig(reduction=3.0))
PBT = SweepConfig(
    metric="top",
    mode="max",
    searcher="random",
    scheduler="pbt",
    budget=BudgetConfig(trials=4),
    pbt=PbtConfig(every=2, quantile=0.25),
)


def point(index: int, value: float, metric: str = "loss", steps: int = 100) -> Point:
    return Point(step=10 * index, steps=steps, index=index, metrics={metric: value})


def member(number: int, *values: float, status: str = "running") -> TrialRecord:
    points = tuple(point(index, value, "top") for index, value in enumerate(values, start=1))
    return TrialRecord(trial_name(number), number, {}, status=status, points=points)  # type: ignore[arg-type]


class SlowHalving:
    """Li et al. 2020, stopping variant: at rung r = grace * reduction^k a trial goes on if it is at
    least as good as the (1 - 1/reduction) quantile of what was recorded there before."""

    def __init__(self, reduction: float) -> None:
        self.reduction = reduction
        self.rungs: dict[int, dict[str, float]] = {}

    def goes_on(self, name: str, index: int, loss: float) -> bool:
        rung = 0
        while self.reduction ** (rung + 1) <= index + 1e-9:
            rung += 1
        known = self.rungs.setdefault(rung, {})
        if name in known:
            return True
        before = sorted(-value for value in known.values())
        known[name] = loss
        return not before or -loss >= np.quantile(before, 1 - 1 / self.reduction)


@pytest.mark.parametrize("seed", range(5))
def test_halving_decides_as_its_paper_says(seed: int) -> None:
    generator = random.Random(seed)
    policy, slow = Halving(ASHA, []), SlowHalving(3.0)
    alive = {trial_name(number): 0 for number in range(30)}
    while alive:
        name = generator.choice(sorted(alive))
        alive[name] += 1
        loss = generator.random()
        record = TrialRecord(name, 0, {})
        decided = policy.decide(record, point(alive[name], loss), ())
        # A rung is met at its own evaluation only when none lies between: 1, 3, 9.
        assert (decided == "continue") == slow.goes_on(name, alive[name], loss)
        if decided == "stop" or alive[name] == 10:
            del alive[name]


def test_a_trial_that_came_first_stops_when_later_ones_were_better_at_its_rung() -> None:
    policy = Halving(ASHA, [])
    first = TrialRecord("t000", 0, {}).at(point(1, 0.9))
    assert policy.decide(TrialRecord("t000", 0, {}), point(1, 0.9), ()) == "continue"
    better = [TrialRecord(f"t00{n}", n, {}).at(point(1, 0.9 - n / 10)) for n in (1, 2)]
    assert policy.decide(first, point(2, 0.8), []) == "continue"
    assert policy.decide(first, point(2, 0.8), better) == "stop"
    best = TrialRecord("t003", 3, {}).at(point(1, 0.1))
    assert policy.decide(best, point(2, 0.8), [first, *better]) == "continue"


def test_a_sweep_that_goes_on_halves_as_if_it_had_never_stopped() -> None:
    losses = [0.5, 0.4, 0.6, 0.3, 0.55, 0.2]
    whole = Halving(ASHA, [])
    records = []
    for number, loss in enumerate(losses):
        record = TrialRecord(trial_name(number), number, {})
        whole.decide(record, point(1, loss), ())
        records.append(record.at(point(1, loss)))
    again = Halving(ASHA, records)
    for loss in (0.1, 0.35, 0.45, 0.7):
        fresh = TrialRecord(f"new-{loss}", 99, {})
        assert whole.decide(fresh, point(1, loss), ()) == again.decide(fresh, point(1, loss), ())


def test_an_evaluation_done_again_after_a_restart_is_not_recorded_twice() -> None:
    policy = Halving(ASHA, [member(0).at(point(1, 0.5))])
    assert policy.decide(TrialRecord("t000", 0, {}), point(1, 0.5), ()) == "continue"
    assert policy.decide(TrialRecord("t001", 1, {}), point(1, 0.5), ()) == "continue"
    assert policy.decide(TrialRecord("t002", 2, {}), point(1, 0.6), ()) == "stop"


def test_a_loss_that_is_no_number_is_the_worst() -> None:
    policy = Halving(ASHA, [])
    policy.decide(TrialRecord("t000", 0, {}), point(1, 0.5), ())
    assert policy.decide(TrialRecord("t001", 1, {}), point(1, math.nan), ()) == "stop"


def test_the_worst_member_gives_way_to_the_best_at_the_same_evaluation() -> None:
    others = [member(1, 0.1, 0.8), member(2, 0.1, 0.6), member(3, 0.1, 0.5, 0.99)]
    worst = member(0, 0.9, 0.4)
    decision = Population(PBT).decide(worst, worst.points[-1], others)
    assert isinstance(decision, Replacement)
    # Number 3 is ahead, but at this very evaluation number 1 was best.
    assert decision.donor.name == "t001"


@pytest.mark.parametrize("value", [0.55, 0.9])
def test_a_member_in_the_middle_or_at_the_top_goes_on(value: float) -> None:
    others = [member(1, 0.1, 0.8), member(2, 0.1, 0.6), member(3, 0.1, 0.5)]
    mine = member(0, 0.1, value)
    assert Population(PBT).decide(mine, mine.points[-1], others) == "continue"


def test_nothing_is_decided_between_two_decisions_nor_at_the_end() -> None:
    others = [member(1, 0.1, 0.8, 0.8)]
    between = member(0, 0.1, 0.1, 0.1)
    assert Population(PBT).decide(between, between.points[-1], others) == "continue"
    last = member(0, 0.1, 0.1)
    assert Population(PBT).decide(last, point(2, 0.1, "top", steps=20), others) == "continue"


def test_a_member_that_is_ahead_of_one_that_waits_pauses() -> None:
    ahead = member(0, 0.1, 0.2)
    waiting = [member(1, status="waiting"), member(2, 0.1, 0.3)]
    assert Population(PBT).decide(ahead, ahead.points[-1], waiting) == "pause"
    level = [member(1, 0.1, 0.3, status="paused"), member(2, 0.1, 0.3)]
    assert isinstance(Population(PBT).decide(ahead, ahead.points[-1], level), Replacement)


def test_members_that_have_ended_are_no_donors() -> None:
    mine = member(0, 0.1, 0.2)
    ended = [
        replace(member(1, 0.1, 0.9), status="replaced"),
        member(2, 0.1, 0.9, status="finished"),
    ]
    assert Population(PBT).decide(mine, mine.points[-1], ended) == "continue"


def test_equal_members_leave_each_other_alone() -> None:
    mine = member(0, 0.1, 0.5)
    others = [member(1, 0.1, 0.5), member(2, 0.1, 0.5), member(3, 0.1, 0.5)]
    assert Population(PBT).decide(mine, mine.points[-1], others) == "continue"


def test_without_a_scheduler_every_trial_goes_on() -> None:
    policy = make_policy(SweepConfig(), [])
    assert isinstance(policy, Patience)
    assert policy.decide(member(0), point(1, math.nan), ()) == "continue"
