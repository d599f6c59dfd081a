"""Sweeps over rerope: position schemes over a trained bundle, without training anything.

    heliostat sweep rerope sweep.bundle=BUNDLE

tries windows and log-n modes of ReRoPE by default; any key of `scheme` may be searched.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from heliostat.errors import ConfigError
from heliostat.runs.bundle import load_bundle
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.sweep.contract import Shared, Trial, TrialKind
from jobs.rerope.bundle import RotaryModel, open_model
from jobs.rerope.config import Config, SchemeConfig
from jobs.rerope.evaluation import Scoring, windows_of
from jobs.rerope.study import open_corpus
from jobs.rerope.tasks import REACH
from jobs.rerope.trials import Trial as SchemeTrial
from models.position_checks import require_log_n
from models.positions import PositionScheme

METRICS = ("nonrep_loss_8L", "nonrep_loss_L", "rep_loss_8L", "rep_acc_8L", "loss_rise_L")


def prepare(config: Config, run: Run) -> Shared:
    """The evaluation text."""
    corpus = open_corpus(config, run)
    return Shared(inputs=corpus.inputs(), values={"test": corpus.test.location.uri})


def measure(config: Config, trial: Trial) -> Mapping[str, float]:
    """One scheme on the choosing half of the windows.

    `loss_rise_L` is what the scheme adds to the loss of rope at the training length.
    """
    opened = open_model(load_bundle(trial.bundle))
    scheme = scheme_of(config.scheme, opened)
    length, far = opened.train_length, REACH * opened.train_length
    rope = PositionScheme("rope", log_n=opened.log_n)
    trials = tuple(
        dict.fromkeys(
            (
                SchemeTrial(rope, length),
                SchemeTrial(scheme, length),
                SchemeTrial(scheme, far),
                SchemeTrial(scheme, far, "repeated"),
            )
        )
    )
    stream = windows_of(
        Location.of(str(trial.shared["test"])),
        train_length=length,
        windows=config.evaluation.windows,
        seed=config.evaluation.seed,
        half="choice",
    )

    def work(_: Location) -> dict[str, float]:
        scoring = Scoring(opened.shape, length, trials)
        found = []
        with torch.inference_mode():
            for start in range(0, stream.epoch_size, config.evaluation.batch):
                stop = min(start + config.evaluation.batch, stream.epoch_size)
                batch = scoring.collate(stream.samples(range(start, stop)))
                found.append(scoring.output(opened.model, batch).numpy())
        means = np.concatenate(found).astype(np.float64).mean(axis=0)
        by_trial = dict(zip(trials, means.tolist(), strict=True))
        at_length = by_trial[SchemeTrial(scheme, length)][0]
        repeated = by_trial[SchemeTrial(scheme, far, "repeated")]
        return {
            "nonrep_loss_8L": by_trial[SchemeTrial(scheme, far)][0],
            "nonrep_loss_L": at_length,
            "rep_loss_8L": repeated[0],
            "rep_acc_8L": repeated[1],
            "loss_rise_L": at_length - by_trial[SchemeTrial(rope, length)][0],
        }

    key = {"scheme": repr(scheme), "windows": stream.fingerprint}
    return trial.run.stage("measure", key, work)


def scheme_of(config: SchemeConfig, model: RotaryModel) -> PositionScheme:
    """The scheme of a trial; a ConfigError where it does not fit the model."""
    try:
        scheme = PositionScheme(
            config.name,  # type: ignore[arg-type]
            log_n=config.log_n,  # type: ignore[arg-type]
            window=config.window,
            interval=config.interval,
            group=config.group,
        )
        require_log_n(scheme, model.log_n)
    except ValueError as error:
        raise ConfigError(f"scheme: {error}") from error
    return scheme


TRIALS = {
    "bundle": TrialKind(
        shared=prepare,
        trial=measure,
        metrics=METRICS,
        keys=("scheme",),
        uses_bundle=True,
    )
}
