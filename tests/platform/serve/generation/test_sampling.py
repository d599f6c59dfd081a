"""Sampling: the right distribution, the right cuts, and nobody else's random numbers."""

from __future__ import annotations

import math

import pytest
import torch

from heliostat.serve.generation.request import Sampling
from heliostat.serve.generation.sampling import CANDIDATES, Sampler, is_finite, logprob_of

LOGITS = torch.tensor([0.0, 2.0, -1.0, 1.5, 0.5])


def counts(sampling: Sampling, draws: int, logits: torch.Tensor = LOGITS) -> torch.Tensor:
    sampler = Sampler(sampling)
    drawn = torch.tensor([sampler.draw(logits) for _ in range(draws)])
    return torch.bincount(drawn, minlength=len(logits))


def chi_square(sampling: Sampling, expected: torch.Tensor) -> float:
    draws = 6000
    seen, wanted = counts(sampling, draws), expected * draws
    assert seen[expected == 0].sum() == 0
    kept = expected > 0
    return float(((seen - wanted)[kept] ** 2 / wanted[kept]).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_tempered_distribution(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(0)
    assert chi_square(Sampling(temperature, seed=1), expected) < 18.5  # 0.999 of chi2(4)


def test_top_k_keeps_the_most_probable_and_renormalises() -> None:
    expected = LOGITS.masked_fill(LOGITS < 1, float("-inf")).softmax(0)
    assert chi_square(Sampling(top_k=2, seed=2), expected) < 10.9


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    # Sorted probabilities 0.47, 0.28, 0.10, 0.06, 0.02 of their sum: 0.8 needs three of them.
    order = LOGITS.softmax(0).sort(descending=True).values.cumsum(0)
    assert order[1] < 0.8 <= order[2]
    expected = LOGITS.masked_fill(LOGITS < 0.5, float("-inf")).softmax(0)
    assert chi_square(Sampling(top_p=0.8, seed=3), expected) < 13.9


def test_top_p_is_of_what_top_k_left() -> None:
    """Among the two that top_k keeps, the first has 0.62: enough for 0.6, not for 0.7."""
    assert counts(Sampling(top_k=2, top_p=0.6, seed=0), 200)[1] == 200
    assert set(counts(Sampling(top_k=2, top_p=0.7, seed=0), 200).nonzero().flatten().tolist()) == {
        1,
        3,
    }


def test_top_p_of_a_flat_distribution_needs_more_than_the_first_candidates() -> None:
    size = 4 * CANDIDATES
    logits = torch.linspace(0, 0.01, size)
    seen = counts(Sampling(top_p=0.75, seed=4), 400, logits)
    assert seen[: size // 4 - 20].sum() == 0
    assert seen[size // 4 : 2 * size // 4].sum() > 0


def test_temperature_zero_and_top_k_one_take_the_most_probable() -> None:
    assert counts(Sampling(0.0), 5)[1] == 5
    assert counts(Sampling(3.0, top_k=1), 5)[1] == 5


def test_a_seed_repeats_and_no_other_sampler_matters() -> None:
    first, other = Sampler(Sampling(seed=7)), Sampler(Sampling(seed=8))
    mixed = []
    for _ in range(50):
        mixed.append(first.draw(LOGITS))
        other.draw(LOGITS)
    again = Sampler(Sampling(seed=7))
    assert mixed == [again.draw(LOGITS) for _ in range(50)]
    assert mixed != [Sampler(Sampling(seed=7)).draw(LOGITS) for _ in range(50)]
    unseeded = [[Sampler(Sampling()).draw(LOGITS) for _ in range(40)] for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_negative_and_large_seeds_are_seeds() -> None:
    for seed in (-5, 2**70):
        assert Sampler(Sampling(seed=seed)).draw(LOGITS) in range(5)


def test_log_probabilities_are_those_of_the_model() -> None:
    found = logprob_of(LOGITS, 3, top=2)
    expected = LOGITS.log_softmax(0)
    assert found.logprob == pytest.approx(float(expected[3]), abs=1e-6)
    assert [token for token, _ in found.top] == [1, 3]
    assert found.top[1][1] == pytest.approx(found.logprob, abs=1e-6)
    assert logprob_of(LOGITS, 0, top=0).top == ()
    assert len(logprob_of(LOGITS, 0, top=20).top) == 5


def test_what_has_no_distribution_is_noticed() -> None:
    assert is_finite(LOGITS)
    assert is_finite(torch.tensor([0.0, -math.inf]))
    assert not is_finite(torch.tensor([0.0, math.nan]))
    assert not is_finite(torch.tensor([0.0, math.inf]))
    assert not is_finite(torch.tensor([-math.inf, -math.inf]))
