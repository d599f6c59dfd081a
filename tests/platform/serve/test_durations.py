"""How long a batch will take, foretold from those before."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from heliostat.serve.durations import Durations


def test_nothing_is_short_before_anything_is_known() -> None:
    durations = Durations()
    assert durations.foretold_s(1) == math.inf
    assert durations.shortest is None


def test_what_is_known_holds_for_its_power_of_two() -> None:
    durations = Durations()
    durations.note(40, 0.003)
    assert durations.foretold_s(32) == durations.foretold_s(63) == 0.003


def test_smaller_ones_take_no_longer_and_larger_ones_grow_in_proportion() -> None:
    durations = Durations({6: 0.003, 10: 0.014})
    assert durations.foretold_s(1) == 0.003
    assert durations.foretold_s(200) == 0.014
    assert math.isclose(durations.foretold_s(4_096), 0.056 * 2)
    assert durations.shortest == 0.003


def test_a_stall_changes_little_and_a_slower_machine_is_learned() -> None:
    durations = Durations({6: 0.003})
    durations.note(40, 2.0)
    assert durations.foretold_s(40) < 0.004
    for _ in range(40):
        durations.note(40, 0.03)
    assert durations.foretold_s(40) > 0.029


@given(st.dictionaries(st.integers(1, 16), st.floats(1e-6, 1e3), min_size=1), st.integers(1, 2**20))
def test_every_size_has_a_forecast(known: dict[int, float], tokens: int) -> None:
    found = Durations(dict(known)).foretold_s(tokens)
    assert 0 < found < math.inf
    assert found >= min(known.values())
