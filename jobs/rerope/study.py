"""What a run and the claim have in common: train the models, choose settings, measure.

The settings of every method are chosen by the mean loss over the seeds on one half of the windows;
everything reported is measured on the other half. Each training and each measurement is a stage of
the run, several at a time, so an interrupted study goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from heliostat.config.int_range import IntRange
from heliostat.data.table import Table
from heliostat.runs.inputs import Input
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.fit import FitResult, fit
from heliostat.train.parallel import in_parallel
from heliostat.train.predict import predict
from jobs.corpora.python_sources import COLLECTIONS, python_sources
from jobs.rerope.config import Config
from jobs.rerope.evaluation import (
    Losses,
    PositionScoring,
    Scores,
    Scoring,
    measure,
    windows_of,
)
from jobs.rerope.tasks import REACH, VARIANTS, Variant, model_shape, task_of
from jobs.rerope.trials import (
    LEAKY_INTERVALS,
    METHODS,
    Method,
    Text,
    Trial,
    label,
    leaky,
    leaky_windows,
    rerope,
    settings,
    windows,
)
from models.positions import PositionScheme

EXPANSIONS = (1, 4, 8)
"""Contexts that are measured, in training lengths."""
R = TypeVar("R")
E = TypeVar("E")


@dataclass(frozen=True)
class Corpus:
    """The prepared text."""

    train: Table
    test: Table

    def inputs(self) -> list[Input]:
        """What results rest on."""
        source = self.train.metadata["source"]
        return [
            Input("source files", "real", f"the .py files of the {source}", "PSF-2.0 and others")
        ]


@dataclass(frozen=True)
class Chosen:
    """The settings that were chosen, by method and context; those of the log-n model apart."""

    plain: Mapping[tuple[Method, int], PositionScheme]
    log_n: Mapping[int, PositionScheme]
    """ReRoPE with the model trained with log-n scaling, by context."""


@dataclass(frozen=True)
class Study:
    """Everything that was measured on the reporting half."""

    train_length: int
    seeds: tuple[int, ...]
    chosen: Chosen
    scores: Mapping[Variant, tuple[Scores, ...]]
    """Of each model, seed by seed."""

    @property
    def far(self) -> int:
        """The longest context, 8 L."""
        return REACH * self.train_length

    def loss(
        self,
        scheme: PositionScheme,
        length: int,
        *,
        variant: Variant = "plain",
        text: Text = "natural",
    ) -> Losses:
        """Losses of a trial, [seeds, windows]."""
        return np.stack([one.loss(scheme, length, text) for one in self.scores[variant]])

    def accuracy(
        self,
        scheme: PositionScheme,
        length: int,
        *,
        variant: Variant = "plain",
        text: Text = "natural",
    ) -> Losses:
        """Accuracies of a trial, [seeds, windows]."""
        return np.stack([one.accuracy(scheme, length, text) for one in self.scores[variant]])

    def best(self, method: Method, length: int) -> Losses:
        """Losses of a method with its chosen settings, [seeds, windows]."""
        return self.loss(self.chosen.plain[method, length], length)


def open_corpus(config: Config, run: Run) -> Corpus:
    """Read the source files once."""
    (collection,) = (name for name in COLLECTIONS if name == config.data.collection)
    workers = config.data.preparation_workers
    train, test = (
        python_sources(run.cache, side, collection=collection, workers=workers)
        for side in ("train", "test")
    )
    return Corpus(train, test)


def train_models(
    config: Config, run: Run, corpus: Corpus, seeds: Sequence[int]
) -> dict[tuple[Variant, int], FitResult]:
    """Train every model of every seed."""

    def train(entry: tuple[Variant, int]) -> FitResult:
        variant, seed = entry
        task = task_of(
            config,
            variant,
            train=corpus.train.location,
            validation=corpus.test.location,
            seed=seed,
        )
        return fit(
            task,
            config.fit,
            run=run,
            resources=config.resources,
            name=f"s{seed}-{variant}",
        )

    work = [(variant, seed) for seed in seeds for variant in VARIANTS]
    return dict(zip(work, _side_by_side(config, train, work), strict=True))


def run_study(
    config: Config,
    run: Run,
    corpus: Corpus,
    models: Mapping[tuple[Variant, int], FitResult],
    seeds: Sequence[int],
) -> Study:
    """Choose on one half of the windows, measure on the other."""

    def score(entry: tuple[Variant, int, str, tuple[Trial, ...]]) -> Scores:
        variant, seed, half, trials = entry
        stream = windows_of(
            corpus.test.location,
            train_length=config.length,
            windows=config.evaluation.windows,
            seed=config.evaluation.seed,
            half=half,
        )
        return measure(
            f"s{seed}-{variant}-{half}",
            run,
            Scoring(model_shape(config, variant), config.length, trials),
            models[variant, seed].final,
            stream,
            resources=config.resources,
            batch=config.evaluation.batch,
        )

    length = config.length
    candidates: dict[Variant, tuple[Trial, ...]] = {
        "plain": plain_candidates(length),
        "log_n": log_n_candidates(length),
    }
    work = [(v, seed, "choice", trials) for v, trials in candidates.items() for seed in seeds]
    found = _side_by_side(config, score, work)
    chosen = choose(length, found[: len(seeds)], found[len(seeds) :])
    reported = reported_trials(length, chosen)
    work = [(v, seed, "report", trials) for v, trials in reported.items() for seed in seeds]
    measured = _side_by_side(config, score, work)
    count = len(seeds)
    return Study(
        train_length=length,
        seeds=tuple(seeds),
        chosen=chosen,
        scores={
            variant: tuple(measured[place * count : (place + 1) * count])
            for place, variant in enumerate(reported)
        },
    )


def plain_candidates(length: int) -> tuple[Trial, ...]:
    """What the choice for the plain model is made from."""
    return tuple(
        Trial(scheme, n)
        for n in (4 * length, REACH * length)
        for method in METHODS
        for scheme in settings(method, train_length=length, length=n)
    )


def log_n_candidates(length: int) -> tuple[Trial, ...]:
    """What the choice for the model trained with log-n scaling is made from."""
    return tuple(
        Trial(rerope(window, "train"), n)
        for n in (4 * length, REACH * length)
        for window in windows(length)
    )


def choose(length: int, plain: Sequence[Scores], log_n: Sequence[Scores]) -> Chosen:
    """The settings of lowest mean loss over the seeds."""

    def best(scores: Sequence[Scores], schemes: Iterable[PositionScheme], n: int) -> PositionScheme:
        return min(
            schemes, key=lambda scheme: np.mean([one.loss(scheme, n).mean() for one in scores])
        )

    contexts = (4 * length, REACH * length)
    return Chosen(
        plain={
            (method, n): best(plain, settings(method, train_length=length, length=n), n)
            for n in contexts
            for method in METHODS
        },
        log_n={n: best(log_n, [rerope(w, "train") for w in windows(length)], n) for n in contexts},
    )


def reported_trials(length: int, chosen: Chosen) -> dict[Variant, tuple[Trial, ...]]:
    """Everything that is measured on the reporting half, each trial once."""
    far = REACH * length
    rope, trained = PositionScheme("rope"), PositionScheme("rope", log_n="train")
    plain = [
        Trial(rope, length),
        Trial(PositionScheme("rope", log_n="post"), length),
        *(Trial(chosen.plain["rerope", n], length) for n in (4 * length, far)),
        *(Trial(rope, n) for n in (4 * length, far)),
        *(Trial(scheme, n) for (_, n), scheme in chosen.plain.items()),
        *(Trial(rerope(w, mode), far) for w in windows(length) for mode in ("none", "post")),
        *(Trial(leaky(w, k), far) for w in leaky_windows(length) for k in LEAKY_INTERVALS),
        *(Trial(scheme, far, "repeated") for (_, n), scheme in chosen.plain.items() if n == far),
    ]
    log_n = [
        Trial(trained, length),
        *(Trial(trained, n) for n in (4 * length, far)),
        *(Trial(scheme, n) for n, scheme in chosen.log_n.items()),
        Trial(chosen.log_n[far], far, "repeated"),
    ]
    inverse = [Trial(trained, expansion * length) for expansion in EXPANSIONS]
    return {
        "plain": tuple(dict.fromkeys(plain)),
        "log_n": tuple(dict.fromkeys(log_n)),
        "inverse_leaky": (*inverse, Trial(trained, far, "repeated")),
    }


@dataclass(frozen=True)
class Line:
    """A model read under a scheme, as a line of the figure of losses by position."""

    name: str
    variant: Variant
    scheme: PositionScheme


def position_lines(study: Study) -> list[Line]:
    """Every scheme with its best settings at 8 L, and the models trained for a scheme."""
    length, far = study.train_length, study.far
    leaky_rerope = min(
        (leaky(w, k) for w in leaky_windows(length) for k in LEAKY_INTERVALS),
        key=lambda scheme: float(study.loss(scheme, far).mean()),
    )
    plain = [study.chosen.plain[method, far] for method in METHODS]
    plain += [leaky_rerope, PositionScheme("nope")]
    trained, with_log_n = PositionScheme("rope", log_n="train"), study.chosen.log_n[far]
    return [
        *(Line(label(scheme), "plain", scheme) for scheme in plain),
        Line("rerope, log n trained", "log_n", with_log_n),
        Line("rope, log n trained", "log_n", trained),
        Line("rope, inverse leaky trained", "inverse_leaky", trained),
    ]


def loss_by_position(
    config: Config,
    run: Run,
    corpus: Corpus,
    weights: Mapping[Variant, Location],
    lines: Sequence[Line],
) -> dict[str, list[float]]:
    """Mean loss at each of 8 L positions, line by line."""
    found: dict[str, list[float]] = {}
    for variant in VARIANTS:
        mine = [line for line in lines if line.variant == variant]
        schemes = [line.scheme for line in mine]
        losses = _losses_by_position(config, run, corpus, variant, weights[variant], schemes)
        found |= {line.name: row for line, row in zip(mine, losses, strict=True)}
    return found


def _losses_by_position(
    config: Config,
    run: Run,
    corpus: Corpus,
    variant: Variant,
    weights: Location,
    schemes: Sequence[PositionScheme],
) -> list[list[float]]:
    stream = replace(
        windows_of(
            corpus.test.location,
            train_length=config.length,
            windows=config.evaluation.windows,
            seed=config.evaluation.seed,
            half="report",
        ),
        count=min(config.evaluation.position_windows, config.evaluation.windows // 2),
    )

    def work(folder: Location) -> list[list[float]]:
        scoring = PositionScoring(model_shape(config, variant), config.length, tuple(schemes))
        found = predict(
            scoring,
            scoring.output,
            weights,
            stream,
            resources=config.resources,
            batch_size=config.evaluation.batch,
        )
        means: list[list[float]] = found.astype(np.float64).mean(axis=0).tolist()
        return means

    key = {
        "schemes": [repr(scheme) for scheme in schemes],
        "windows": stream.fingerprint,
        "weights": weights.uri,
    }
    return run.stage(f"loss-by-position-{variant.replace('_', '-')}", key, work)


def one_worker(config: Config) -> Config:
    """One worker a training, so that several trainings fit side by side."""
    return replace(config, resources=replace(config.resources, workers=IntRange(1, 1)))


def _side_by_side(config: Config, do: Callable[[E], R], work: Sequence[E]) -> list[R]:
    return in_parallel(do, work, at_a_time=config.claim.parallel)
