"""What the claim is judged by, on losses made up for the purpose; and the trials behind it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jobs.rerope.criteria import criteria, paired_ratio, standard_error
from jobs.rerope.evaluation import Scores
from jobs.rerope.report import COLUMNS, result_table
from jobs.rerope.study import (
    Study,
    choose,
    log_n_candidates,
    plain_candidates,
    reported_trials,
)
from jobs.rerope.tasks import Variant
from jobs.rerope.trials import METHODS, TRIALS, Trial, label, settings, windows

L, WINDOWS, SEEDS = 64, 40, (1, 2, 3)
FAR = {
    "rope": 3.4,
    "pi": 3.2,
    "ntk_old": 3.1,
    "ntk": 3.2,
    "ntk_fixed": 3.1,
    "ntk_mixed": 3.0,
    "yarn": 1.94,
    "self_extend": 1.40,
    "dca": 1.42,
}


def made_up(trial: Trial, variant: Variant) -> float:
    """A loss under which everything holds."""
    scheme = trial.scheme
    if variant == "log_n":
        return 1.39 if scheme.name == "rerope" else 1.40 if trial.length == L else 2.5
    if variant == "inverse_leaky":
        return 1.42
    if trial.length == L:
        return 1.404
    if scheme.name in ("rerope", "leaky_rerope"):
        away = abs((scheme.window or 0) - 40) / 24
        loss = 1.40 + 0.35 * away**2 + (0.08 if scheme.log_n == "none" else 0.0)
        if scheme.interval is None:
            return loss
        return loss + (0.01 if scheme.interval > 8 else 0.5)
    place = settings_place(trial)
    return FAR[scheme.name] + 0.01 * place


def settings_place(trial: Trial) -> int:
    tried = settings(trial.scheme.name, train_length=L, length=trial.length)  # type: ignore[arg-type]
    return tried.index(trial.scheme)


def scores(trials: tuple[Trial, ...], variant: Variant, seed: int) -> Scores:
    noise = np.random.default_rng(seed)
    windows_of_text = np.linspace(-0.3, 0.3, WINDOWS)[:, None]
    means = np.array([made_up(trial, variant) for trial in trials])
    losses = means + windows_of_text + noise.normal(0.0, 1e-3, (WINDOWS, len(trials)))
    at_length = [place for place, trial in enumerate(trials) if trial.length == L]
    losses[:, at_length] = losses[:, at_length[:1]]
    return Scores(trials, losses, 1.0 - losses / 4)


@pytest.fixture(scope="module")
def study() -> Study:
    plain = [scores(plain_candidates(L), "plain", seed) for seed in SEEDS]
    log_n = [scores(log_n_candidates(L), "log_n", seed) for seed in SEEDS]
    chosen = choose(L, plain, log_n)
    reported = reported_trials(L, chosen)
    return Study(
        L,
        SEEDS,
        chosen,
        {
            variant: tuple(scores(trials, variant, seed + 10) for seed in SEEDS)
            for variant, trials in reported.items()
        },
    )


def test_every_method_with_settings_gets_as_many_trials_as_rerope() -> None:
    for length in (4 * L, 8 * L):
        for method in METHODS:
            tried = settings(method, train_length=L, length=length)
            assert len(set(tried)) == len(tried) == (2 if method == "rope" else TRIALS)
    assert windows(64) == [4, 8, 16, 24, 32, 40, 48, 56, 64]


def test_names_tell_trials_apart() -> None:
    schemes = {trial.scheme for trial in plain_candidates(L)}
    assert len({label(scheme) for scheme in schemes}) == len(schemes)


def test_the_settings_of_lowest_loss_are_chosen(study: Study) -> None:
    assert study.chosen.plain["rerope", 8 * L].window == 40
    for method in METHODS[1:-1]:
        first = settings(method, train_length=L, length=8 * L)[0]
        assert study.chosen.plain[method, 8 * L] == first


def test_the_claim_holds_on_losses_like_the_published_ones(study: Study) -> None:
    found = criteria(study)
    assert [c.what for c in found if not c.holds] == []
    assert {c.name[0] for c in found} == set("1234567")


@pytest.mark.parametrize(
    ("variant", "name", "change", "broken"),
    [
        ("plain", "yarn", -0.3, {"1-yarn-4L", "1-yarn-8L"}),
        ("plain", "self_extend", -0.05, {"3-self_extend"}),
        ("log_n", "rerope", 0.1, {"2-log-n-trained"}),
        ("inverse_leaky", "rope", 1.5, {"7-at-8L", "7-at-L"}),
        ("plain", "leaky_rerope", 0.2, {"6-leaky-16", "6-leaky-32"}),
    ],
)
def test_a_worse_figure_breaks_its_criterion_and_no_other(
    study: Study, variant: Variant, name: str, change: float, broken: set[str]
) -> None:
    changed = tuple(
        replace(
            one,
            losses=one.losses + change * np.array([t.scheme.name == name for t in one.trials]),
        )
        for one in study.scores[variant]
    )
    other = replace(study, scores={**study.scores, variant: changed})
    assert {c.name for c in criteria(other) if not c.holds} == broken


def test_the_standard_error_of_a_pair_does_not_see_how_windows_differ() -> None:
    generator = np.random.default_rng(0)
    hard = np.linspace(0.0, 5.0, 50)
    worse = hard + 0.1 + generator.normal(0.0, 0.01, (3, 50))
    better = hard + generator.normal(0.0, 0.01, (3, 50))
    difference = (worse - better).mean(axis=0)
    expected = difference.mean() / (difference.std(ddof=1) / 50**0.5)
    assert paired_ratio(better, worse) == pytest.approx(expected)
    assert paired_ratio(better, worse) > 50 * 0.1 / standard_error(better)


def test_the_table_has_a_row_for_each_scheme(study: Study) -> None:
    rows = result_table(study)
    assert all(len(row) == len(COLUMNS) for row in rows)
    by_name = {row[0]: row for row in rows}
    assert by_name["rerope"][4] == pytest.approx(1.40, abs=0.01)
