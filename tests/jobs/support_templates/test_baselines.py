"""Classical baselines: rankings over the whole map, tuned on validation, exact in fewer rows."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from heliostat.errors import ConfigError, DataError
from jobs.support_templates.baselines import (
    BaselineConfig,
    LabelledTexts,
    majority_ranking,
    tfidf_regression,
)
from jobs.support_templates.evaluation import ScoredSamples, evaluate
from jobs.support_templates.label_map import LabelMap

CLASSES = 9
WORDS = [
    "card declined",
    "refund late",
    "login code",
    "address wrong",
    "fee charged twice",
    "app crashes",
    "close account",
    "statement missing",
]


def texts(rows: int, seed: int) -> LabelledTexts:
    """Texts of labels 0 to 7 among filler words; label 8 never occurs."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(WORDS), rows)
    filler = [" ".join(f"w{random.integers(200)}" for _ in range(12)) for _ in range(rows)]
    return LabelledTexts([f"{f} {WORDS[y]}" for f, y in zip(filler, labels, strict=True)], labels)


TRAIN, VALIDATION, TEST = texts(400, 0), texts(60, 1), texts(200, 2)


def test_majority_ranks_labels_by_their_frequency() -> None:
    labels = np.array([2, 2, 2, 0, 0, 1, -1, -1, -1, -1])
    baseline = majority_ranking(labels, classes=4, rows=3)
    assert baseline.scores.shape == (3, 4)
    assert (baseline.scores == baseline.scores[0]).all()
    assert baseline.scores[0].argsort()[::-1].tolist() == [2, 0, 1, 3]
    assert np.exp(baseline.scores[0]) == pytest.approx([2 / 6, 1 / 6, 3 / 6, 0], abs=1e-6)


def test_regression_learns_and_covers_the_whole_map() -> None:
    baseline = tfidf_regression(
        "full",
        train=TRAIN,
        validation=VALIDATION,
        test_texts=TEST.texts,
        classes=CLASSES,
        config=BaselineConfig(),
    )
    assert baseline.scores.shape == (200, CLASSES)
    assert np.exp(baseline.scores).sum(axis=1) == pytest.approx(np.ones(200), abs=1e-6)
    label_map = LabelMap(tuple(f"t{i}" for i in range(CLASSES)), datetime(2026, 1, 1, tzinfo=UTC))
    evaluation = evaluate(
        baseline.scores,
        ScoredSamples([f"t{y}" for y in TEST.labels], [1] * 200),
        label_map,
        temperature=1.0,
        recent=(),
        skipped={},
    )
    assert evaluation.overall.top1 > 0.95
    assert np.isfinite(evaluation.loss)


def test_penalty_is_the_best_on_validation_and_all_are_reported() -> None:
    baseline = tfidf_regression(
        "full",
        train=TRAIN,
        validation=VALIDATION,
        test_texts=TEST.texts,
        classes=CLASSES,
        config=BaselineConfig(penalties=(100.0, 1e-6, 1.0)),
    )
    assert [trial.penalty for trial in baseline.trials] == [1e-6, 1.0, 100.0]
    assert baseline.chosen == max(baseline.trials, key=lambda t: (t.top1, -t.loss))
    assert baseline.chosen is not None
    assert baseline.chosen.penalty != 1e-6


def test_the_row_space_gives_the_regression_on_the_features_themselves() -> None:
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = vectorizer.fit_transform(TRAIN.texts)
    assert features.shape[0] < features.shape[1]
    plain = LogisticRegression(C=10.0, max_iter=2000, tol=1e-8).fit(features, TRAIN.labels)
    baseline = tfidf_regression(
        "full",
        train=TRAIN,
        validation=VALIDATION,
        test_texts=TEST.texts,
        classes=CLASSES,
        config=BaselineConfig(penalties=(10.0,), max_iterations=2000, tolerance=1e-6),
    )
    expected = plain.predict_proba(vectorizer.transform(TEST.texts))
    assert np.exp(baseline.scores[:, :8]) == pytest.approx(expected, abs=3e-4)


def test_labels_outside_the_map_train_nothing_and_count_as_misses() -> None:
    strangers = LabelledTexts([*TRAIN.texts, "stranger"], np.append(TRAIN.labels, -1))
    missed = LabelledTexts([*VALIDATION.texts, "stranger"], np.append(VALIDATION.labels, -1))
    config = BaselineConfig(penalties=(10.0,))

    def fitted(train: LabelledTexts, validation: LabelledTexts) -> tuple[np.ndarray, float]:
        baseline = tfidf_regression(
            "full",
            train=train,
            validation=validation,
            test_texts=TEST.texts,
            classes=CLASSES,
            config=config,
        )
        return baseline.scores, baseline.trials[0].top1

    scores, top1 = fitted(TRAIN, VALIDATION)
    again, lower = fitted(strangers, missed)
    assert again == pytest.approx(scores)
    assert lower == pytest.approx(top1 * 60 / 61)


def test_data_that_cannot_be_fitted_are_refused() -> None:
    one = LabelledTexts(["a card", "the card"], np.array([0, 0]))
    with pytest.raises(DataError, match="two labels"):
        tfidf_regression(
            "full",
            train=one,
            validation=VALIDATION,
            test_texts=["card"],
            classes=2,
            config=BaselineConfig(),
        )
    with pytest.raises(DataError, match="majority"):
        majority_ranking(np.array([-1]), classes=2, rows=1)
    with pytest.raises(ConfigError, match="penalties"):
        BaselineConfig(penalties=())
