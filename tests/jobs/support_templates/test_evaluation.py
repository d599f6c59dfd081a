"""Evaluation: hand-counted cases, test vectors 2, 3, 12 and 13, and what temperature may change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from heliostat.errors import DataError
from jobs.support_templates.evaluation import (
    Evaluation,
    ScoredSamples,
    Scores,
    evaluate,
    fitted_temperature,
    recent_templates,
)
from jobs.support_templates.label_map import LabelMap

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def label_map_of(size: int) -> LabelMap:
    return LabelMap(tuple(f"t{i:03d}" for i in range(size)), NOW)


def evaluated(
    scores: Scores,
    labels: Sequence[int],
    *,
    depths: Sequence[int] | None = None,
    temperature: float = 1.0,
    recent: Sequence[str] = (),
) -> Evaluation:
    return evaluate(
        scores,
        ScoredSamples(
            template_ids=[f"t{label:03d}" for label in labels],
            depths=depths if depths is not None else [1] * len(labels),
        ),
        label_map_of(scores.shape[1]),
        temperature=temperature,
        recent=recent,
        skipped={"no_message_before": 3},
    )


def logs(probabilities: list[list[float]]) -> Scores:
    return np.log(np.array(probabilities))


def noisy(rows: int, classes: int, seed: int = 0) -> tuple[Scores, list[int]]:
    """Overconfident scores: twice the log-likelihood ratio of a unit normal shifted by two."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    scores = random.normal(size=(rows, classes))
    scores[np.arange(rows), labels] += 2.0
    return 4.0 * scores, labels.tolist()


def test_uniform_scores_over_640_templates_have_a_loss_of_ln_640() -> None:
    labels = list(range(640))
    evaluation = evaluated(np.zeros((640, 640)), labels)
    assert evaluation.loss == pytest.approx(6.461468, abs=1e-6)
    assert evaluation.overall.top5 == pytest.approx(5 / 640)


def test_ties_go_to_the_lower_label() -> None:
    scores = np.array([[3.0, 1, 2, 0], [0, 0, 0, 1], [1, 2, 3, 4]])
    overall = evaluated(scores, [2, 1, 0]).overall
    assert (overall.top1, overall.top3) == (0.0, pytest.approx(2 / 3))


def test_calibration_error_of_four_predictions() -> None:
    """Confidences 0.95, 0.95, 0.55, 0.55 with 1, 1, 1, 0 right: 0.05."""
    scores = logs([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.55, 0.45]])
    evaluation = evaluated(scores, [0, 0, 0, 1])
    assert evaluation.ece == pytest.approx(0.05, abs=1e-9)
    assert evaluation.calibrated_ece == evaluation.ece


def test_average_precision_of_four_scores() -> None:
    """Scores 0.9, 0.8, 0.7, 0.6 with relevance 1, 0, 1, 0: (1 + 2/3) / 2."""
    scores = logs([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    evaluation = evaluated(scores, [0, 1, 0, 1])
    first, second = evaluation.templates
    assert (first.template_id, first.samples) == ("t000", 2)
    assert first.average_precision == pytest.approx(0.83333, abs=5e-6)
    assert second.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert evaluation.macro_average_precision == pytest.approx(5 / 6)


def test_average_precision_agrees_with_scikit_learn() -> None:
    scores, labels = noisy(300, 7)
    labels = [label if label != 4 else 99 for label in labels]
    evaluation = evaluated(scores, labels, temperature=2.0)
    weights = np.exp(scores / 2.0 - (scores / 2.0).max(axis=1, keepdims=True))
    p = weights / weights.sum(axis=1, keepdims=True)
    expected = {
        f"t{c:03d}": average_precision_score(np.array(labels) == c, p[:, c])
        for c in set(labels) - {99}
    }
    found = {t.template_id: t.average_precision for t in evaluation.templates}
    assert found == pytest.approx(expected)
    assert evaluation.macro_average_precision == pytest.approx(np.mean(list(expected.values())))
    counts = {t.template_id: t.samples for t in evaluation.templates}
    weighted = sum(expected[t] * counts[t] for t in counts) / sum(counts.values())
    assert evaluation.weighted_average_precision == pytest.approx(weighted)


def test_templates_outside_the_map_are_misses_and_have_no_loss() -> None:
    scores = logs([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.7, 0.2, 0.1]])
    evaluation = evaluated(scores, [0, 1, 77, 78])
    assert evaluation.out_of_map == 2
    assert (evaluation.overall.samples, evaluation.overall.top1) == (4, 0.25)
    assert evaluation.overall.top3 == evaluation.overall.top5 == 0.5
    assert evaluation.loss == pytest.approx(-(math.log(0.7) + math.log(0.2)) / 2)
    assert evaluation.ece == pytest.approx(0.7 - 0.25)
    assert [t.template_id for t in evaluation.templates] == ["t000", "t001"]


def test_temperature_lowers_calibration_error_and_keeps_every_accuracy() -> None:
    scores, labels = noisy(2_000, 12)
    validation, validation_labels = noisy(1_000, 12, seed=1)
    temperature = fitted_temperature(
        validation, [f"t{label:03d}" for label in [*validation_labels[:-1], 99]], label_map_of(12)
    )
    raw, calibrated = evaluated(scores, labels), evaluated(scores, labels, temperature=temperature)
    assert temperature == pytest.approx(2.0, abs=0.1)
    assert calibrated.calibrated_ece < raw.ece / 2
    assert calibrated.calibrated_loss < calibrated.loss == raw.loss
    assert calibrated.overall == raw.overall
    assert calibrated.by_depth == raw.by_depth


def test_depth_groups_partition_the_samples() -> None:
    scores = logs([[0.6, 0.3, 0.1]] * 6)
    evaluation = evaluated(scores, [0, 1, 0, 0, 2, 0], depths=[1, 1, 4, 5, 8, 40])
    assert [(g.group, g.samples, g.top1) for g in evaluation.by_depth] == [
        ("1", 2, 0.5),
        ("4", 1, 1.0),
        ("5 to 8", 2, 0.5),
        ("17 and more", 1, 1.0),
    ]
    assert sum(g.samples for g in evaluation.by_depth) == evaluation.overall.samples


def test_recent_templates_are_measured_apart_even_outside_the_map() -> None:
    introduced = {
        "t000": NOW - timedelta(days=400),
        "t001": NOW - timedelta(days=29),
        "t077": NOW - timedelta(days=1),
        "t002": NOW + timedelta(days=1),
        "t003": None,
    }
    recent = recent_templates(introduced, as_of=NOW)
    assert recent == {"t001", "t077"}
    scores = logs([[0.6, 0.4], [0.6, 0.4], [0.6, 0.4]])
    evaluation = evaluated(scores, [0, 1, 77], recent=sorted(recent))
    assert evaluation.recent is not None
    assert (evaluation.recent.samples, evaluation.recent.top1) == (2, 0.0)
    assert evaluation.recent.top3 == 0.5
    assert evaluated(scores, [0, 1, 77]).recent is None


def test_what_was_skipped_is_reported() -> None:
    evaluation = evaluated(np.zeros((2, 2)), [0, 1])
    assert evaluation.skipped == {"no_message_before": 3}
    assert evaluation.metrics()["top1"] == evaluation.overall.top1


def test_scores_that_do_not_fit_or_hold_nan_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(2, 3\)"):
        evaluate(
            np.zeros((2, 3)),
            ScoredSamples(["t000", "t001"], [1, 1]),
            label_map_of(4),
            temperature=1.0,
            recent=(),
            skipped={},
        )
    with pytest.raises(DataError, match="sample 1 hold NaN"):
        evaluated(np.array([[0.0, 1.0], [math.nan, 0.0]]), [0, 1])
    with pytest.raises(DataError, match="none of 2 samples"):
        evaluated(np.zeros((2, 2)), [98, 99])
