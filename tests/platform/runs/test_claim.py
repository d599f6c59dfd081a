"""Claims: everything measured is written, and whether one holds follows from its criteria."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from heliostat.errors import UserError
from heliostat.runs.claim import (
    ClaimResult,
    Criterion,
    Measurement,
    read_claim,
    summarise,
    write_claim,
)
from heliostat.runs.inputs import Input
from heliostat.storage import Location


def claim(**changes: Any) -> ClaimResult:
    arguments: dict[str, Any] = {
        "job": "demo",
        "statement": "A beats B (arXiv 2405.15765).",
        "size": "laptop",
        "method": "A",
        "baselines": ("B",),
        "measurements": (
            Measurement("A", 0, {"top1": 0.8, "loss": 1.0}),
            Measurement("A", 1, {"top1": 0.9, "loss": 1.2}),
            Measurement("B", 0, {"top1": 0.7}),
            Measurement("B", 1, {"top1": 0.7}),
        ),
        "criteria": (Criterion("gap", "mean top-1 of A minus B", 0.15, ">=", 0.05),),
        "inputs": (Input("support_sim", "generated", "cases", "Apache-2.0"),),
        "command": "heliostat claim demo",
        "seconds": 12.5,
        **changes,
    }
    return ClaimResult(**arguments)


def test_a_written_claim_has_everything_and_is_copied_to_the_docs(tmp_path: Path) -> None:
    made = claim()
    write_claim(Location.of(tmp_path / "run"), made, docs=tmp_path / "docs")
    text = (tmp_path / "run" / "claim.json").read_text()
    assert (tmp_path / "docs" / "claims" / "demo.json").read_text() == text
    content = json.loads(text)
    assert content["holds"] is True
    assert content["seeds"] == [0, 1]
    assert content["measurements"][1] == {
        "arm": "A",
        "seed": 1,
        "figures": {"top1": 0.9, "loss": 1.2},
    }
    assert content["criteria"][0]["threshold"] == 0.05
    assert content["criteria"][0]["holds"] is True
    assert content["inputs"][0]["origin"] == "generated"
    assert content["command"] == "heliostat claim demo"
    assert content["versions"]["python"]
    assert content["machine"]["cpus"] >= 1
    assert content["date"].endswith("Z")
    assert read_claim(Location.of(tmp_path / "run" / "claim.json")) == made


def test_the_spread_is_the_sample_standard_deviation() -> None:
    spread = summarise(claim())["A"]["top1"]
    assert spread.mean == pytest.approx(0.85)
    assert spread.std == pytest.approx(math.sqrt(0.005))
    assert spread.seeds == 2


@pytest.mark.parametrize(
    ("measured", "relation", "holds"),
    [
        (0.05, ">=", True),
        (0.05, ">", False),
        (0.05, "<=", True),
        (0.05, "<", False),
        (math.nan, ">=", False),
        (math.nan, "<=", False),
    ],
)
def test_a_claim_holds_only_if_each_criterion_does(
    measured: float, relation: Any, holds: bool
) -> None:
    fine = Criterion("fine", "", 1.0, ">", 0.0)
    made = claim(criteria=(fine, Criterion("gap", "", measured, relation, 0.05)))
    assert made.holds is holds


def test_a_figure_that_is_not_finite_is_written_as_null_and_read_back(tmp_path: Path) -> None:
    made = claim(criteria=(Criterion("gap", "", math.nan, ">=", 0.05),))
    write_claim(Location.of(tmp_path), made, docs=None)
    assert json.loads((tmp_path / "claim.json").read_text())["criteria"][0]["measured"] is None
    assert read_claim(Location.of(tmp_path / "claim.json")).holds is False


@pytest.mark.parametrize(
    "changes", [{"baselines": ()}, {"baselines": ("C",)}, {"criteria": ()}, {"inputs": ()}]
)
def test_a_claim_without_baseline_criteria_or_inputs_is_refused(changes: Any) -> None:
    with pytest.raises(ValueError, match="the claim of demo needs"):
        claim(**changes)


def test_something_else_is_not_read_as_a_claim(tmp_path: Path) -> None:
    (tmp_path / "claim.json").write_text("{}")
    with pytest.raises(UserError, match="no measured claim"):
        read_claim(Location.of(tmp_path / "claim.json"))
