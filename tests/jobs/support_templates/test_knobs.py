"""A bundle measured under other windows, temperatures and thresholds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from support_bundle import write_support_bundle

from heliostat.config.resources import TrackerConfig
from heliostat.runs.run import Run
from heliostat.storage import Location
from jobs.support_templates.config import Config, DataConfig
from jobs.support_templates.data.sim_config import SimConfig
from jobs.support_templates.knobs import BUNDLE_METRICS, measure_bundle, suggestion_figures
from models.metrics import top_k_accuracy

SIMULATION = SimConfig(unlabelled_cases=20, labelled_cases=120, test_cases=10)


@dataclass(frozen=True)
class BundleTrial:
    """A trial without a sweep."""

    run: Run
    bundle: Location
    shared: dict[str, object] = field(default_factory=dict)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """The figures of one bundle under several configs."""
    folder = tmp_path_factory.mktemp("knobs")
    write_support_bundle(folder / "bundle", seed=1)
    base = Config(data=DataConfig(simulator=SIMULATION))
    configs = {
        "as trained": base,
        "short": replace(base, suggest=replace(base.suggest, max_tokens=8)),
        "flat": replace(base, suggest=replace(base.suggest, temperature=50.0)),
        "silent": replace(base, suggest=replace(base.suggest, min_probability=1.0)),
    }
    figures = {}
    for name, config in configs.items():
        with run_in(folder / "runs", name.replace(" ", "-")) as run:
            trial = BundleTrial(run, Location.of(folder / "bundle"))
            figures[name] = dict(measure_bundle(config, trial))  # type: ignore[arg-type]
    return figures


def run_in(out: Path, name: str) -> Run:
    return Run.create(
        Location.of(out),
        "support_templates",
        name=name,
        resolved_yaml="seed: 0\n",
        digest="abc",
        seed=0,
        tracker=TrackerConfig(enabled=False),
    )


def test_every_figure_that_is_promised_is_measured(
    measured: dict[str, dict[str, float]],
) -> None:
    assert all(set(figures) == set(BUNDLE_METRICS) for figures in measured.values())


def test_the_temperature_changes_the_loss_and_no_accuracy(
    measured: dict[str, dict[str, float]],
) -> None:
    trained, flat = measured["as trained"], measured["flat"]
    assert [flat[f"top{k}"] for k in (1, 3, 5)] == [trained[f"top{k}"] for k in (1, 3, 5)]
    assert flat["loss"] != trained["loss"]


def test_the_window_changes_what_is_read(measured: dict[str, dict[str, float]]) -> None:
    assert measured["short"]["loss"] != measured["as trained"]["loss"]


def test_a_threshold_that_nothing_meets_shows_nothing(
    measured: dict[str, dict[str, float]],
) -> None:
    silent = measured["silent"]
    assert (silent["shown"], silent["answered"], silent["top5"]) == (0, 0, 0)
    assert measured["as trained"]["shown"] == 5


def test_the_figures_are_those_of_counting_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 9, generator=generator)
    labels = torch.randint(-1, 9, (60,), generator=generator)
    threshold = 0.15
    figures = suggestion_figures(logits, labels, 2.0, threshold)
    hits, shown = [], []
    for row, label in zip(logits.double() / 2.0, labels.tolist(), strict=True):
        chances = row.softmax(0).tolist()
        order = sorted(range(9), key=lambda place: (-chances[place], place))[:5]
        listed = [place for place in order if chances[place] >= threshold]
        hits.append(label in listed[:3])
        shown.append(len(listed))
    assert figures["top3"] == pytest.approx(sum(hits) / 60)
    assert figures["shown"] == pytest.approx(sum(shown) / 60)
    assert figures["answered"] == pytest.approx(sum(count > 0 for count in shown) / 60)
    known = labels >= 0
    without = suggestion_figures(logits[known], labels[known], 2.0, 0.0)
    assert without["top5"] == pytest.approx(top_k_accuracy(logits[known], labels[known], 5))
