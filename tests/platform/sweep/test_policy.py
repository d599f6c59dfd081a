"""Schedulers, compared with slow formulations of their papers' rules."""

from __future__ import annotations

import math
import random
from dataclasses import replace

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


def trial(number: int, *losses: float, status: str = "running") -> TrialRecord:
    points = tuple(point(index, loss) for index, loss in enumerate(losses, start=1))
    return TrialRecord(trial_name(number), number, {}, status=status, points=points)  # type: ignore[arg-type]


def decide(policy: Halving, record: TrialRecord, *others: TrialRecord, unstarted: int = 0) -> str:
    decided = policy.decide(record, record.points[-1], others, unstarted)
    assert isinstance(decided, str)
    return decided


def successive_halving(
    curves: list[list[float]], grace: int, reduction: int
) -> tuple[list[int], int]:
    """Li et al. 2020, algorithm 1: who trains to the end, and the evaluations of all together."""
    alive, rung, spent = list(range(len(curves))), grace, 0
    before = 0
    while rung <= len(curves[0]):
        spent += len(alive) * (rung - before)
        ranked = sorted(alive, key=lambda number: curves[number][rung - 1])
        alive, before, rung = ranked[: max(1, len(alive) // reduction)], rung, rung * reduction
    return alive, spent + len(alive) * (len(curves[0]) - before)


def run(
    settings: SweepConfig, curves: list[list[float]], places: int, generator: random.Random
) -> tuple[dict[str, TrialRecord], int]:
    """Go through a sweep with so many places, in an order that chance decides."""
    policy = make_policy(settings)
    records: dict[str, TrialRecord] = {}
    working: list[str] = []
    spent = 0
    while True:
        unstarted = len(curves) - len(records)
        for lost in policy.outdone(list(records.values()), unstarted):
            records[lost.name] = replace(lost, status="stopped")
        paused = [record for record in records.values() if record.status == "paused"]
        picked = policy.pick(paused, list(records.values()), unstarted)
        if picked is None and unstarted:
            picked = TrialRecord(trial_name(len(records)), len(records), {})
        if picked is not None and len(working) < places:
            records[picked.name] = replace(picked, status="running")
            working.append(picked.name)
            continue
        if not working:
            return records, spent
        name = generator.choice(working)
        curve = curves[records[name].number]
        seen = point(len(records[name].points) + 1, curve[len(records[name].points)])
        records[name] = records[name].at(seen)
        spent += 1
        others = [record for record in records.values() if record.name != name]
        decided = policy.decide(records[name], seen, others, len(curves) - len(records))
        if len(records[name].points) == len(curve):
            decided = "finished"
        if decided != "continue":
            status = {"stop": "stopped", "pause": "paused"}.get(str(decided), "finished")
            records[name] = replace(records[name], status=status)  # type: ignore[arg-type]
            working.remove(name)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("places", [1, 2])
def test_halving_finds_what_synchronous_halving_finds(seed: int, places: int) -> None:
    generator = random.Random(seed)
    curves = [[generator.random() for _ in range(10)] for _ in range(12)]
    settings = replace(ASHA, asha=AshaConfig(grace=2, reduction=2.0))
    records, spent = run(settings, curves, places, generator)
    best, least = successive_halving(curves, grace=2, reduction=2)
    assert least == 12 * 2 + 6 * 2 + 3 * 4 + 2
    finished = {record.number for record in records.values() if record.status == "finished"}
    assert finished >= set(best)
    assert {record.status for record in records.values()} == {"finished", "stopped"}
    # A place that would be idle goes on with who leads a rung that is not full, so far.
    assert least <= spent <= least + 4 * (places - 1)


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_with_optuna_trials_go_on_before_new_ones_begin(seed: int, places: int) -> None:
    generator = random.Random(seed)
    curves = [[generator.random()] * 10 for _ in range(30)]
    settings = replace(
        ASHA, searcher="optuna", budget=BudgetConfig(trials=30), asha=AshaConfig(reduction=3.0)
    )
    policy = make_policy(settings)
    three = [trial(number, 0.5 + number, status="paused") for number in range(3)]
    picked = policy.pick(three, three, 27)
    assert picked is not None
    assert picked.number == 0
    assert policy.pick(three[:2], three[:2], 28) is None
    records, spent = run(settings, curves, places, generator)
    best = min(range(30), key=lambda number: curves[number][0])
    assert records[trial_name(best)].status == "finished"
    assert spent < 30 * 10 / 2


def test_at_a_rung_a_trial_waits_for_those_before_it_is_lost_or_safe() -> None:
    policy = Halving(ASHA)
    # Six trials: two go on.
    assert decide(policy, trial(0, 0.5), unstarted=5) == "pause"
    there = [trial(0, 0.5, status="paused"), trial(1, 0.7, status="paused")]
    assert decide(policy, trial(2, 0.4), *there, unstarted=3) == "pause"
    assert decide(policy, trial(2, 0.9), *there, unstarted=3) == "stop"
    there += [trial(2, 0.4, status="paused"), trial(3, 0.8, status="paused")]
    # One may still come: the best is safe, the second is not.
    there.append(trial(4, 0.9, status="stopped"))
    assert [one.number for one in policy.outdone(there, 1)] == [1, 3]
    picked = policy.pick(there[:4], there, 0)
    assert picked is not None
    assert picked.number == 2


def test_between_rungs_a_trial_goes_on_unless_others_were_better_at_its_rung() -> None:
    policy = Halving(ASHA)
    others = [trial(1, 0.8, status="paused"), trial(2, 0.9, status="paused")]
    assert decide(policy, trial(0, 0.7, 2.0), *others) == "continue"
    others.append(trial(3, 0.1))
    assert decide(policy, trial(0, 0.7, 0.05), *others) == "stop"


def test_rungs_may_be_optimiser_steps() -> None:
    policy = Halving(replace(ASHA, asha=AshaConfig(unit="step", grace=20, reduction=3.0)))
    assert decide(policy, trial(0, 0.9), trial(1, 0.1)) == "continue"
    assert decide(policy, trial(0, 0.9, 0.9), trial(1, 0.1, 0.1)) == "stop"


@pytest.mark.parametrize("asha", [AshaConfig(unit="step"), AshaConfig(reduction=1.4)])
def test_no_two_rungs_lie_at_the_same_evaluation(asha: AshaConfig) -> None:
    policy = Halving(replace(ASHA, asha=asha))
    # Ten steps an evaluation; of six trials more than one goes on from the first.
    first = trial(0, 0.5)
    assert decide(policy, first, unstarted=5) == "pause"
    paused = replace(first, status="paused")
    assert decide(policy, trial(1, 0.9), paused, unstarted=4) == "pause"
    curves = [[float(number)] * 10 for number in range(6)]
    records, _ = run(replace(ASHA, asha=asha), curves, 2, random.Random(0))
    assert records["t000"].status == "finished"


def test_who_leads_a_rung_and_fails_leaves_its_place() -> None:
    policy = Halving(ASHA)
    leader = trial(0, 0.1, 0.1, 0.1, status="failed")
    others = [trial(n, 0.5 + n, 0.5, 0.5 + n, status="paused") for n in (1, 2)]
    assert [one.number for one in policy.outdone([leader, *others], 0)] == [2]
    assert policy.pick(others, [leader, *others], 0) is others[0]


def test_who_failed_is_not_waited_for() -> None:
    policy = Halving(ASHA)
    paused, failed = trial(0, 0.5, status="paused"), trial(1, status="failed")
    assert policy.pick([paused], [paused, failed], 0) is paused


def test_a_loss_that_is_no_number_is_the_worst() -> None:
    others = [trial(n, 0.5 + n, status="paused") for n in (1, 2)]
    assert decide(Halving(ASHA), trial(0, math.nan), *others) == "stop"


def test_the_worst_member_gives_way_to_the_best_at_the_same_evaluation() -> None:
    others = [member(1, 0.1, 0.8), member(2, 0.1, 0.6), member(3, 0.1, 0.5, 0.99)]
    worst = member(0, 0.9, 0.4)
    decision = Population(PBT).decide(worst, worst.points[-1], others, 0)
    assert isinstance(decision, Replacement)
    # Number 3 is ahead, but at this very evaluation number 1 was best.
    assert decision.donor.name == "t001"


@pytest.mark.parametrize("value", [0.55, 0.9])
def test_a_member_in_the_middle_or_at_the_top_goes_on(value: float) -> None:
    others = [member(1, 0.1, 0.8), member(2, 0.1, 0.6), member(3, 0.1, 0.5)]
    mine = member(0, 0.1, value)
    assert Population(PBT).decide(mine, mine.points[-1], others, 0) == "continue"


def test_nothing_is_decided_between_two_decisions_nor_at_the_end() -> None:
    others = [member(1, 0.1, 0.8, 0.8)]
    between = member(0, 0.1, 0.1, 0.1)
    assert Population(PBT).decide(between, between.points[-1], others, 0) == "continue"
    last = member(0, 0.1, 0.1)
    assert Population(PBT).decide(last, point(2, 0.1, "top", steps=20), others, 0) == "continue"


def test_a_member_that_is_ahead_of_one_that_waits_pauses() -> None:
    ahead = member(0, 0.1, 0.2)
    waiting = [member(1, status="waiting"), member(2, 0.1, 0.3)]
    assert Population(PBT).decide(ahead, ahead.points[-1], waiting, 0) == "pause"
    level = [member(1, 0.1, 0.3, status="paused"), member(2, 0.1, 0.3)]
    assert isinstance(Population(PBT).decide(ahead, ahead.points[-1], level, 0), Replacement)


def test_members_that_have_ended_are_no_donors() -> None:
    mine = member(0, 0.1, 0.2)
    ended = [
        replace(member(1, 0.1, 0.9), status="replaced"),
        member(2, 0.1, 0.9, status="finished"),
    ]
    assert Population(PBT).decide(mine, mine.points[-1], ended, 0) == "continue"


def test_equal_members_leave_each_other_alone() -> None:
    mine = member(0, 0.1, 0.5)
    others = [member(1, 0.1, 0.5), member(2, 0.1, 0.5), member(3, 0.1, 0.5)]
    assert Population(PBT).decide(mine, mine.points[-1], others, 0) == "continue"


def test_without_a_scheduler_every_trial_goes_on() -> None:
    policy = make_policy(SweepConfig())
    assert isinstance(policy, Patience)
    assert policy.decide(member(0), point(1, math.nan), (), 0) == "continue"
