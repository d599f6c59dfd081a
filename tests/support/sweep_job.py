"""A job that can be swept, in a folder of its own: the tiny task on rows that can be learnt.

`train` trains it, `read` trains nothing and computes its metrics from the config. What trials do is
written to files in the folder `notes`, so that tests can count it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import heliostat

SUPPORT = Path(__file__).parent
PLATFORM = Path(heliostat.__file__).parent.parent

CONFIG_PY = '''\
from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.config.resources import ResourcesConfig, TrackerConfig
from heliostat.errors import ConfigError
from heliostat.sweep.config import SweepConfig
from heliostat.train.config import FitConfig


@dataclass(frozen=True)
class Config:
    """Everything."""

    seed: int = 0
    """Seed of weights and data."""
    out: str = "runs"
    """Where runs go."""
    notes: str = "notes"
    """Folder in which trials leave traces."""
    wait_s: float = 0.0
    """Seconds each micro batch takes longer."""
    hold_at_id: int = -1
    """The sample at which a worker stands still until it is killed."""
    window: int = 8
    """A knob of inference."""
    is_scaled: bool = False
    """Another knob of inference."""
    fail_at: int = -1
    """A window at which a trial fails."""
    width: int = 16
    """Width of the model."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(batch=8, micro_batch=8, steps=40))
    """The training."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """The search."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Workers."""
    tracker: TrackerConfig = field(default_factory=lambda: TrackerConfig(enabled=False))
    """The tracker."""

    def __post_init__(self) -> None:
        if self.window > 64:
            raise ConfigError(f"window is {self.window}, but the longest is 64")
        if self.is_scaled and self.window == 1:
            raise ConfigError(f"is_scaled is true and window is {self.window}: nothing to scale")
'''

CONFIG_YAML = """\
fit:
  evaluation: {every: 4}
  checkpoint: {every: 4}
sweep:
  metric: loss
  mode: min
  searcher: grid
  space:
    fit.optimizer.lr: {grid: [1.0e-4, 1.0e-3, 1.0e-2, 5.0e-2]}
resources:
  cpus_per_worker: 0.5
"""

KNOBS_YAML = """\
sweep:
  trial: read
  metric: error
  mode: min
  second: {cost: min}
  searcher: grid
  space:
    window: {choice: [1, 2, 4, 8, 16]}
"""

JOB_PY = """\
from heliostat.runs.summary import RunSummary
from jobs.tiny.sweep import prepare, task_of
from heliostat.train.fit import fit


def run(config, run):
    shared = prepare(config, run)
    result = fit(
        task_of(config, shared.values), config.fit, run=run, resources=config.resources
    )
    run.finish({"loss": result.metrics["loss"]})
    return RunSummary("done", ("loss",), ((result.metrics["loss"],),))
"""

SWEEP_PY = '''\
"""Trials of the tiny task."""

import math
import os
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa

from heliostat.data.table import TableWriter
from heliostat.errors import DataError
from heliostat.runs.inputs import Input
from heliostat.storage import Location
from heliostat.sweep.contract import Shared, TrialKind
from tiny_task import LENGTH, VOCABULARY, TinyTask

INPUTS = [Input("rows", "generated", "numbers", "none")]


def prepare(config, run):
    def work(folder):
        trace(config, "shared")
        for name, rows, seed in (("train", 200, 1), ("evaluation", 50, 2)):
            write(folder / name, rows, 100 * config.seed + seed)
        return {}

    run.stage("rows", {}, work)
    return Shared(INPUTS, {"rows": (run.folder / "stages" / "rows").uri})


def write(location, rows, seed):
    """Each token follows from the one before, but for one in ten."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, VOCABULARY, (rows, LENGTH), dtype=np.int16)
    follows = np.random.default_rng(7).permutation(VOCABULARY)
    for place in range(1, LENGTH):
        is_noise = generator.random(rows) < 0.1
        tokens[:, place] = np.where(is_noise, tokens[:, place], follows[tokens[:, place - 1]])
    schema = pa.schema([("id", pa.int64()), ("tokens", pa.list_(pa.int16())), ("n", pa.int32())])
    columns = {
        "id": pa.array(range(rows), pa.int64()),
        "tokens": pa.array(list(tokens), pa.list_(pa.int16())),
        "n": pa.array([LENGTH - 1] * rows, pa.int32()),
    }
    with TableWriter(location, schema, {}) as writer:
        writer.write(pa.record_batch(columns, schema=schema))


def task_of(config, shared):
    rows = Location.of(str(shared["rows"]))
    return TinyTask(
        train=rows / "train",
        evaluation=rows / "evaluation",
        seed=config.seed,
        width=config.width,
        wait_s=config.wait_s,
        hold_at_id=config.hold_at_id,
        notes=Location.of(Path(config.notes).absolute()) if config.hold_at_id >= 0 else None,
    )


def train(config, trial):
    trace(config, f"train-{trial.run.id}")
    result = trial.fit(task_of(config, trial.shared), config.fit, resources=config.resources)
    return {"loss": result.metrics["loss"], "lr": config.fit.optimizer.lr}


def nothing(config, run):
    return Shared(INPUTS)


def read(config, trial):
    trace(config, f"read-{trial.run.id}")
    if config.window == config.fail_at:
        raise DataError(f"a window of {config.window} is cursed")
    error = abs(math.log2(config.window) - 2) + config.is_scaled
    return {"error": error, "cost": float(config.window)}


def trace(config, name):
    folder = Path(config.notes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{os.getpid()}-{uuid.uuid4().hex[:6]}").touch()


TRIALS = {
    "train": TrialKind(
        prepare,
        train,
        keys=("fit", "width"),
        metrics=("loss", "lr"),
        evaluations=("loss", "mean_id"),
    ),
    "read": TrialKind(
        nothing, read, keys=("window", "is_scaled", "fail_at"), metrics=("error", "cost")
    ),
}
'''


def write_sweep_job(folder: Path) -> Path:
    """Write `jobs/tiny` below `folder`; returns the folder."""
    job = folder / "jobs" / "tiny"
    (job / "sweeps").mkdir(parents=True)
    (folder / "jobs" / "__init__.py").write_text("")
    (job / "__init__.py").write_text('"""A tiny job that can be swept."""\n')
    (job / "config.py").write_text(CONFIG_PY)
    (job / "config.yaml").write_text(CONFIG_YAML)
    (job / "sweeps" / "knobs.yaml").write_text(KNOBS_YAML)
    (job / "job.py").write_text(JOB_PY)
    (job / "sweep.py").write_text(SWEEP_PY)
    return folder


def start_command(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start `heliostat WORDS` in `folder`, in a process group of its own."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment = {
        **kept,
        "HOME": str(folder),
        "HELIOSTAT_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{PLATFORM}{os.pathsep}{SUPPORT}",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_ADDRESS": "local",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "heliostat.cli.main", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def traces(folder: Path, beginning: str) -> list[str]:
    """What trials have left, by the beginning of the name."""
    notes = folder / "notes"
    found = notes.iterdir() if notes.exists() else []
    return sorted(path.name for path in found if path.name.startswith(beginning))
