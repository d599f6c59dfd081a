"""What `train`, `claim` and `sweep` have in common: check, open the run, hand over, report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from heliostat.cli.screen import note, say, show_summary
from heliostat.config.contract import JobConfig
from heliostat.config.jobs import JobEntry, check_submitted_version, find_job
from heliostat.config.load import LoadedConfig, load_config
from heliostat.config.output import resolve_output
from heliostat.config.settings import settings
from heliostat.errors import ConfigError, UserError
from heliostat.runs.summary import RunSummary

if TYPE_CHECKING:
    from heliostat.runs.run import Run

Work = Literal["run", "claim", "sweep"]
"""What a run is for; `run` and `claim` are functions of the job's `job.py`."""


@dataclass(frozen=True)
class Request:
    """A command line, parsed."""

    command: str
    """The subcommand, to name it in hints."""
    work: Work
    job: str
    overrides: Sequence[str]
    files: Sequence[Path]
    run: str | None


def execute(request: Request) -> None:
    """Do a job's work from config to last screen.

    Everything that can be refused without Ray is refused before Ray starts.
    """
    job = find_job(request.job)
    if (difference := check_submitted_version()) is not None:
        note(difference)
    loaded = load_config(job, None, request.overrides, request.files)
    refuse_infeasible(loaded.config)
    if request.work != "run":
        # Every job can be run; what else is asked for is looked up before a run is opened for it.
        work_of(job, request.work)

    from heliostat.cluster.ray_cluster import connect
    from heliostat.train.warm_workers import warm_up

    with open_run(request, job, loaded) as run:
        announce(run, loaded)
        with ThreadPoolExecutor(1) as pool:
            # The job's imports take seconds, and so do Ray's processes.
            importing = pool.submit(work_of, job, request.work)
            connection = connect()
            resources = loaded.config.resources
            # Workers with a GPU, or with memory set aside, are not of the kind that can wait.
            is_plain = not resources.gpus_per_worker and resources.memory_per_worker_gb is None
            if connection.is_own and is_plain:
                warm_up(resources.workers.high, resources.cpus_per_worker)
        try:
            summary = importing.result()(loaded.config, run)
        except UserError:
            raise
        except BaseException:
            note(f"Go on where it stopped: {continuation(request, run.id)}")
            raise
        finally:
            if connection.is_own:
                connection.close()
    assert isinstance(summary, RunSummary)
    show_summary(summary)


def work_of(job: JobEntry, name: Work) -> Callable[[JobConfig, Run], RunSummary]:
    """A function of the job's `job.py`."""
    work = getattr(job.code(), name, None)
    if not callable(work):
        raise ConfigError(f"job {job.name} has no {name}() in its job.py")
    return cast("Callable[[JobConfig, Run], RunSummary]", work)


def refuse_infeasible(config: JobConfig) -> None:
    """Refuse workers that a cluster of our own could never hold; one to join is asked later."""
    from heliostat.cluster.cluster_reader import this_machine
    from heliostat.cluster.feasibility import require_feasible
    from heliostat.cluster.ray_internals import started_cluster_address
    from heliostat.cluster.resources import ResourceRequest

    request = ResourceRequest.of(config.resources)
    if settings().ray_address is None and started_cluster_address() is None:
        require_feasible(request, this_machine())


def open_run(
    request: Request, job: JobEntry, loaded: LoadedConfig[JobConfig], digest: str | None = None
) -> Run:
    """Take the run's folder: a fresh one, or with a name the one that has it.

    `digest` stands for everything that decides the result, where that is more than the config.
    """
    digest = digest or loaded.digest
    from heliostat.runs.run import Run

    output = resolve_output(loaded.config.out)
    if output.note is not None:
        note(output.note)
    open_folder = Run.create if request.run is None else Run.open_or_create
    return open_folder(
        output.place,
        job.name,
        name=request.run or fresh_name(request, digest),
        resolved_yaml=loaded.resolved_yaml,
        digest=digest,
        seed=loaded.config.seed,
        tracker=loaded.config.tracker,
    )


def fresh_name(request: Request, digest: str) -> str:
    """A name that no run has: job, config and time to the microsecond."""
    time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    kind = "" if request.work == "run" else f"-{request.work}"
    return f"{request.job}{kind}-{digest[:6]}-{time}"


def announce(run: Run, loaded: LoadedConfig[JobConfig]) -> None:
    """Two lines that say what starts, where."""
    goes_on = f", attempt {run.attempt}" if run.attempt > 1 else ""
    say(f"run {run.id} (size {loaded.size}, config {loaded.digest[:6]}{goes_on})")
    say(f"folder {run.folder.uri}")


def continuation(request: Request, run: str) -> str:
    """The command that goes on with a run."""
    files = [part for path in request.files for part in ("--config", str(path))]
    words = ["heliostat", request.command, request.job, *request.overrides, *files, "--run", run]
    return shlex.join(words)
