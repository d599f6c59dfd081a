"""The sweeps of the job are ones that can be run, and a short one ends with a table."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from heliostat.cli.sweep import kind_of, read_plan
from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.errors import ConfigError
from jobs.mla_moe.model_config import decoder_config
from jobs.mla_moe.sweep import training

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("name", "trials"), [(None, 24), ("rank", 20), ("experts", 24)])
def test_every_sweep_of_the_job_is_one_that_can_be_run(name: str | None, trials: int) -> None:
    job = find_job("mla_moe", ROOT)
    plan = read_plan(job, [f"sweep={name}"] if name else [], ())
    assert plan.trials == trials
    for number in range(trials):
        plan.config_of(plan.proposal(number))
    assert kind_of(job, plan).trains


def test_what_is_shared_by_all_trials_is_no_key_to_search() -> None:
    job = find_job("mla_moe", ROOT)
    plan = read_plan(job, ["sweep.space.data.length.choice=[64,128]"], ())
    with pytest.raises(ConfigError, match="a trial of kind train only looks at"):
        kind_of(job, plan)


class _NeverTrains:
    """A trial that must be refused before it trains."""

    def __init__(self, shared: Mapping[str, object]) -> None:
        self.shared = shared

    def fit(self, *_: object, **__: object) -> None:
        raise AssertionError("trained")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.experts.per_token=2", "whose experts.per_token is 3, but the section model gives"),
        ("model.source=/other", "model.source is no key to search"),
    ],
)
def test_a_trial_that_cannot_begin_with_the_checkpoint_is_refused(
    change: str, message: str
) -> None:
    job = find_job("mla_moe", ROOT)
    base = load_config(job, "toy", ["model.source=/begin"]).config
    shape = dataclasses.asdict(decoder_config(base.model))
    places = {"train": "/nowhere", "test": "/nowhere", "start": "/weights"}
    trial = _NeverTrains({**places, "shape": shape, "source": "/begin"})
    config = load_config(job, "toy", ["model.source=/begin", change]).config
    with pytest.raises(ConfigError, match=message):
        training(config, trial)


@pytest.mark.slow
def test_a_short_sweep_ends_with_loss_and_cache_of_every_trial(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "heliostat.cli.main", "sweep", "mla_moe", "size=toy"),
            *("sweep=rank", f"out={tmp_path}", "--run", "rank", "tracker.enabled=false"),
            *("fit.steps=2", "fit.batch=4", "fit.micro_batch=4", "fit.schedule.warmup_steps=1"),
            *("data.validation_rows=8", "resources.workers=1"),
            "sweep.space.model.attention.latent_width.grid=[16,32]",
            "sweep.space.model.attention.rotary_width.grid=[16]",
        ],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(tmp_path / "rank" / "sweep.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished"] * 2
