"""Lists and comparisons of runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from heliostat.errors import UserError
from heliostat.runs.differences import ABSENT, flatten_config
from heliostat.runs.listing import compare_runs, find_run, list_runs, show_run
from heliostat.storage import Location


def test_runs_are_listed_newest_first_with_status_and_metrics(start: Any, out: Location) -> None:
    start("a").finish({"top1": 0.5})
    start("b").finish({}, "failed", error="no")
    start("c")
    (out / "not-a-run").make_dir()
    rows = list_runs(out)
    assert [row.id for row in rows] == ["c", "b", "a"]
    assert [row.status for row in rows] == ["running", "failed", "finished"]
    assert rows[2].metrics == {"top1": 0.5}
    assert list_runs(out, job="other") == []
    assert list_runs(out / "nowhere") == []


def test_a_run_that_nobody_works_on_shows_as_stopped(start: Any, out: Location) -> None:
    start("a").finish({})
    file = out / "a" / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "running"}))
    assert list_runs(out)[0].status == "stopped"


def test_a_run_is_found_by_the_beginning_of_its_name(start: Any, out: Location) -> None:
    for name in ("alpha-1", "alpha-2", "beta"):
        start(name).finish({})
    assert find_run(out, "be") == out / "beta"
    with pytest.raises(UserError, match="several runs: alpha-1, alpha-2"):
        find_run(out, "alpha")
    with pytest.raises(UserError, match="did you mean beta"):
        find_run(out, "betta")


def test_a_comparison_shows_only_what_differs(
    start: Any, out: Location, resolved_yaml: str
) -> None:
    start("a").finish({"top1": 0.5, "loss": 1.0})
    changed = resolved_yaml.replace("0.001", "0.01") + "extra: 1\n"
    start("b", resolved_yaml=changed, digest="other").finish({"top1": 0.6, "loss": 1.0})
    found = compare_runs(out, ["a", "b"])
    assert found.ids == ("a", "b")
    assert {row.key: row.values for row in found.config} == {
        "fit.lr": (0.001, 0.01),
        "extra": (ABSENT, 1),
    }
    assert {row.key: row.values for row in found.metrics} == {"top1": (0.5, 0.6)}
    assert show_run(out, "a").config == resolved_yaml
    with pytest.raises(UserError, match="at least two"):
        compare_runs(out, ["a"])


def test_a_config_is_flattened_to_dotted_keys() -> None:
    flat = flatten_config("a:\n  b: {c: 1, d: []}\n  e: {}\nf: null\n")
    assert flat == {"a.b.c": 1, "a.b.d": [], "a.e": {}, "f": None}
    assert flatten_config("") == {}
