"""The whole job, tiny: from source files to three models, report, bundles and the claim's file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.errors import BundleError, ConfigError
from heliostat.runs.bundle import load_bundle, save_bundle
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from heliostat.storage import Location
from jobs.rerope.bundle import open_model
from jobs.rerope.claim import claim as claim_job
from jobs.rerope.job import run as run_job
from jobs.rerope.trials import METHODS

TINY = [
    "length=16",
    "model.width=16",
    "model.layers=1",
    "model.heads=2",
    "model.key_value_heads=1",
    "model.feed_forward_width=24",
    "inverse_leaky.window=4",
    "fit.steps=12",
    "fit.batch=8",
    "fit.micro_batch=8",
    "fit.schedule.warmup_steps=2",
    "evaluation.windows=8",
    "evaluation.position_windows=4",
    "claim.seeds=[1,2]",
    "tracker.enabled=false",
]


class Finished:
    """A finished run and what it handed back."""

    def __init__(self, folder: Location, summary: RunSummary) -> None:
        self.folder, self.summary = folder, summary


def execute(out: Path, work: Callable[..., RunSummary], name: str) -> Finished:
    """Run the tiny job under a fixed name; a second call goes on with the same run."""
    loaded = load_config(find_job("rerope"), None, TINY)
    with Run.open_or_create(
        Location.of(out),
        "rerope",
        name=name,
        resolved_yaml=loaded.resolved_yaml,
        digest=loaded.digest,
        seed=0,
        tracker=loaded.config.tracker,
    ) as run:
        return Finished(run.folder, work(loaded.config, run))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def finished(ray_cluster: None, out: Path) -> Finished:
    return execute(out, run_job, "tiny")


pytestmark = pytest.mark.slow


def test_the_table_has_every_scheme_and_the_trained_models(finished: Finished) -> None:
    arms = [row[0] for row in finished.summary.rows]
    assert arms == [
        *METHODS,
        "rerope, log n trained",
        "rope, log n trained",
        "rope, inverse leaky trained",
    ]


def test_losses_of_single_windows_are_kept_with_their_origin(finished: Finished) -> None:
    file = finished.folder / "stages" / "s0-plain-report" / "scores.parquet"
    table = pq.read_table(io.BytesIO(file.read_bytes()))
    assert {"window", "path", "start", "scheme", "length", "text", "loss_nats"} <= set(
        table.column_names
    )
    assert set(table.column("window").to_pylist()) == {4, 5, 6, 7}
    assert table.schema.metadata[b"windows_seed"] == b"1"
    columns = [table.column(name).to_pylist() for name in ("window", "scheme", "length", "text")]
    cells = list(zip(*columns, strict=True))
    assert len(set(cells)) == len(cells)


def test_the_report_has_the_three_figures(finished: Finished) -> None:
    names = {path.name[3:] for path in (finished.folder / "report").local_path.glob("*.png")}
    expected = ("loss-by-position", "window-sweep", "what-more-context-is-worth")
    assert {f"{name}.png" for name in expected} <= names
    page = (finished.folder / "report" / "index.html").read_text()
    assert "Lowest loss at 8 L" in page


def test_losses_by_position_are_of_every_scheme_and_of_the_models_trained_for_one(
    finished: Finished,
) -> None:
    rows = {}
    for variant in ("plain", "log-n", "inverse-leaky"):
        marker = finished.folder / "stages" / f"loss-by-position-{variant}.json"
        rows[variant] = json.loads(marker.read_text())["result"]
    assert {name: len(row) for name, row in rows.items()} == {
        "plain": len(METHODS) + 2,
        "log-n": 2,
        "inverse-leaky": 1,
    }
    assert all(len(line) == 8 * 16 for row in rows.values() for line in row)


def test_the_bundles_record_what_schemes_need(finished: Finished) -> None:
    for name, log_n, scheme in (
        ("bundle", "none", "rope"),
        ("bundle-log-n", "train", "rope"),
        ("bundle-inverse-leaky", "train", "inv_leaky_rerope"),
    ):
        opened = open_model(load_bundle(finished.folder / name))
        assert (opened.train_length, opened.log_n, opened.training_scheme) == (16, log_n, scheme)
        assert opened.model(torch.zeros(1, 5, dtype=torch.long)).shape == (1, 5, 256)


def test_a_bundle_without_the_training_length_is_refused(
    finished: Finished, tmp_path: Path
) -> None:
    bundle = load_bundle(finished.folder / "bundle")
    recorded = {**bundle.json("positions.json")}
    del recorded["train_length"]
    from heliostat.runs.card import Card

    save_bundle(
        Location.of(tmp_path / "other"),
        weights=bundle.weights(),
        parts={"positions.json": recorded, "shape.json": bundle.json("shape.json")},
        card=Card("t", "w", [*_inputs()], {}, "l", "h", "n"),
        kind="rerope",
        metadata={},
    )
    with pytest.raises(BundleError, match="does not say train_length"):
        open_model(load_bundle(tmp_path / "other"))


def _inputs() -> list[object]:
    from heliostat.runs.inputs import Input

    return [Input("n", "generated", "d", "l")]


def test_a_second_start_only_reads(finished: Finished, out: Path) -> None:
    before = json.loads((finished.folder / "stages" / "s0-plain.json").read_text())
    again = execute(out, run_job, "tiny")
    assert again.summary.rows == finished.summary.rows
    assert json.loads((again.folder / "stages" / "s0-plain.json").read_text()) == before


def test_the_claim_is_measured_and_written(ray_cluster: None, out: Path) -> None:
    done = execute(out, claim_job, "claim")
    content = json.loads((done.folder / "claim.json").read_text())
    assert content["seeds"] == [1, 2]
    names = [criterion["name"] for criterion in content["criteria"]]
    assert {name[0] for name in names} == set("1234567")
    assert len(set(names)) == len(names)
    # Twelve steps teach nothing, so the claim cannot hold; it must say so.
    assert content["holds"] is False
    assert (done.folder / "report" / "index.html").exists()


def test_impossible_settings_are_refused_before_anything_starts() -> None:
    for override, message in (
        ("inverse_leaky.interval=0.9", "inverse_leaky trains positions up to"),
        ("inverse_leaky.window=16", "expected a window in"),
        ("evaluation.windows=7", "expected an even number"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(find_job("rerope"), None, [*TINY, override])
