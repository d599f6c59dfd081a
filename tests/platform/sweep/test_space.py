"""Values of a sweep: listed, drawn and changed."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

from heliostat.errors import ConfigError
from heliostat.sweep.config import RangeConfig
from heliostat.sweep.space import Space

GRID = Space(
    {
        "a": RangeConfig(grid=[1, 2, 3]),
        "b": RangeConfig(choice=[True, False]),
        "c": RangeConfig(integer=[4, 6]),
    }
)
LOG = RangeConfig(log_uniform=[1e-4, 1e-2])
MIXED = Space(
    {
        "lr": LOG,
        "share": RangeConfig(uniform=[0.0, 0.5]),
        "layers": RangeConfig(integer=[2, 9]),
        "tag": RangeConfig(choice=["x", "y", None]),
        "size": RangeConfig(grid=[8, 16]),
    }
)


def test_the_cells_of_a_grid_are_all_combinations_once() -> None:
    wanted = [
        dict(zip("abc", values, strict=True))
        for values in itertools.product([1, 2, 3], [True, False], [4, 5, 6])
    ]
    assert list(GRID.cells()) == wanted
    assert GRID.size() == len(wanted)


def test_keys_that_go_along_have_the_value_of_their_place() -> None:
    widths = {1: 12, 2: 6, 3: 4}
    space = Space(
        {
            "count": RangeConfig(choice=list(widths), along={"width": list(widths.values())}),
            "lr": LOG,
        }
    )
    generator = random.Random(0)
    drawn = [space.drawn(0, number) for number in range(30)]
    changed = [space.changed(one, generator, resample=0.5, factor=1.2) for one in drawn]
    assert {one["count"] for one in drawn} == set(widths)
    for one in (*drawn, *changed):
        assert list(one) == ["count", "width", "lr"]
        assert one["width"] == widths[one["count"]]  # type: ignore[index]
    listed = Space(
        {"count": RangeConfig(grid=[1, 2], along={"width": [12, 6], "tag": ["a", None]})}
    )
    assert list(listed.cells()) == [
        {"count": 1, "width": 12, "tag": "a"},
        {"count": 2, "width": 6, "tag": None},
    ]
    assert listed.keys == ["count", "width", "tag"]
    kinds = Space({"a": RangeConfig(choice=[1, True, None], along={"b": ["one", "yes", "none"]})})
    assert [cell["b"] for cell in kinds.cells()] == ["one", "yes", "none"]


def test_what_is_drawn_depends_on_seed_and_number_alone() -> None:
    later_first = [MIXED.drawn(7, number) for number in (5, 3, 5)]
    assert later_first[0] == later_first[2] == MIXED.drawn(7, 5)
    assert MIXED.drawn(8, 5) != MIXED.drawn(7, 5)


def test_drawn_values_stay_in_their_ranges_and_grids_are_gone_through_in_turn() -> None:
    drawn = [MIXED.drawn(0, number) for number in range(400)]
    assert all(1e-4 <= values["lr"] <= 1e-2 for values in drawn)
    assert all(0 <= values["share"] <= 0.5 for values in drawn)
    assert {values["layers"] for values in drawn} == set(range(2, 10))
    assert {values["tag"] for values in drawn} == {"x", "y", None}
    assert [values["size"] for values in drawn[:4]] == [8, 16, 8, 16]


def test_a_logarithmic_range_is_uniform_in_orders_of_magnitude() -> None:
    logs = [math.log10(MIXED.drawn(0, number)["lr"]) for number in range(2000)]
    # Mean and standard deviation of a uniform variable on [-4, -2].
    assert statistics.fmean(logs) == pytest.approx(-3, abs=0.05)
    assert statistics.stdev(logs) == pytest.approx(2 / math.sqrt(12), abs=0.03)


def test_changed_values_differ_by_the_factor_or_by_one_place_and_stay_in_range() -> None:
    values = {"lr": 1e-3, "share": 0.45, "layers": 5, "tag": "y", "size": 8}
    generator = random.Random(0)
    seen = [MIXED.changed(values, generator, resample=0, factor=1.2) for _ in range(200)]
    assert {one["lr"] for one in seen} == {float(f"{1e-3 / 1.2:.6g}"), 0.0012}
    assert {one["share"] for one in seen} == {0.375, 0.5}
    assert {one["layers"] for one in seen} == {4, 6}
    assert {one["tag"] for one in seen} == {"x", None}
    assert {one["size"] for one in seen} == {8, 16}


def test_some_values_are_drawn_anew() -> None:
    generator = random.Random(0)
    space = Space({"lr": LOG})
    seen = [space.changed({"lr": 1e-3}, generator, resample=0.25, factor=1.2) for _ in range(2000)]
    near = {float(f"{1e-3 / 1.2:.6g}"), 0.0012}
    share = sum(one["lr"] not in near for one in seen) / len(seen)
    assert share == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "expected exactly one of choice, grid"),
        ({"grid": [1], "choice": [1]}, "choice and grid is given"),
        ({"grid": []}, "grid is empty"),
        ({"choice": [1, 1]}, "each value once"),
        ({"uniform": [2.0, 1.0]}, r"expected \[lowest, highest\]"),
        ({"uniform": [1.0]}, r"expected \[lowest, highest\]"),
        ({"integer": [3]}, r"expected \[lowest, highest\]"),
        ({"integer": [3, 3]}, r"expected \[lowest, highest\]"),
        ({"log_uniform": [0.0, 1.0]}, "above 0"),
        ({"grid": [1, 2], "along": {"b": [3]}}, r"along\.b has 1 values; .* which are 2"),
        ({"uniform": [0.0, 1.0], "along": {"b": [3, 4]}}, "which are none"),
    ],
)
def test_a_range_that_cannot_be_is_refused(arguments: dict[str, list], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RangeConfig(**arguments)
