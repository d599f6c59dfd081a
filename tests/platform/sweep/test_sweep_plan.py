"""Everything that can be wrong with a sweep is told in one sentence, before Ray starts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from heliostat.cli.sweep import kind_of
from heliostat.config.jobs import JobEntry
from heliostat.errors import ConfigError
from heliostat.sweep.plan import SweepPlan

PlanOf = Callable[..., SweepPlan]
LR = "fit.optimizer.lr"


def test_the_section_of_the_config_is_the_sweep(plan_of: PlanOf) -> None:
    plan = plan_of()
    assert plan.trials == 4
    assert [plan.proposal(number)[LR] for number in range(4)] == [1e-4, 1e-3, 1e-2, 5e-2]


def test_a_named_sweep_takes_the_place_of_the_section(plan_of: PlanOf) -> None:
    plan = plan_of("sweep=knobs")
    assert list(plan.space.ranges) == ["window"]
    assert plan.settings.metric == "error"


def test_a_range_on_the_command_line_replaces_the_one_in_the_file(plan_of: PlanOf) -> None:
    plan = plan_of(f"sweep.space.{LR}.log_uniform=[1e-4,1e-1]", "sweep.searcher=random",
                   "sweep.budget.trials=3")  # fmt: skip
    assert plan.space.ranges[LR].grid is None
    assert plan.space.ranges[LR].log_uniform == [1e-4, 1e-1]


def test_the_config_of_a_trial_is_the_config_with_its_values(plan_of: PlanOf) -> None:
    loaded = plan_of().config_of({LR: 0.01})
    assert loaded.config.fit.optimizer.lr == 0.01  # type: ignore[attr-defined]
    assert plan_of(f"{LR}=0.01").loaded.digest == loaded.digest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["sweep.space.fit.optimzer.lr.grid=[1e-3]"],
            "there is no key 'fit.optimzer.lr' (given the number 0.001); the nearest is "
            "fit.optimizer.lr",
        ),
        (
            ["sweep.space.window.choice=[4, wide]"],
            "'window' must be a whole number, but is the text 'wide'",
        ),
        (["sweep.space.window.grid=[]"], "grid is empty"),
        (["sweep.space.fit.grid=[1]"], "'fit' must be a section"),
        (["sweep.space.out.grid=[a]"], "out does not decide the result"),
        (["sweep.space.sweep.seed.grid=[1]"], "sweep does not decide the result"),
        (
            ["sweep.space.window.grid=[4, 100]"],
            "the cell fit.optimizer.lr=0.0001 window=100 of the grid is refused: command line: "
            "window: window is 100, but the longest is 64",
        ),
        (
            [f"sweep.space.{LR}={{grid: [1e-3], along: {{window: [4, 8]}}}}"],
            "along.window has 2 values; expected one for each of the listed values of this key",
        ),
        (
            [
                f"sweep.space.{LR}={{grid: [1e-3], along: {{window: [4]}}}}",
                "sweep.space.window.grid=[8]",
            ],
            "along names window, which is named already",
        ),
        (
            [f"sweep.space={{{LR}: {{grid: [1e-3], along: {{windw: [4]}}}}}}"],
            "there is no key 'windw' (given the number 4); the nearest is window",
        ),
        ([f"sweep.space.{LR}=null"], "sweep.space is empty"),
        (["sweep.scheduler=ahsa"], "the nearest is asha"),
        (["sweep.searcher=random"], "budget.trials is null"),
        (["sweep.searcher=grid", f"sweep.space.{LR}.uniform=[0,1]"], "continuous range"),
        (["sweep.searcher=optuna", "sweep.budget.trials=2"], "is a grid"),
        (["sweep.scheduler=pbt"], "begin at random"),
        (["sweep.second={cost: least}"], "second.cost is least; expected min or max"),
        (["sweep=knob"], "has no sweep 'knob' in its sweeps/, only knobs; the nearest is knobs"),
    ],
)
def test_what_cannot_be_is_refused(plan_of: PlanOf, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_of(*words)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_wrong_key_is_found_where_it_was_written(plan_of: PlanOf, tiny_job: JobEntry) -> None:
    file = tiny_job.folder / "config.yaml"
    file.write_text(file.read_text().replace("fit.optimizer.lr", "fit.optimizer.rl"))
    with pytest.raises(ConfigError, match=r"jobs/tiny/config.yaml:\d+: there is no key"):
        plan_of()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep.trial=trian"], "one of train, read; the nearest is train"),
        (
            ["sweep.metric=los"],
            "sweep.metric names 'los', but a trial of kind train ends with loss",
        ),
        (["sweep.show=[lss]"], "sweep.show names 'lss'"),
        (["sweep.at_most={lrr: 1}"], "sweep.at_most names 'lrr'"),
        (["sweep=knobs", "sweep.second={costs: min}"], "the nearest is cost"),
        (["sweep=knobs", "sweep.scheduler=asha"], "trains nothing, so there is nothing to stop"),
        (["sweep.metric=lr", "sweep.scheduler=asha"], "an evaluation measures loss, mean_id"),
        (
            ["sweep.space.window.grid=[4]"],
            "names 'window', but a trial of kind train only looks at fit, width",
        ),
    ],
)
def test_kinds_and_metrics_that_the_job_does_not_have_are_refused(
    plan_of: PlanOf, tiny_job: JobEntry, words: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        kind_of(tiny_job, plan_of(*words))
    assert said in str(refused.value)


def test_the_digest_holds_the_search_but_not_the_budget(plan_of: PlanOf) -> None:
    digest = plan_of().digest(None)
    assert plan_of("sweep.budget.minutes=5", "sweep.parallel=1", "out=x").digest(None) == digest
    assert plan_of("sweep.seed=1").digest(None) != digest
    assert plan_of("window=4").digest(None) != digest
    assert plan_of().digest("another bundle") != digest


def test_a_sweep_changes_nothing_about_the_digest_of_a_run(plan_of: PlanOf) -> None:
    assert plan_of().loaded.digest == plan_of("sweep.seed=1").loaded.digest
