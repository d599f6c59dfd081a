"""What can be swept: a whole training, judged on rows that no result is measured on.

A trial trains a model and ends with its loss, the imbalance of its experts and what a token costs
to cache, all on the validation rows; the test rows stay untouched, so that a result may be measured
on them afterwards. The section of the config searches for the balance, `sweeps/rank.yaml` goes
through the widths of the latent and of the rotary key.
"""

from __future__ import annotations

from collections.abc import Mapping

from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.sweep.contract import Shared, Trial, TrialKind
from jobs.mla_moe.config import Config
from jobs.mla_moe.data import open_corpus
from jobs.mla_moe.evaluation import measure
from jobs.mla_moe.pipeline import task_of
from jobs.mla_moe.source import starting_weights
from models.counting import parameter_count


def prepare(config: Config, run: Run) -> Shared:
    """The text, prepared once."""
    corpus = open_corpus(config.data, run)
    start = starting_weights(config, run)
    places = {"train": corpus.train.uri, "test": corpus.test.uri}
    return Shared(corpus.inputs, {**places, "start": start.uri if start is not None else None})


def training(config: Config, trial: Trial) -> Mapping[str, float]:
    """One training, measured on validation."""
    train, test = (Location.of(str(trial.shared[side])) for side in ("train", "test"))
    task = task_of(config, train, test)
    start = trial.shared["start"]
    result = trial.fit(
        task,
        config.fit,
        resources=config.resources,
        start_from=None if start is None else Location.of(str(start)),
    )
    found = measure(task, result.last, task.eval_data(), config.resources)
    return {
        "loss": found.loss,
        "maxvio_global": found.max_violation,
        "groups_per_token": found.metrics()["groups_per_token"],
        "cache_bytes_per_token": float(found.cache_bytes_per_token),
        "parameters": float(parameter_count(task.decoder)),
    }


TRIALS = {
    "train": TrialKind(
        shared=prepare,
        trial=training,
        keys=("model", "balance", "fit", "seed"),
        metrics=(
            "loss",
            "maxvio_global",
            "groups_per_token",
            "cache_bytes_per_token",
            "parameters",
        ),
        evaluations=("loss",),
    ),
}
