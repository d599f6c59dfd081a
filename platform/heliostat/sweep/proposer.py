"""Where the values of the next trial come from; the only module that knows Optuna.

Grids and random draws depend on the number of the trial alone. Optuna's sampler looks at all trials
so far, which it is told from the ledger when a sweep goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from heliostat.sweep.config import RangeConfig, SweepConfig
from heliostat.sweep.ledger import TrialRecord
from heliostat.sweep.plan import SweepPlan
from heliostat.sweep.space import Values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class Proposer(Protocol):
    """A searcher."""

    def propose(self, number: int) -> Values:
        """Values for the trial of that number."""
        ...

    def learn(self, record: TrialRecord) -> None:
        """Hear of a trial that pauses or has ended."""
        ...


def make_proposer(plan: SweepPlan, records: Sequence[TrialRecord]) -> Proposer:
    """The searcher of a sweep, which knows the trials before."""
    if plan.settings.searcher == "optuna":
        return Optuna(plan, records)
    return Fixed(plan)


class Fixed:
    """A grid, or random draws."""

    def __init__(self, plan: SweepPlan) -> None:
        self._plan = plan

    def propose(self, number: int) -> Values:
        """What the plan has for that number."""
        return self._plan.proposal(number)

    def learn(self, record: TrialRecord) -> None:
        """Results change nothing."""


class Optuna:
    """Tree-structured Parzen estimators (Bergstra et al. 2011), by Optuna."""

    def __init__(self, plan: SweepPlan, records: Sequence[TrialRecord]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("optuna").setLevel(logging.ERROR)
        self._optuna = optuna
        self._settings: SweepConfig = plan.settings
        self._space = plan.space
        self._distributions = {
            key: _distribution(values) for key, values in plan.space.ranges.items()
        }
        ended = [record for record in records if not record.is_open]
        # The generator begins anew at a restart: what is drawn then must not repeat the beginning.
        self._sampler = optuna.samplers.TPESampler(
            seed=self._settings.seed * 100_003 + len(ended), constant_liar=True
        )
        self._running: dict[int, Values] = {}
        self._seen: dict[str, TrialRecord] = {}
        for record in records:
            if record.is_open and not record.points:
                self._running[record.number] = record.values
            else:
                self.learn(record)

    def propose(self, number: int) -> Values:
        """What the sampler expects to be good."""
        study = self._optuna.create_study(
            direction="maximize" if self._settings.mode == "max" else "minimize",
            sampler=self._sampler,
        )
        # A trial in a study cannot be changed, so what pauses and goes on needs a new study.
        for record in self._seen.values():
            study.add_trial(self._told(record))
        for values in self._running.values():
            study.add_trial(self._trial("RUNNING", values))
        values = self._space.completed(study.ask(self._distributions).params)
        self._running[number] = values
        return values

    def learn(self, record: TrialRecord) -> None:
        """Note it for the next proposal."""
        self._running.pop(record.number, None)
        self._seen[record.name] = record

    def _told(self, record: TrialRecord) -> Any:
        """A trial as Optuna sees it: one that paused or was stopped counts as pruned."""
        metric = self._settings.metric
        value = record.value(metric)
        if record.status in ("failed", "refused") or math.isnan(value):
            return self._trial("FAIL", record.values)
        seen = {p.step: p.metrics[metric] for p in record.points if metric in p.metrics}
        state = "COMPLETE" if record.status == "finished" else "PRUNED"
        return self._trial(state, record.values, value=value, intermediate_values=seen)

    def _trial(self, state: str, values: Values, **more: Any) -> Any:
        trial = self._optuna.trial
        return trial.create_trial(
            state=trial.TrialState[state],
            params={key: values[key] for key in self._distributions},
            distributions=self._distributions,
            **more,
        )


def _distribution(values: RangeConfig) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if values.integer is not None:
        return IntDistribution(values.integer[0], values.integer[1])
    if values.listed is not None:
        return CategoricalDistribution(tuple(values.listed))
    assert values.bounds is not None
    return FloatDistribution(*values.bounds, log=values.log_uniform is not None)
