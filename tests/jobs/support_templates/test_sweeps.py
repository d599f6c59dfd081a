"""Sweeps of the real job, small: fine-tunings on one adapted decoder, then knobs of a bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support_bundle import write_support_bundle

from heliostat.cli.sweep import kind_of, read_plan
from heliostat.config.jobs import find_job
from heliostat.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
SMALL = (
    "size=quick",
    "data.simulator.unlabelled_cases=300",
    "data.simulator.labelled_cases=120",
    "data.simulator.validation_cases=20",
    "data.simulator.test_cases=40",
    "general.max_characters=500000",
    "general.training.fit.steps=6",
    "model.vocab_size=1024",
    "dapt.fit.steps=12",
    "dft.label_budget=300",
    "tracker.enabled=false",
    "resources.workers=1",
)


@pytest.mark.parametrize("name", [None, *find_job("support_templates", ROOT).sweeps()])
def test_every_sweep_of_the_job_is_one_that_can_be_run(name: str | None) -> None:
    job = find_job("support_templates", ROOT)
    plan = read_plan(job, [f"sweep={name}"] if name else [], ())
    kind = kind_of(job, plan)
    assert plan.trials >= 4
    for number in range(plan.trials):
        plan.config_of(plan.proposal(number))
    assert kind.uses_bundle == (plan.settings.trial == "measure")


def test_a_key_that_the_trials_would_not_look_at_is_refused() -> None:
    job = find_job("support_templates", ROOT)
    plan = read_plan(job, ["sweep.space.dapt.fit.optimizer.lr.uniform=[1e-4,1e-3]"], ())
    with pytest.raises(ConfigError, match="a trial of kind fine_tune only looks at dft"):
        kind_of(job, plan)


def sweep(out: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "heliostat.cli.main", "sweep", "support_templates", *SMALL,
         f"out={out}", *words],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_trials_of_stage_two_share_one_adapted_decoder_and_none_copies_it(tmp_path: Path) -> None:
    output = sweep(tmp_path, "--run", "dft", "sweep.budget.trials=3", "dft.fit.steps=null",
                   "sweep.space.dft.fit.epochs.choice=[1,2]")  # fmt: skip
    rows = pq.read_table(tmp_path / "dft" / "sweep.parquet").to_pylist()
    assert len(rows) == 3
    assert {row["status"] for row in rows} <= {"finished", "stopped"}
    folder = tmp_path / "dft"
    (adapted,) = folder.glob("stages/dapt/weights/last/model.safetensors")
    assert not list(folder.glob("trials/*/stages/dapt"))
    assert not list(folder.glob("trials/*/stages/general"))
    for row in rows:
        marker = json.loads((folder / "trials" / row["trial"] / "stages" / "dft.json").read_text())
        assert marker["name"] == "dft"
    for copy in folder.glob("trials/**/*.safetensors"):
        assert copy.read_bytes() != adapted.read_bytes()
    assert "next: heliostat train support_templates --config" in output
    assert (folder / "report" / "01-keys.png").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_knobs_of_a_bundle_are_swept_without_training(tmp_path: Path) -> None:
    write_support_bundle(tmp_path / "bundle", seed=1)
    output = sweep(
        tmp_path, "sweep=knobs", f"sweep.bundle={tmp_path / 'bundle'}", "--run", "knobs",
        "sweep.space.suggest.min_probability.choice=[0.0, 0.02]",
        "sweep.space.suggest.max_tokens.choice=[32, 96]",
    )  # fmt: skip
    rows = pq.read_table(tmp_path / "knobs" / "sweep.parquet").to_pylist()
    assert len(rows) == 4
    assert {row["status"] for row in rows} == {"finished"}
    assert {row["steps"] for row in rows} == {0}
    assert any(row["is_unbeaten"] for row in rows)
    assert "unbeaten" in output
    assert not list((tmp_path / "knobs").glob("**/checkpoints"))
    assert f"next: heliostat serve support_templates {tmp_path / 'bundle'} suggest." in output
