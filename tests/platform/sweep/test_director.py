"""What comes next and what becomes of it, over restarts, budgets and populations. No Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from heliostat.checkpoint.manifest import FORMAT, MANIFEST_NAME, Manifest, TrainState, to_json
from heliostat.checkpoint.retention import collect, is_pinned
from heliostat.storage import Location
from heliostat.sweep.director import Director, TrialEnd, TrialOrder
from heliostat.sweep.ledger import Point, TrialRecord
from heliostat.sweep.plan import SweepPlan

PlanOf = Callable[..., SweepPlan]
LR = "fit.optimizer.lr"
STEPS = 40
RANDOM = (
    "sweep.searcher=random",
    f"sweep.space.{LR}.log_uniform=[1e-4,1e-1]",
    "sweep.budget.trials=5",
)
PBT = (*RANDOM, "sweep.scheduler=pbt", "sweep.budget.trials=3")


@pytest.fixture
def sweep(tmp_path: Path) -> Location:
    return Location.of(tmp_path / "sweep")


def point(index: int, loss: float) -> Point:
    return Point(4 * index, STEPS, index, {"loss": loss, "mean_id": 0.0}, "tiny")


def finish(director: Director, order: TrialOrder | None, loss: float = 1.0) -> None:
    assert order is not None
    assert director.judge(order.name, point(10, loss))
    director.end(order.name, TrialEnd("finished", {"loss": loss, "lr": 0.0}))


def drain(director: Director) -> list[str]:
    """Finish every trial in turn."""
    names = []
    while (order := director.next()) is not None:
        names.append(order.name)
        finish(director, order)
    assert director.is_over()
    return names


def statuses(director: Director) -> dict[str, str]:
    return {record.name: record.status for record in director.ledger.records()}


def test_a_grid_is_gone_through_once(plan_of: PlanOf, sweep: Location) -> None:
    director = Director(plan_of(), sweep, print)
    assert drain(director) == ["t000", "t001", "t002", "t003"]
    values = [record.values[LR] for record in director.ledger.records()]
    assert values == [1e-4, 1e-3, 1e-2, 5e-2]
    assert director.next() is None


def test_what_was_finished_is_not_done_again_and_what_was_cut_off_comes_first(
    plan_of: PlanOf, sweep: Location
) -> None:
    killed = Director(plan_of(), sweep, print)
    finish(killed, killed.next(), 0.5)
    assert killed.judge(killed.next().name, point(3, 0.7))  # type: ignore[union-attr]
    killed.next()
    # Here the process is killed; the next one knows only what is on disk.
    again = Director(plan_of(), sweep, print)
    assert drain(again) == ["t001", "t002", "t003"]
    records = again.ledger.records()
    assert [record.values[LR] for record in records] == [1e-4, 1e-3, 1e-2, 5e-2]
    assert [record.attempts for record in records] == [1, 2, 2, 1]
    assert len(records[1].points) == 2
    assert Director(plan_of(), sweep, print).next() is None


def test_random_values_do_not_depend_on_restarts_or_on_who_ends_first(
    plan_of: PlanOf, sweep: Location, tmp_path: Path
) -> None:
    straight = Director(plan_of(*RANDOM), sweep, print)
    drain(straight)
    cut = Director(plan_of(*RANDOM), Location.of(tmp_path / "other"), print)
    first, second = cut.next(), cut.next()
    finish(cut, second)
    del first
    again = Director(plan_of(*RANDOM), Location.of(tmp_path / "other"), print)
    drain(again)
    assert [r.values for r in again.ledger.records()] == [
        r.values for r in straight.ledger.records()
    ]


def test_a_sweep_goes_on_with_a_larger_budget(plan_of: PlanOf, sweep: Location) -> None:
    assert len(drain(Director(plan_of(*RANDOM), sweep, print))) == 5
    more = Director(plan_of(*RANDOM, "sweep.budget.trials=7"), sweep, print)
    assert drain(more) == ["t005", "t006"]


def test_no_trial_is_started_when_the_steps_are_spent(plan_of: PlanOf, sweep: Location) -> None:
    director = Director(plan_of(f"sweep.budget.steps={2 * STEPS}"), sweep, print)
    assert drain(director) == ["t000", "t001"]


def test_minutes_are_those_of_the_clock_before_a_restart_too(
    plan_of: PlanOf, sweep: Location, tmp_path: Path
) -> None:
    first = Director(plan_of(), sweep, print)
    one, other = first.next(), first.next()
    finish(first, one)
    assert other is not None
    # Two at a time, for ten minutes each, are not twenty minutes.
    for record in first.ledger.records():
        first.ledger.write(replace(record, seconds=600.0))
    first.ledger.note_elapsed(601.0)
    limited = plan_of("sweep.budget.minutes=15")
    assert drain(Director(limited, sweep, print)) == ["t001", "t002", "t003"]
    late = Location.of(tmp_path / "late")
    begun = Director(limited, late, print)
    finish(begun, begun.next())
    begun.ledger.note_elapsed(901.0)
    assert drain(Director(limited, late, print)) == []


def test_a_failed_trial_is_tried_once_more_when_the_sweep_goes_on(
    plan_of: PlanOf, sweep: Location
) -> None:
    director = Director(plan_of(), sweep, print)
    order = director.next()
    assert order is not None
    director.end(order.name, TrialEnd("failed", {}, "out of luck"))
    drain(director)
    assert statuses(director)["t000"] == "failed"
    again = Director(plan_of(), sweep, print)
    assert drain(again) == ["t000"]
    assert statuses(again)["t000"] == "finished"


def test_a_combination_that_the_job_refuses_is_recorded_and_passed_over(
    plan_of: PlanOf, sweep: Location
) -> None:
    told: list[str] = []
    words = ["sweep=knobs", "sweep.space.is_scaled.choice=[true]", "sweep.searcher=random",
             "sweep.budget.trials=30", "sweep.space.window.choice=[1, 2]"]  # fmt: skip
    director = Director(plan_of(*words), sweep, told.append)
    started = 0
    while (order := director.next()) is not None:
        started += 1
        director.end(order.name, TrialEnd("finished", {"error": 0.0, "cost": 0.0}))
    refused = [record for record in director.ledger.records() if record.status == "refused"]
    assert started + len(refused) == 30
    assert refused
    assert all(record.values["window"] == 1 for record in refused)
    assert "nothing to scale" in (refused[0].error or "")


def test_halving_stops_a_bad_trial_and_says_so(plan_of: PlanOf, sweep: Location) -> None:
    told: list[str] = []
    director = Director(plan_of("sweep.scheduler=asha"), sweep, told.append)
    first, second = director.next(), director.next()
    assert first is not None
    assert second is not None
    assert director.judge(first.name, point(1, 0.5))
    assert not director.judge(second.name, point(1, 0.9))
    record = director.ledger[second.name]
    assert (record.status, record.steps, record.metrics["loss"]) == ("stopped", 4, 0.9)
    assert "stopped at step 4 of 40" in told[-1]


HALVES = ("sweep.scheduler=asha", "sweep.asha={grace: 1, reduction: 2}")


def pause(director: Director, loss: float, index: int = 1) -> str:
    """Start the next trial, let it come to a rung, and let its process end where it pauses."""
    order = director.next()
    assert order is not None
    director.judge(order.name, point(index, loss))
    if director.ledger[order.name].status == "paused":
        director.end(order.name, TrialEnd("paused", {}))
    return order.name


def test_of_those_at_a_rung_the_best_go_on_when_all_have_come(
    plan_of: PlanOf, sweep: Location
) -> None:
    director = Director(plan_of(*HALVES), sweep, print)
    assert [pause(director, loss) for loss in (0.5, 0.9, 0.4)] == ["t000", "t001", "t002"]
    # Two go on, and one may still come: t002 is sure of its place, and t001 that it has none.
    assert statuses(director) == {"t000": "paused", "t001": "paused", "t002": "running"}
    assert pause(director, 0.95) == "t003"
    assert pause(director, 0.3, index=2) == "t000"
    assert statuses(director) == {
        "t000": "paused", "t001": "stopped", "t002": "running", "t003": "stopped"
    }  # fmt: skip
    assert not director.judge("t002", point(2, 0.35))
    assert drain(director) == ["t000"]


def test_a_paused_trial_goes_on_only_when_its_process_has_ended(
    plan_of: PlanOf, sweep: Location
) -> None:
    two = Director(plan_of(*HALVES, f"sweep.space.{LR}.grid=[1e-3, 1e-2]"), sweep, print)
    first, second = two.next(), two.next()
    assert first is not None
    assert second is not None
    assert two.judge(first.name, point(1, 0.5))
    assert not two.judge(second.name, point(1, 0.9))
    assert two.next() is None
    assert not two.is_over()
    two.end(first.name, TrialEnd("paused", {}))
    again = two.next()
    assert again is not None
    assert again.name == first.name
    finish(two, again)
    assert two.is_over()


def test_a_sweep_that_goes_on_knows_who_paused(plan_of: PlanOf, sweep: Location) -> None:
    killed = Director(plan_of(*HALVES), sweep, print)
    for loss in (0.3, 0.5, 0.4):
        pause(killed, loss)
    again = Director(plan_of(*HALVES), sweep, print)
    assert pause(again, 0.2, index=2) == "t000"
    assert pause(again, 0.9) == "t003"
    assert statuses(again) == {
        "t000": "paused", "t001": "stopped", "t002": "paused", "t003": "stopped"
    }  # fmt: skip
    assert pause(again, 0.4, index=2) == "t002"
    assert statuses(again) == {
        "t000": "paused", "t001": "stopped", "t002": "stopped", "t003": "stopped"
    }  # fmt: skip
    assert drain(again) == ["t000"]


def test_the_last_evaluation_never_stops_a_trial(plan_of: PlanOf, sweep: Location) -> None:
    director = Director(plan_of("sweep.scheduler=asha"), sweep, print)
    first, second = director.next(), director.next()
    assert first is not None
    assert second is not None
    assert director.judge(first.name, point(10, 0.5))
    assert director.judge(second.name, point(10, 0.9))


def test_optuna_is_seeded_and_learns_from_the_ledger(
    plan_of: PlanOf, sweep: Location, tmp_path: Path
) -> None:
    words = ["sweep.searcher=optuna", f"sweep.space.{LR}.log_uniform=[1e-4,1e-1]",
             "sweep.budget.trials=25"]  # fmt: skip

    def search(place: Location, stop_after: int) -> list[float]:
        director = Director(plan_of(*words), place, lambda text: None)
        while (order := director.next()) is not None and stop_after:
            stop_after -= 1
            lr = float(director.ledger[order.name].values[LR])  # type: ignore[arg-type]
            # Best at 0.01.
            finish(director, order, abs(lr - 0.01) / 0.01)
        return [float(record.values[LR]) for record in director.ledger.records()]  # type: ignore[arg-type]

    straight = search(sweep, 99)
    assert straight == search(Location.of(tmp_path / "same"), 99)
    assert len(set(straight)) == 25
    cut = Location.of(tmp_path / "cut")
    search(cut, 12)
    resumed = search(cut, 99)
    assert resumed[:12] == straight[:12]
    assert len(set(resumed)) == 25
    # It looks where it was good: closer in the second half than random draws would be.
    late = sorted(abs(lr - 0.01) / 0.01 for lr in resumed[12:])
    assert late[len(late) // 2] < 0.9


# Populations.


def commit(sweep: Location, trial: str, step: int) -> Location:
    """A committed checkpoint, as far as the driver looks at one."""
    folder = sweep / "trials" / trial / "stages" / "tiny" / "checkpoints" / f"step-{step:08d}"
    state = TrainState(
        step=step, position=0, counts={}, best_value=None, best_step=None,
        evaluations_since_best=0, metrics={}, trained_s=0.0,
    )  # fmt: skip
    manifest = Manifest(
        format=FORMAT, tag=folder.name, state=state, world_size=1, zero_stage=0, precision="fp32",
        config_digest="", stream_fingerprint="", versions={}, files=[],
    )  # fmt: skip
    (folder / MANIFEST_NAME).write_text(to_json(manifest))
    return folder


def evaluate(director: Director, sweep: Location, name: str, index: int, loss: float) -> bool:
    commit(sweep, name, 4 * index)
    return director.judge(name, point(index, loss))


def test_a_member_is_replaced_by_a_changed_copy_of_the_best(
    plan_of: PlanOf, sweep: Location
) -> None:
    director = Director(plan_of(*PBT), sweep, print)
    orders = [director.next() for _ in range(3)]
    assert all(order is not None and order.saves for order in orders)
    assert evaluate(director, sweep, "t000", 1, 0.2)
    assert evaluate(director, sweep, "t001", 1, 0.1)
    assert not evaluate(director, sweep, "t002", 1, 0.9)
    child = director.next()
    assert child is not None
    record = director.ledger["t002-1"]
    assert (child.name, record.parent, record.parent_step) == ("t002-1", "t001", 4)
    assert child.branch == sweep / "trials/t001/stages/tiny/checkpoints/step-00000004"
    assert record.values != director.ledger["t001"].values
    assert child.loaded.config.fit.optimizer.lr == record.values[LR]  # type: ignore[attr-defined]
    assert statuses(director)["t002"] == "replaced"


def test_the_copied_checkpoint_stays_until_the_copy_has_been_evaluated(
    plan_of: PlanOf, sweep: Location
) -> None:
    director = Director(plan_of(*PBT), sweep, print)
    for _ in range(3):
        director.next()
    evaluate(director, sweep, "t000", 1, 0.2)
    evaluate(director, sweep, "t001", 1, 0.1)
    evaluate(director, sweep, "t002", 1, 0.9)
    donor = sweep / "trials/t001/stages/tiny/checkpoints"
    for step in (8, 12, 16):
        commit(sweep, "t001", step)
        collect(donor, keep=1, step=step, best_step=None)
    assert sorted(folder.name for folder in donor.list()) == ["step-00000004", "step-00000016"]
    director.next()
    evaluate(director, sweep, "t002-1", 2, 0.1)
    assert not is_pinned(donor / "step-00000004")


def test_more_members_than_places_take_turns_and_all_come_to_the_end(
    plan_of: PlanOf, sweep: Location
) -> None:
    """Two places, five members, and a driver that is killed after every seventh event."""
    words = (*PBT, "sweep.budget.trials=5", "sweep.pbt.every=3")
    director = Director(plan_of(*words), sweep, lambda text: None)
    running: list[TrialOrder] = []
    at: dict[str, int] = {}
    for event in range(2000):
        if event % 7 == 6:
            director, running = Director(plan_of(*words), sweep, lambda text: None), []
            at = {
                record.name: record.points[-1].index if record.points else record.parent_step // 4
                for record in director.ledger.records()
            }
        while len(running) < 2 and (order := director.next()) is not None:
            running.append(order)
            at.setdefault(order.name, director.ledger[order.name].parent_step // 4)
        if not running:
            break
        order = running[event % len(running)]
        at[order.name] += 1
        index = at[order.name]
        lr = float(director.ledger[order.name].values[LR])  # type: ignore[arg-type]
        if index > 10:
            director.end(order.name, TrialEnd("finished", {"loss": lr, "lr": lr}))
            running.remove(order)
        elif not evaluate(director, sweep, order.name, index, lr / index):
            running.remove(order)
    assert director.is_over()
    newest = {record.number: record for record in director.ledger.records()}
    assert sorted(newest) == [0, 1, 2, 3, 4]
    assert {record.status for record in newest.values()} == {"finished"}
    replaced = [record for record in director.ledger.records() if record.status == "replaced"]
    assert replaced, "somebody gave way"
    for record in director.ledger.records():
        indices = [seen.index for seen in record.points]
        first = record.parent_step // 4 + 1
        assert indices == list(range(first, first + len(indices))), "no evaluation twice, none lost"
        if record.parent is not None:
            donor = director.ledger[record.parent]
            assert record.parent_step in [seen.step for seen in donor.points]


def test_a_kill_between_the_two_records_of_a_replacement_leaves_one_member(
    plan_of: PlanOf, sweep: Location
) -> None:
    director = Director(plan_of(*PBT), sweep, print)
    for _ in range(3):
        director.next()
    evaluate(director, sweep, "t000", 1, 0.2)
    evaluate(director, sweep, "t001", 1, 0.1)
    evaluate(director, sweep, "t002", 1, 0.9)
    # The child is on record, and the parent still says that it runs.
    record: TrialRecord = replace(director.ledger["t002"], status="running")
    director.ledger.write(record)
    again = Director(plan_of(*PBT), sweep, print)
    names = {order.name for _ in range(3) if (order := again.next()) is not None}
    assert names == {"t000", "t001", "t002-1"}
    assert again.next() is None
