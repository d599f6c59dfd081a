"""Ranking and calibration: the worked examples, closed forms, slow loops and scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from models.metrics import (
    average_precision,
    average_precision_by_class,
    expected_calibration_error,
    fit_temperature,
    label_ranks,
    macro_average_precision,
    masked_probabilities,
    negative_log_likelihood,
    ranking,
    top_k_accuracy,
    weighted_average_precision,
)

LOGITS = torch.tensor([[3.0, 1, 2, 0], [0, 0, 0, 1], [1, 2, 3, 4]])
LABELS = torch.tensor([2, 1, 0])
# Few distinct values, so that ties are common.
SCORES = st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=20)


def test_top_k_of_the_worked_example() -> None:
    found = [top_k_accuracy(LOGITS, LABELS, k) for k in (1, 2, 3, 4)]
    assert found == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert ranking(LOGITS, 4)[1].tolist() == [3, 0, 1, 2]


def test_uniform_logits_put_five_of_640_classes_in_the_top_five() -> None:
    labels = torch.arange(640)
    assert top_k_accuracy(torch.zeros(640, 640), labels, 5) == pytest.approx(0.0078125)


@settings(deadline=None)
@given(SCORES)
def test_rank_of_a_label_is_its_place_in_the_ranking(rows: list[list[int]]) -> None:
    scores = torch.tensor(rows, dtype=torch.float32)
    order = ranking(scores, 5)
    for label in range(5):
        labels = torch.full((len(rows),), label)
        places = [row.tolist().index(label) for row in order]
        assert label_ranks(scores, labels).tolist() == places
    for row, placed in zip(rows, order.tolist(), strict=True):
        assert placed == sorted(range(5), key=lambda c: (-row[c], c))


def test_scores_with_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="scores hold nan"):
        label_ranks(torch.tensor([[0.0, math.nan]]), torch.tensor([0]))


def test_calibration_error_of_the_worked_example() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.55, 0.55])
    correct = torch.tensor([1, 1, 1, 0])
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.05)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_calibration_error_equals_the_definition(rows: list[tuple[float, bool]]) -> None:
    expected = 0.0
    for m in range(1, 16):
        inside = [(p, hit) for p, hit in rows if (m - 1) < p * 15 <= m or (m == 1 and p == 0.0)]
        if inside:
            accuracy = sum(hit for _, hit in inside) / len(inside)
            confidence = sum(p for p, _ in inside) / len(inside)
            expected += len(inside) / len(rows) * abs(accuracy - confidence)
    found = expected_calibration_error(
        torch.tensor([p for p, _ in rows], dtype=torch.float64),
        torch.tensor([hit for _, hit in rows]),
    )
    assert found == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_the_worked_example() -> None:
    scores, relevant = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 0, 1, 0])
    assert average_precision(scores, relevant) == pytest.approx(0.83333, abs=1e-5)
    order = torch.tensor([3, 1, 0, 2])
    assert average_precision(scores[order], relevant[order]) == pytest.approx((1 + 2 / 3) / 2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40))
def test_average_precision_equals_scikit_learn_ties_included(
    rows: list[tuple[int, bool]],
) -> None:
    scores, relevant = zip(*rows, strict=True)
    found = average_precision(torch.tensor(scores, dtype=torch.float32), torch.tensor(relevant))
    if any(relevant):
        assert found == pytest.approx(average_precision_score(relevant, scores), abs=1e-9)
    else:
        assert math.isnan(found)


def test_absent_classes_leave_the_means_of_average_precision() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0]])
    labels = torch.tensor([0, 1, 1])
    by_class = average_precision_by_class(scores, labels)
    assert by_class[:2].tolist() == pytest.approx([1.0, 1.0])
    assert by_class[2].isnan()
    by_class[0] = 0.4
    assert macro_average_precision(by_class) == pytest.approx(0.7)
    assert weighted_average_precision(by_class, labels) == pytest.approx((0.4 + 2.0) / 3)


def test_masking_equals_renormalising_what_is_left() -> None:
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    allowed = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 0], dtype=torch.bool)
    for temperature in (0.5, 1.0, 3.0):
        p = (logits.double() / temperature).softmax(1)
        expected = torch.where(allowed, p / (1 - p[:, ~allowed].sum(1, keepdim=True)), 0.0)
        found = masked_probabilities(logits, temperature, allowed)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(found.sum(1), torch.ones(6, dtype=torch.float64))


def test_rows_may_have_masks_of_their_own_and_an_empty_one_gives_zeros() -> None:
    logits = torch.zeros(2, 3)
    allowed = torch.tensor([[True, False, True], [False, False, False]])
    assert masked_probabilities(logits, 1.0, allowed).tolist() == [[0.5, 0.0, 0.5], [0.0] * 3]
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0\.0"):
        masked_probabilities(logits, 0.0, allowed)


def calibrated(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from softmax(z), and logits that are `scale` times too large."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 12, generator=generator, dtype=torch.float64) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits * scale, labels


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_temperature_undoes_a_scaling_of_the_logits(scale: float) -> None:
    logits, labels = calibrated(scale)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(scale, rel=0.03)
    best = negative_log_likelihood(logits, labels, fitted)
    for nearby in (0.999 * fitted, 1.001 * fitted):
        assert best < negative_log_likelihood(logits, labels, nearby)


def test_temperature_lowers_calibration_error_and_keeps_the_ranking() -> None:
    logits, labels = calibrated(3.0)
    fitted = fit_temperature(logits, labels)
    errors = []
    for temperature in (1.0, fitted):
        p = masked_probabilities(logits, temperature, torch.ones(12))
        top = p.max(1)
        errors.append(expected_calibration_error(top.values, top.indices == labels))
    assert errors[1] < 0.02 < errors[0]
    for k in (1, 3, 5):
        assert top_k_accuracy(logits / fitted, labels, k) == top_k_accuracy(logits, labels, k)


def test_temperature_stays_within_its_bounds_when_the_likelihood_has_no_minimum() -> None:
    right = torch.eye(4) * 0.5
    assert fit_temperature(right, torch.arange(4)) == pytest.approx(0.05)
    assert fit_temperature(-right, torch.arange(4)) == pytest.approx(20.0)
    certain = torch.eye(4) * 1000
    assert 0.05 <= fit_temperature(certain, torch.arange(4)) <= 1.0


def test_temperature_of_logits_that_say_nothing_is_one() -> None:
    assert fit_temperature(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)) == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 30.0))
def test_fitted_temperature_is_never_worse_than_a_grid(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(15, 4, generator=generator) * spread
    labels = torch.randint(4, (15,), generator=generator)
    best = negative_log_likelihood(logits, labels, fit_temperature(logits, labels))
    for step in range(61):
        temperature = math.exp(math.log(0.05) + step / 60 * math.log(400))
        assert best <= negative_log_likelihood(logits, labels, temperature) + 1e-9
