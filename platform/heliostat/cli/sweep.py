"""`heliostat sweep`: search over keys of a job's config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heliostat.cli.arguments import ConfigFiles, JobName, Overrides, RunName
from heliostat.cli.execute import (
    Request,
    announce,
    continuation,
    open_run,
    refuse_infeasible,
)
from heliostat.cli.screen import note, show_summary
from heliostat.config.jobs import JobEntry, check_submitted_version, find_job
from heliostat.config.layers import COMMAND_LINE, shown_path
from heliostat.config.load import load_config
from heliostat.config.nearest import nearest_names
from heliostat.config.output import resolve_output
from heliostat.errors import ConfigError, UserError
from heliostat.storage import Location
from heliostat.sweep.config import KINDS
from heliostat.sweep.plan import SweepPlan, check_keys, check_metrics, make_plan

if TYPE_CHECKING:
    from heliostat.runs.bundle import Bundle
    from heliostat.sweep.contract import TrialKind

NAMED = "sweep="
SPACE = "sweep.space."


def sweep(
    job: JobName, overrides: Overrides = None, config: ConfigFiles = None, run: RunName = None
) -> None:
    """Search over keys of a job's config: many trials, a table, and the best config.

    The section `sweep` of the config says what is varied and judged; sweep=NAME takes the file
    NAME.yaml in the job's sweeps/ instead. Without --run it starts a fresh sweep; with --run NAME
    it starts that sweep or goes on with it: finished trials are not done again.

    Examples:

      heliostat sweep support_templates size=quick

      heliostat sweep support_templates sweep=knobs sweep.bundle=runs/nightly/bundle
    """
    run_sweep(job, overrides or (), config or (), run)


def run_sweep(name: str, overrides: Sequence[str], files: Sequence[Path], run: str | None) -> None:
    """Do a sweep from config to last screen.

    Everything that can be refused without Ray is refused before Ray starts.
    """
    request = Request("sweep", "sweep", name, overrides, files, run)
    job = find_job(name)
    if (difference := check_submitted_version()) is not None:
        note(difference)
    plan = read_plan(job, overrides, files)
    refuse_infeasible(plan.loaded.config)
    kind = kind_of(job, plan)
    bundle = open_bundle(job, plan) if kind.uses_bundle else None

    from heliostat.cluster.ray_cluster import connect
    from heliostat.sweep.sweep import SweepJob
    from heliostat.sweep.sweep import sweep as search

    version = bundle.version if bundle is not None else None
    with open_run(request, job, plan.loaded, plan.digest(version)) as opened:
        announce(opened, plan.loaded)
        connection = connect()
        source = bundle.source if bundle is not None else None
        swept = SweepJob(job.name, f"{job.package}.sweep", kind, source)
        try:
            summary = search(plan, swept, opened, _shown(opened.folder), note)
        except UserError:
            raise
        except BaseException:
            note(f"Go on where it stopped: {continuation(request, opened.id)}")
            raise
        finally:
            if connection.is_own:
                connection.close()
    show_summary(summary)


def read_plan(job: JobEntry, overrides: Sequence[str], files: Sequence[Path]) -> SweepPlan:
    """The checked sweep that the words of the command line ask for."""
    names = [text.removeprefix(NAMED) for text in overrides if text.startswith(NAMED)]
    keys = [unnested(text) for text in overrides if not text.startswith(NAMED)]
    if len(set(names)) > 1:
        raise ConfigError(f"{COMMAND_LINE}: sweep is given twice, as {' and as '.join(names)}")
    if not names:
        return make_plan(load_config(job, None, keys, files))
    if names[0] not in job.sweeps():
        near = nearest_names(names[0], job.sweeps())
        hint = f"; the nearest is {near[0]}" if near else ""
        known = ", ".join(job.sweeps()) or "none"
        raise ConfigError(
            f"{COMMAND_LINE}: job {job.name} has no sweep {names[0]!r} in its sweeps/, only "
            f"{known}{hint}"
        )
    file = job.folder / "sweeps" / f"{names[0]}.yaml"
    return make_plan(load_config(job, None, keys, [file, *files], instead_of="sweep"))


def unnested(override: str) -> str:
    """`sweep.space.fit.lr.grid=[1]` as the section it means, whose key is `fit.lr`."""
    if not override.startswith(SPACE):
        return override
    key, equals, value = override.removeprefix(SPACE).partition("=")
    above, _, kind = key.rpartition(".")
    if kind in KINDS:
        key, value = above, f"{{{kind}: {value}}}"
    return f'sweep.space={{"{key}": {value}}}' if equals and key else override


def kind_of(job: JobEntry, plan: SweepPlan) -> TrialKind:
    """What one trial is; refuses kinds and metrics that the job does not have."""
    if not job.has_sweep():
        raise ConfigError(f"job {job.name} has no sweep.py, so nothing says what a trial is")
    kinds: dict[str, TrialKind] = getattr(job.sweep_code(), "TRIALS", {})
    settings = plan.settings
    if settings.trial not in kinds:
        near = nearest_names(settings.trial, kinds)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise ConfigError(
            f"sweep.trial is {settings.trial!r}, but a trial of job {job.name} is one of "
            f"{', '.join(kinds) or 'nothing'}{hint}"
        )
    kind = kinds[settings.trial]
    check_keys(plan, kind.keys)
    check_metrics(settings, final=kind.metrics, evaluated=kind.evaluations)
    return kind


def open_bundle(job: JobEntry, plan: SweepPlan) -> Bundle:
    """The bundle that the sweep is over, verified."""
    from heliostat.runs.registry import Place, resolve_bundle

    config = plan.loaded.config
    place = Place(resolve_output(config.out).place, config.tracker.uri)
    return resolve_bundle(plan.settings.bundle or job.name, place)


def _shown(folder: Location) -> str:
    """The folder as it would be typed here."""
    return shown_path(folder.local_path) if folder.is_local else folder.uri
