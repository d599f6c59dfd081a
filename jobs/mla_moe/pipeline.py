"""The pieces that a run and the claim are made of: the task, its training, its evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.fit import FitResult, fit
from jobs.mla_moe.config import Config
from jobs.mla_moe.data import Corpus
from jobs.mla_moe.evaluation import Evaluation, evaluate
from jobs.mla_moe.model_config import decoder_config
from jobs.mla_moe.tasks import MixtureLanguageModel


@dataclass(frozen=True)
class Trained:
    """A model that was trained and measured."""

    task: MixtureLanguageModel
    result: FitResult
    evaluation: Evaluation


def task_of(config: Config, train: Location, test: Location) -> MixtureLanguageModel:
    """What a config trains."""
    return MixtureLanguageModel(
        name="lm",
        decoder=decoder_config(config.model),
        balance=config.balance,
        train=train,
        test=test,
        length=config.data.length,
        seed=config.seed,
        validation_rows=config.data.validation_rows,
        targets=config.data.targets,
        end_of_text=config.data.end_of_text,
    )


def train(
    config: Config,
    run: Run,
    corpus: Corpus,
    *,
    name: str = "lm",
    start_from: Location | None = None,
) -> Trained:
    """Train a model, from random weights or those of a folder, and measure it.

    `name` begins the names of both stages.
    """
    task = task_of(config, corpus.train, corpus.test)
    result = fit(
        task,
        config.fit,
        run=run,
        resources=config.resources,
        name=name,
        start_from=start_from,
    )
    evaluation = evaluate(
        f"{name}-test", task, result.final, config.data, run=run, resources=config.resources
    )
    return Trained(task, result, evaluation)
