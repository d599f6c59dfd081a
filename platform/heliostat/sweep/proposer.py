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
        """Hear of a trial that has ended."""
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
        self._distributions = {
            key: _distribution(values) for key, values in plan.space.ranges.items()
        }
        ended = [record for record in records if not record.is_open]
        # The generator begins anew at a restart: what is drawn then must not repeat the beginning.
        sampler = optuna.samplers.TPESampler(
            seed=self._settings.seed * 100_003 + len(ended), constant_liar=True
        )
        self._study = optuna.create_study(
            direction="maximize" if self._settings.mode == "max" else "minimize", sampler=sampler
        )
        self._asked: dict[int, Any] = {}
        for record in ended:
            self.learn(record)

    def propose(self, number: int) -> Values:
        """What the sampler expects to be good."""
        asked = self._study.ask(self._distributions)
        self._asked[number] = asked
        return dict(asked.params)

    def learn(self, record: TrialRecord) -> None:
        """Tell the sampler."""
        trial = self._optuna.trial
        value = record.value(self._settings.metric)
        state = trial.TrialState.COMPLETE if record.status == "finished" else None
        if record.status == "stopped":
            state = trial.TrialState.PRUNED
        if state is None or math.isnan(value):
            state = trial.TrialState.FAIL
        asked = self._asked.pop(record.number, None)
        if asked is not None:
            # Its place is taken by the record, which holds the same values.
            self._study.tell(asked, state=trial.TrialState.FAIL)
        seen = {
            point.step: point.metrics[self._settings.metric]
            for point in record.points
            if self._settings.metric in point.metrics
        }
        self._study.add_trial(
            trial.create_trial(
                state=state,
                params=dict(record.values),
                distributions=self._distributions,
                value=value if state != trial.TrialState.FAIL else None,
                intermediate_values=seen,
            )
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
