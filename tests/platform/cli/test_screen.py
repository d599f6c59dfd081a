"""Tables on the screen."""

from __future__ import annotations

import math

import pytest

from heliostat.cli.screen import show_table


def cells(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    lines = capsys.readouterr().out.splitlines()
    return [
        [cell.strip() for cell in line.strip("│").split("│")] for line in lines if line[:1] == "│"
    ]


def test_fractions_of_a_column_have_as_many_places_and_nothing_is_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_table(
        None,
        ("arm", "top-1", "loss", "lr", "rows", "holds"),
        [
            ("one", 78.0, 1.4, 3e-05, 12, None),
            ("two", 22.24, 1.3456, 0.02, 7, 1.5),
            ("three", math.nan, 3.3, 0.5, 120_000, None),
        ],
    )
    assert cells(capsys) == [
        ["one", "78.00", "1.400", "3e-05", "12", "-"],
        ["two", "22.24", "1.346", "0.02", "7", "1.5"],
        ["three", "nan", "3.300", "0.5", "120000", "-"],
    ]


def test_a_table_without_rows_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("nothing yet", ("name", "loss"), [])
    assert "nothing yet" in capsys.readouterr().out
