"""A claim measured in parts: what another run has measured the same way is not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from heliostat.errors import UserError
from heliostat.runs.claim import Measurement
from heliostat.runs.measured import MEASUREMENTS_NAME, Measurements
from heliostat.runs.run import Run
from heliostat.storage import Location

Starter = Callable[..., Run]

DECIDES = {"config": {"lr": 0.1}, "rows": "abc"}


def never() -> dict[str, float]:
    raise AssertionError("measured although it was known")


def test_measurements_of_another_run_are_taken_and_the_run_is_named(start: Starter) -> None:
    with start("first") as first:
        made = Measurements(first, []).of("method", 1, DECIDES, lambda: {"loss": 1.25})
        file = first.folder / MEASUREMENTS_NAME
    assert made == Measurement("method", 1, {"loss": 1.25})
    with start("second") as second:
        measured = Measurements(second, [file])
        assert measured.parts == ()
        assert measured.of("method", 1, DECIDES, never) == made
        assert measured.of("method", 2, DECIDES, lambda: {"loss": 1.5}).figures["loss"] == 1.5
        (part,) = measured.parts
        own = json.loads((second.folder / MEASUREMENTS_NAME).read_text())
    assert part.run == "first"
    assert part.versions["torch"]
    assert [item["seed"] for item in own["measurements"]] == [2]


@pytest.mark.parametrize(
    ("arm", "seed", "decides"),
    [
        ("baseline", 1, DECIDES),
        ("method", 3, DECIDES),
        ("method", 1, {**DECIDES, "rows": "other"}),
        ("method", 1, {**DECIDES, "config": {"lr": 0.2}}),
    ],
)
def test_what_was_decided_by_something_else_is_measured_anew(
    start: Starter, arm: str, seed: int, decides: dict[str, object]
) -> None:
    with start("first") as first:
        Measurements(first, []).of("method", 1, DECIDES, lambda: {"loss": 1.25})
        file = first.folder / MEASUREMENTS_NAME
    with start("second") as second:
        measured = Measurements(second, [file])
        assert measured.of(arm, seed, decides, lambda: {"loss": 2.0}).figures == {"loss": 2.0}
        assert measured.parts == ()


def test_a_run_that_goes_on_knows_its_own_measurements(start: Starter) -> None:
    with start("first") as run:
        Measurements(run, []).of("method", 1, DECIDES, lambda: {"loss": 1.25})
        again = Measurements(run, [])
        assert again.of("method", 1, DECIDES, never).figures == {"loss": 1.25}
        again.of("method", 2, DECIDES, lambda: {"loss": 1.5})
        content = json.loads((run.folder / MEASUREMENTS_NAME).read_text())
    assert [item["seed"] for item in content["measurements"]] == [1, 2]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"measurements": [{"arm": "method"}]}'])
def test_a_file_of_something_else_is_refused_by_name(
    start: Starter, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "measurements.json"
    file.write_text(content)
    with start("first") as run, pytest.raises(UserError, match="holds no measurements"):
        Measurements(run, [Location.of(file)])


def test_a_file_that_is_not_there_is_a_mistake_of_the_user(start: Starter, tmp_path: Path) -> None:
    with start("first") as run, pytest.raises(UserError, match=r"absent\.json does not exist"):
        Measurements(run, [Location.of(tmp_path / "absent.json")])
