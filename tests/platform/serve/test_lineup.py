"""Versions and shares: exact, sticky, and growing without moving anybody back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.errors import ConfigError
from heliostat.serve.lineup import Lineup, Share, lineup_of

KEYS = [f"case-{number}" for number in range(20_000)]


def canary(percent: float) -> Lineup:
    return Lineup((Share("old", 100 - percent), Share("new", percent)))


@pytest.mark.parametrize("percent", [1.0, 10.0, 50.0])
def test_shares_are_kept_within_three_sigma(percent: float) -> None:
    share = percent / 100
    got = sum(canary(percent).place(key) for key in KEYS)
    sigma = math.sqrt(len(KEYS) * share * (1 - share))
    assert abs(got - share * len(KEYS)) < 3 * sigma


def test_a_growing_canary_keeps_those_it_has() -> None:
    few = {key for key in KEYS if canary(10).place(key) == 1}
    more = {key for key in KEYS if canary(30).place(key) == 1}
    assert few < more


@given(st.text(), st.floats(0.1, 99.9))
def test_a_key_always_gets_the_same_version(key: str, percent: float) -> None:
    assert canary(percent).place(key) == canary(percent).place(key)


def test_what_is_written_is_read_again() -> None:
    lineup = Lineup((Share("a", 75.0), Share("b", 25.0)), shadow="c")
    assert lineup_of(lineup.to_json()) == lineup
    assert lineup.bundles == ("a", "b", "c")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "no list"),
        ({"versions": []}, "at least one version"),
        ({"versions": [{"bundle": "a", "percent": 60}]}, "add up to 60 percent"),
        ({"versions": [{"bundle": "a", "percent": 50}] * 2}, "names a bundle twice"),
        ({"versions": [{"bundle": "a", "share": 100}]}, "expected {bundle, percent}"),
        ({"versions": [{"bundle": "a", "percent": "all"}]}, "expected a number"),
        ({"versions": [{"bundle": "a"}], "shadows": "b"}, "has shadows"),
        (
            {"versions": [{"bundle": "a", "percent": 0}, {"bundle": "b"}]},
            "a share above 0 percent",
        ),
    ],
)
def test_a_lineup_that_cannot_be_is_refused(raw: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        lineup_of(raw)
