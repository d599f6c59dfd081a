"""The one module that runs Ray Tune: trials as its actors, our director behind its interfaces.

Each turn of a trial is one Tune trial. Its process only drives: it needs no CPU of its own, else
two drivers on two cores would hold what their workers wait for, for ever. How many run at once is
ours to say (`slots.py`). Tune's own files are bookkeeping that nothing reads again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from heliostat.cluster.ray_cluster import enter_worker
from heliostat.cluster.ray_internals import remove_orphaned_placement_groups
from heliostat.storage import Location
from heliostat.sweep.director import Director, TrialEnd
from heliostat.sweep.ledger import is_at_work
from heliostat.sweep.performance import Performance, TrialSetting, as_result

logger = logging.getLogger(__name__)

POLL_S = 0.5
ORPHANS_EVERY_S = 5.0
DRIVER_BYTES = 1_000_000
"""What the process of a trial asks for where it needs no CPU: Tune refuses to place nothing."""
EXPERIMENT = "experiment"
FOLDER = "tune"


@dataclass(frozen=True)
class TuneRequest:
    """How trials are run."""

    setting: TrialSetting
    at_once: int
    cpus: float
    """CPUs of a trial's own process; 0 where it only drives workers."""
    gpus: float
    max_failures: int


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """The process of a trial; used again for the next one, which saves seconds of imports."""

    def setup(self, config: dict[str, Any], setting: TrialSetting, gpu: bool) -> None:
        """Get ready. The trial begins with the first step: while this process is being made, Tune
        may give the trial to one that became free, and drop this one."""
        enter_worker(gpu=gpu)
        self._order, self._setting = config["order"], setting
        self._performance: Performance | None = None

    def step(self) -> dict[str, Any]:
        """Go on to the next evaluation, or to the end; or save and leave when the trial pauses."""
        if not is_at_work(self._setting.sweep, self._order.name):
            if self._performance is not None:
                # Another process may go on with it as soon as this one says that it has ended.
                self._performance.stop(within_s=None)
                self._performance = None
            return as_result(TrialEnd("paused", {}))
        if self._performance is None:
            self._performance = Performance(self._order, self._setting)
        return as_result(self._performance.next())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End what was going on, and get ready for another trial."""
        self.cleanup()
        self._order, self._performance = new_config["order"], None
        return True

    def cleanup(self) -> None:
        """End."""
        if self._performance is not None:
            self._performance.stop()
            self._performance = None

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: trials go on from their own runs."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing."""


class _Search(Searcher):  # type: ignore[misc]
    """Tune's question for the next trial, passed on."""

    def __init__(self, director: Director) -> None:
        super().__init__()
        self._director = director
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        order = self._director.next()
        if order is not None:
            self._names[trial_id] = order.name
            return {"order": order}
        return Searcher.FINISHED if self._director.is_over() else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial whose process died too often. (Schedulers are told of every death, also when
        Tune starts the trial once more.)"""
        if error:
            self._director.lost(self._names[trial_id], "its process died, again and again")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Schedule(FIFOScheduler):  # type: ignore[misc]
    """Tune's news of trials, passed on."""

    def __init__(self, director: Director) -> None:
        super().__init__()
        self._director = director

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        goes_on = self._director.judge(_name(trial), result["point"])
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if "end" in result:
            self._director.end(_name(trial), result["end"])


def _name(trial: Trial) -> str:
    return str(trial.config["order"].name)


def run_trials(
    director: Director, request: TuneRequest, scratch: Location, each: Callable[[], None]
) -> None:
    """Run trials until the director is over; `each` is called about twice a second meanwhile.

    Raises what ended Tune before that.
    """
    trouble: list[BaseException] = []

    def work() -> None:
        try:
            _tuner(director, request, scratch).fit()
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=work, name="tune", daemon=True)
    thread.start()
    ticks = 0
    while thread.is_alive():
        thread.join(POLL_S)
        each()
        ticks += 1
        if ticks % int(ORPHANS_EVERY_S / POLL_S) == 0:
            # The controller of a training whose trial was killed leaves its workers' places taken.
            remove_orphaned_placement_groups()
    if trouble:
        raise trouble[0]


def _tuner(director: Director, request: TuneRequest, scratch: Location) -> tune.Tuner:
    for variable, value in (
        # Relative paths in a config mean what they mean in the command's folder.
        ("RAY_CHDIR_TO_TRIAL_DIR", "0"),
        ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),
        # The newer reporter prints even when told to be silent.
        ("RAY_AIR_NEW_OUTPUT", "0"),
        ("TUNE_GLOBAL_CHECKPOINT_S", "1000000"),
        ("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0"),
    ):
        os.environ[variable] = value
    for name in ("ray.tune", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    bundle: dict[str, float] = {"memory": DRIVER_BYTES}
    if request.cpus or request.gpus:
        bundle = {"CPU": request.cpus, "GPU": request.gpus}
    actor = tune.with_parameters(TrialActor, setting=request.setting, gpu=bool(request.gpus))
    filesystem, path = scratch.filesystem()
    return tune.Tuner(
        tune.with_resources(actor, tune.PlacementGroupFactory([bundle])),
        tune_config=tune.TuneConfig(
            search_alg=_Search(director),
            scheduler=_Schedule(director),
            num_samples=10**9,
            max_concurrent_trials=request.at_once,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=path,
            storage_filesystem=filesystem,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=request.max_failures),
        ),
    )
