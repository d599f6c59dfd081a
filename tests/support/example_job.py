"""A small job in a folder of its own, for tests of the command line and of job discovery."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import heliostat

PLATFORM = Path(heliostat.__file__).parent.parent

CONFIG_PY = '''\
from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.config.resources import ResourcesConfig, TrackerConfig
from heliostat.errors import ConfigError


@dataclass(frozen=True)
class Fit:
    """One training."""

    batch: int = 8
    """Samples of a step."""
    micro_batch: int = 4
    """Samples of a pass."""
    precision: str = field(default="fp32", metadata={"choices": ("fp32", "bf16")})
    """Number format."""

    def __post_init__(self) -> None:
        if self.batch % self.micro_batch:
            micro = self.micro_batch
            raise ConfigError(f"batch {self.batch} is no multiple of micro_batch {micro}")


@dataclass(frozen=True)
class Config:
    """Everything."""

    data: str
    """Path of the data."""
    seed: int = 0
    """Seed of everything."""
    out: str = "runs"
    """Where runs go."""
    fail: str = field(
        default="", metadata={"choices": ("", "user", "fault", "bug", "stop", "key", "term")}
    )
    """How the job ends."""
    fit: Fit = field(default_factory=Fit)
    """The training."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Workers."""
    tracker: TrackerConfig = field(default_factory=lambda: TrackerConfig(enabled=False))
    """The tracker."""
'''

CONFIG_YAML = """\
data: here
fit:
  batch: 16
"""

JOB_PY = """\
import signal

from heliostat.errors import DataError, Fault, Interrupted
from heliostat.runs.summary import RunSummary


def run(config, run):
    done = run.stage("prepare", {}, lambda folder: {"attempt": run.attempt})
    match config.fail:
        case "user":
            raise DataError("row 3 has no label")
        case "fault":
            raise Fault("worker 1 died")
        case "bug":
            raise KeyError("oops")
        case "stop":
            raise Interrupted("stopped at step 7")
        case "key":
            raise KeyboardInterrupt
        case "term":
            signal.raise_signal(signal.SIGTERM)
    run.finish({"loss": 0.25})
    bundle = run.artefact("bundle").uri
    rows = (("loss", 0.25), ("prepared in attempt", done["attempt"]), ("missing", None))
    return RunSummary(
        title="Example on [bold]nothing[/bold]",
        columns=("figure", "value"),
        rows=rows,
        paths={"bundle": bundle, "report": run.artefact("report").uri},
        next_command=f"heliostat verify {bundle}",
        notes=("A note.",),
    )


def claim(config, run):
    return RunSummary(title="claim", columns=("arm",), rows=(("method",),))


def plan(config):
    return []
"""


def write_job(folder: Path, name: str = "example") -> Path:
    """Write `jobs/NAME` below `folder`; returns the job's folder."""
    job = folder / "jobs" / name
    (job / "sizes").mkdir(parents=True)
    (folder / "jobs" / "__init__.py").write_text("")
    (job / "__init__.py").write_text('"""An example that trains nothing."""\n')
    (job / "config.py").write_text(CONFIG_PY)
    (job / "config.yaml").write_text(CONFIG_YAML)
    (job / "sizes" / "big.yaml").write_text("fit:\n  batch: 64\n")
    (job / "job.py").write_text(JOB_PY)
    return job


def command_environment(folder: Path) -> dict[str, str]:
    """The environment of a command that runs in `folder` with a home of its own."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {
        **kept,
        "HOME": str(folder),
        "HELIOSTAT_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(PLATFORM),
    }


def heliostat_command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `heliostat WORDS` in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "heliostat.cli.main", *words],
        cwd=folder,
        env=command_environment(folder),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
