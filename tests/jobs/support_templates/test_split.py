"""Sides and holdout by hash: stable everywhere, in the right shares, never overlapping."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.errors import ConfigError, DataError
from jobs.support_templates.split import check_no_shared_case, drawn, is_held_out, side_of

SALT = "a salt"
IN_ANOTHER_PROCESS = """
import json
from jobs.support_templates.split import drawn, is_held_out, side_of
ids = [f"case-{i}" for i in range(500)]
print(json.dumps([
    [side_of(i, "a salt", 0.05) for i in ids],
    [is_held_out("adv", i, "a salt", 200) for i in ids],
    drawn(ids, 50, "a salt"),
]))
"""


def test_shares_of_the_sides_are_as_configured() -> None:
    sides = Counter(side_of(f"case-{i}", SALT, 0.05) for i in range(40_000))
    assert sides["test"] / 40_000 == pytest.approx(0.5, abs=0.01)
    assert sides["validation"] / (40_000 - sides["test"]) == pytest.approx(0.05, abs=0.005)
    tilted = Counter(side_of(f"case-{i}", SALT, 0.05, train_share=0.8) for i in range(40_000))
    assert tilted["test"] / 40_000 == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_split_and_holdout_are_the_same_in_every_process(hash_seed: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    ids = [f"case-{i}" for i in range(500)]
    assert json.loads(answer.stdout) == [
        [side_of(i, SALT, 0.05) for i in ids],
        [is_held_out("adv", i, SALT, 200) for i in ids],
        drawn(ids, 50, SALT),
    ]


def test_known_cases_keep_their_side_for_ever() -> None:
    """Frozen values: a change of the hash would move cases between training and test."""
    test_cases = [i for i in range(8) if side_of(f"case-{i}", "salt", 0.05) == "test"]
    assert test_cases == [4, 7]
    held = [i for i in range(300) if is_held_out("adv", f"case-{i}", "salt", 200)]
    assert held == [139, 201]


def test_another_validation_share_moves_no_case_to_or_from_test() -> None:
    ids = [f"case-{i}" for i in range(2_000)]
    for case_id in ids:
        small, large = side_of(case_id, SALT, 0.0), side_of(case_id, SALT, 0.5)
        assert (small == "test") == (large == "test")
        assert small != "validation"


def test_another_salt_is_another_split() -> None:
    ids = [f"case-{i}" for i in range(2_000)]
    same = sum(side_of(i, "one", 0.05) == side_of(i, "two", 0.05) for i in ids)
    assert 0.4 < same / len(ids) < 0.6


def test_holdout_share_is_two_percent_within_three_tenths_of_a_point() -> None:
    held = sum(is_held_out(f"advocate-{i % 331}", f"case-{i}", SALT, 200) for i in range(100_000))
    assert 0.017 <= held / 100_000 <= 0.023


def test_holdout_depends_on_the_pair_not_on_where_its_ids_meet() -> None:
    pairs = [("a1", "23"), ("a12", "3"), ("a", "123")]
    answers = {tuple(is_held_out(a, c, f"salt {n}", 5_000) for a, c in pairs) for n in range(100)}
    assert len(answers) == 8


def test_holdout_and_side_are_independent() -> None:
    held = [f"case-{i}" for i in range(100_000) if is_held_out("adv", f"case-{i}", SALT, 200)]
    in_test = sum(side_of(case_id, SALT, 0.05) == "test" for case_id in held) / len(held)
    assert in_test == pytest.approx(0.5, abs=0.05)


def test_a_smaller_budget_draws_a_subset() -> None:
    ids = [f"case-{i}#3" for i in range(3_000)]
    small, large = drawn(ids, 500, SALT), drawn(ids, 2_000, SALT)
    assert len(small) == 500
    assert set(small) < set(large)
    assert small == sorted(small)
    assert drawn(ids, 10_000, SALT) == list(range(3_000))


@given(st.permutations([f"case-{i}" for i in range(30)]))
def test_a_draw_does_not_depend_on_the_order_of_the_data(ids: list[str]) -> None:
    expected = {f"case-{i}" for i in drawn([f"case-{i}" for i in range(30)], 7, SALT)}
    assert {ids[i] for i in drawn(ids, 7, SALT)} == expected


def test_a_case_on_two_sides_is_refused_by_name() -> None:
    check_no_shared_case({"train": ["a", "a", "b"], "validation": ["c"], "test": ["d"]})
    with pytest.raises(DataError, match="'b' is on the train side and on the test side"):
        check_no_shared_case({"train": ["a", "b"], "test": ["c", "b"]})


@pytest.mark.parametrize(("validation", "train"), [(1.0, 0.5), (-0.1, 0.5), (0.05, 1.0), (0, 0)])
def test_impossible_shares_are_refused(validation: float, train: float) -> None:
    with pytest.raises(ConfigError, match="train_share"):
        side_of("case", SALT, validation, train)
