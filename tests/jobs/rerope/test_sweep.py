"""A position scheme measured over a trained bundle, as a trial of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rerope_bundle import write_rerope_bundle

from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.config.resources import TrackerConfig
from heliostat.errors import ConfigError
from heliostat.runs.run import Run
from heliostat.storage import Location
from jobs.rerope.config import Config, EvaluationConfig, SchemeConfig
from jobs.rerope.sweep import METRICS, TRIALS, measure, prepare


@dataclass(frozen=True)
class BundleTrial:
    """A trial without a sweep."""

    run: Run
    bundle: Location
    shared: dict[str, object]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("sweep")
    bundle = Location.of(write_rerope_bundle(folder / "bundle"))
    base = Config(evaluation=EvaluationConfig(windows=8, batch=4))
    found = {}
    with run_in(folder / "runs", "shared") as shared_run:
        shared = dict(prepare(base, shared_run).values)
    for name, scheme in (
        ("rope", SchemeConfig("rope", "none")),
        ("post", SchemeConfig("rope", "post")),
        ("rerope", SchemeConfig("rerope", "post", window=6)),
        ("wide", SchemeConfig("rerope", "none", window=128)),
    ):
        with run_in(folder / "runs", name) as run:
            trial = BundleTrial(run, bundle, shared)
            found[name] = dict(measure(replace(base, scheme=scheme), trial))
    return found


def run_in(out: Path, name: str) -> Run:
    return Run.create(
        Location.of(out),
        "rerope",
        name=name,
        resolved_yaml="seed: 0\n",
        digest="abc",
        seed=0,
        tracker=TrackerConfig(enabled=False),
    )


def test_every_figure_that_is_promised_is_measured(figures: dict[str, dict[str, float]]) -> None:
    assert all(set(found) == set(METRICS) for found in figures.values())


def test_the_guard_is_what_a_scheme_adds_at_the_training_length(
    figures: dict[str, dict[str, float]],
) -> None:
    assert figures["rope"]["loss_rise_L"] == figures["post"]["loss_rise_L"] == 0.0
    rope, rerope = figures["rope"], figures["rerope"]
    assert rerope["loss_rise_L"] == rerope["nonrep_loss_L"] - rope["nonrep_loss_L"]


def test_a_window_as_wide_as_the_text_is_rope(figures: dict[str, dict[str, float]]) -> None:
    wide, rope = figures["wide"], figures["rope"]
    assert wide["nonrep_loss_8L"] == pytest.approx(rope["nonrep_loss_8L"], abs=1e-5)
    assert figures["rerope"]["nonrep_loss_8L"] != rope["nonrep_loss_8L"]


def test_a_scheme_that_the_model_was_not_trained_for_is_refused(tmp_path: Path) -> None:
    bundle = Location.of(write_rerope_bundle(tmp_path / "bundle"))
    config = Config(scheme=SchemeConfig("rope", "train"))
    with run_in(tmp_path / "runs", "wrong") as run, pytest.raises(ConfigError, match="trained"):
        measure(config, BundleTrial(run, bundle, {"test": "unused"}))


def test_the_sweep_of_the_package_is_over_windows_and_log_n() -> None:
    sweep = load_config(find_job("rerope"), None, []).config.sweep  # type: ignore[attr-defined]
    assert TRIALS[sweep.trial].uses_bundle
    windows, modes = (sweep.space[key].listed for key in ("scheme.window", "scheme.log_n"))
    assert windows == [4, 8, 16, 24, 32, 40, 48, 56, 64]
    assert modes == ["none", "post"]
