"""What can be swept: a whole training, judged on rows that no result is measured on.

A trial trains a model and ends with its loss, the imbalance of its experts and what a token costs
to cache, all on the validation rows; the test rows stay untouched, so that a result may be measured
on them afterwards. The section of the config searches for the balance, `sweeps/rank.yaml` goes
through the widths of the latent and of the rotary key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

from heliostat.errors import ConfigError
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.sweep.contract import Shared, Trial, TrialKind
from jobs.mla_moe.config import Config
from jobs.mla_moe.data import open_corpus
from jobs.mla_moe.evaluation import measure
from jobs.mla_moe.pipeline import task_of
from jobs.mla_moe.source import open_source, require_shape
from models.counting import parameter_count
from models.decoder_config import decoder_config_from


def prepare(config: Config, run: Run) -> Shared:
    """The text, prepared once."""
    corpus = open_corpus(config, run)
    places: dict[str, object] = {
        "train": corpus.train.uri,
        "test": corpus.test.uri,
        "vocab_size": config.model.vocab_size,
    }
    start = open_source(config, run)
    if start is None:
        return Shared(corpus.inputs, places)
    begins = {"start": start.weights.uri, "shape": asdict(start.decoder)}
    values = {**places, **begins, "source": config.model.source}
    return Shared((*corpus.inputs, start.origin), values)


def training(config: Config, trial: Trial) -> Mapping[str, float]:
    """One training, measured on validation."""
    train, test = (Location.of(str(trial.shared[side])) for side in ("train", "test"))
    if config.data.tokenizer is not None and config.model.vocab_size != trial.shared["vocab_size"]:
        raise ConfigError("model.vocab_size is no key to search: all trials read the same pieces")
    task = task_of(config, train, test)
    start = _start(config, trial.shared)
    result = trial.fit(task, config.fit, resources=config.resources, start_from=start)
    found = measure(task, result.final, task.eval_data(), config.resources)
    return {
        "loss": found.loss,
        "maxvio_global": found.max_violation,
        "groups_per_token": found.metrics()["groups_per_token"],
        "cache_bytes_per_token": float(found.cache_bytes_per_token),
        "parameters": float(parameter_count(task.decoder)),
    }


def _start(config: Config, shared: Mapping[str, object]) -> Location | None:
    """The weights that all trials begin with; a ConfigError where they do not fit this one."""
    if config.model.source != shared.get("source"):
        raise ConfigError("model.source is no key to search: all trials begin alike")
    if config.model.source is None:
        return None
    require_shape(config, decoder_config_from(cast(dict[str, Any], shared["shape"])))
    return Location.of(str(shared["start"]))


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
