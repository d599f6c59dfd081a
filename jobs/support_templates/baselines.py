"""The classical baselines that every report shows beside the language models.

A majority ranking, and TF-IDF over word 1- and 2-grams (sublinear) with multinomial logistic
regression, on the full context or on its last message. Each returns a full matrix of
log-probabilities over the label map, so the metrics of the language models apply unchanged. The
regression's penalty is chosen on the validation side, by top-1 accuracy and then by loss: the
baselines are tuned too. Encoder baselines are a training task and live elsewhere.

With fewer texts than features the regression is solved in the row space of the features: the
penalised optimum is a combination of the training rows, so rotating the features onto an
orthonormal basis of those rows changes neither the objective nor the predictions, and makes the
fit about ten times faster (Hastie and Tibshirani, Biostatistics 5, 2004, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliostat.errors import ConfigError, DataError

Matrix = NDArray[np.float64]
Features = NDArray[np.float32] | NDArray[np.float64]
Labels = NDArray[np.int64]

_FLOOR = 1e-9
"""Probability of a label that the training texts never showed; keeps the loss finite."""
_ROTATION_ROWS = 4_000
"""Above this many training texts the dense row space costs more than the sparse features."""


@dataclass(frozen=True)
class BaselineConfig:
    """Settings of the regression baselines."""

    penalties: tuple[float, ...] = (10.0, 100.0, 1000.0)
    """Inverse penalty strengths C that are tried."""
    max_features: int = 50_000
    """Most frequent n-grams that are kept."""
    max_iterations: int = 200
    """Limit of the solver for one fit."""
    tolerance: float = 1e-5
    """The solver stops when no entry of the gradient is larger."""

    def __post_init__(self) -> None:
        if not self.penalties or min(self.penalties) <= 0.0:
            raise ConfigError(f"penalties is {self.penalties}: expected positive numbers")


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with their label indices; a negative index stands for a label outside the map."""

    texts: Sequence[str]
    labels: Labels


@dataclass(frozen=True)
class Trial:
    """One penalty and what it reached on the validation side."""

    penalty: float
    """Inverse penalty strength C."""
    top1: float
    loss: float
    """Over the validation samples whose label is in the map."""


@dataclass(frozen=True)
class BaselineScores:
    """The scores of a baseline on the test texts."""

    name: str
    scores: Matrix
    """Log-probabilities, (samples, labels of the map)."""
    trials: tuple[Trial, ...]
    """Every penalty that was tried; empty where there is nothing to tune."""
    chosen: Trial | None
    """The trial that made the scores; None where there is nothing to tune."""


def majority_ranking(train_labels: Labels, *, classes: int, rows: int) -> BaselineScores:
    """The same ranking for every sample: labels by their frequency in training."""
    counts = np.bincount(train_labels[train_labels >= 0], minlength=classes).astype(np.float64)
    if not counts.any():
        raise DataError("the majority ranking needs training samples with labels in the map")
    scores = np.log(np.maximum(counts / counts.sum(), _FLOOR))
    return BaselineScores(
        name="majority ranking", scores=np.tile(scores, (rows, 1)), trials=(), chosen=None
    )


def tfidf_regression(
    name: str,
    *,
    train: LabelledTexts,
    validation: LabelledTexts,
    test_texts: Sequence[str],
    classes: int,
    config: BaselineConfig,
) -> BaselineScores:
    """TF-IDF and logistic regression, with the penalty that is best on the validation side."""
    from sklearn.linear_model import LogisticRegression

    known = np.flatnonzero(train.labels >= 0)
    labels = train.labels[known]
    if len(np.unique(labels)) < 2 or not (validation.labels >= 0).any():
        raise DataError(
            f"baseline {name!r} needs training samples of two labels and a validation sample with "
            f"a label in the map: got {len(np.unique(labels))} labels and "
            f"{int((validation.labels >= 0).sum())} validation samples"
        )
    train_x, validation_x, test_x = _features(
        [train.texts[i] for i in known.tolist()], validation.texts, test_texts, config.max_features
    )
    # From the strongest penalty on, each fit starts where the last one ended: most is done.
    model = LogisticRegression(
        max_iter=config.max_iterations, tol=config.tolerance, warm_start=True
    )
    best: Trial | None = None
    trials, scores = [], np.empty((0, 0))
    for penalty in sorted(config.penalties):
        model.set_params(C=penalty).fit(train_x, labels)
        validation_scores = _over_map(
            model.predict_log_proba(validation_x), model.classes_, classes
        )
        trial = _trial(penalty, validation_scores, validation.labels)
        trials.append(trial)
        if best is None or (trial.top1, -trial.loss) > (best.top1, -best.loss):
            best = trial
            scores = _over_map(model.predict_log_proba(test_x), model.classes_, classes)
    return BaselineScores(name=name, scores=scores, trials=tuple(trials), chosen=best)


def _features(
    train: Sequence[str], validation: Sequence[str], test: Sequence[str], max_features: int
) -> tuple[Features, Features, Features]:
    """TF-IDF features of the three sides, in the row space of training where that is smaller."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=max_features)
    sparse = vectorizer.fit_transform(train)
    sides = (sparse, vectorizer.transform(validation), vectorizer.transform(test))
    if not len(train) < min(_ROTATION_ROWS, sparse.shape[1]):
        return sides
    values, vectors = np.linalg.eigh((sparse @ sparse.T).toarray())
    kept = values > 1e-10 * values[-1]
    basis = sparse.T @ (vectors[:, kept] / np.sqrt(values[kept]))
    # Single precision halves the time of the dense fit; its error is below the solver's.
    train_x, validation_x, test_x = (np.asarray(side @ basis, np.float32) for side in sides)
    return train_x, validation_x, test_x


def _over_map(log_probabilities: Features, seen: Labels, classes: int) -> Matrix:
    """Spread the columns of the labels seen in training over the whole label map."""
    scores = np.full((len(log_probabilities), classes), np.log(_FLOOR))
    scores[:, seen] = np.maximum(log_probabilities, np.log(_FLOOR))
    return scores


def _trial(penalty: float, scores: Matrix, labels: Labels) -> Trial:
    rows = np.flatnonzero(labels >= 0)
    return Trial(
        penalty=penalty,
        top1=float(np.mean(scores.argmax(axis=1) == labels)),
        loss=-float(np.mean(scores[rows, labels[rows]])),
    )
