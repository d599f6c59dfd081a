"""What can be swept: the scheme that one trained model is read under, or the one of a training.

`read` takes a bundle of this job and the windows that settings are chosen on; those that a result
is reported on stay untouched. `read_long_text` takes a checkpoint that was trained elsewhere, in a
bundle of language_model, and long documents of the user's own; its weights are only read.
`train_inverse_leaky` trains the third model anew in each trial, since its positions are those of
its training, and reads it with plain rope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from heliostat.errors import ConfigError
from heliostat.runs.bundle import load_bundle
from heliostat.runs.inputs import Input
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.sweep.contract import Shared, Trial, TrialKind
from jobs.corpora.text_files import text_files
from jobs.corpora.windows import FixedWindowStream
from jobs.pretrained import hf_bundle
from jobs.rerope.bundle import KIND, open_model
from jobs.rerope.config import Config, SchemeConfig
from jobs.rerope.evaluation import Losses, Scores, Scoring, measure, measure_here, windows_of
from jobs.rerope.far_modelling import FAR, NEAR, far_modelling
from jobs.rerope.shapes import LanguageModel
from jobs.rerope.study import open_corpus
from jobs.rerope.tasks import REACH
from jobs.rerope.trials import Trial as TextTrial
from models.planned_lm import plan_for
from models.position_checks import require_inference, require_log_n
from models.positions import EXPANDED, WINDOWED, LogN, PositionScheme, SchemeName


def prepare(config: Config, run: Run) -> Shared:
    """The source files, read once."""
    corpus = open_corpus(config, run)
    places = {"train": corpus.train.location.uri, "test": corpus.test.location.uri}
    return Shared(corpus.inputs(), places)


def read(config: Config, trial: Trial) -> Mapping[str, float]:
    """Losses of a bundle of rerope under the scheme, at L and at 8 L."""
    opened = load_bundle(trial.bundle, KIND)
    bundle = open_model(opened)
    length = bundle.train_length
    scheme = scheme_of(config.scheme, length, REACH, bundle.log_n)
    stream = _choice(config, Location.of(str(trial.shared["test"])), length)
    rope = PositionScheme("rope", log_n=bundle.log_n)
    near, far = TextTrial(scheme, length), TextTrial(scheme, REACH * length)
    plain, again = TextTrial(rope, length), TextTrial(scheme, REACH * length, "repeated")
    trials = (near, far, plain, again)
    scores = _scores(
        trial, opened.version, bundle.model, length, trials, stream, config.evaluation.batch
    )
    return {
        NEAR: _mean(scores.losses[:, 0]),
        FAR: _mean(scores.losses[:, 1]),
        "rise_at_L": _mean(scores.losses[:, 0]) - _mean(scores.losses[:, 2]),
        "nonrep_acc_8L": _mean(scores.accuracies[:, 1]),
        "rep_acc_8L": _mean(scores.accuracies[:, 3]),
    }


def train_inverse_leaky(config: Config, trial: Trial) -> Mapping[str, float]:
    """One training with inverse leaky positions; its losses under plain rope, at L and at 8 L."""
    train, test = (Location.of(str(trial.shared[side])) for side in ("train", "test"))
    length, stream = config.length, _choice(config, test, config.length)
    task = far_modelling(config, train=train, choice=stream)
    chosen = replace(config.fit.evaluation, metric=FAR)
    fit = replace(config.fit, evaluation=chosen)
    result = trial.fit(task, fit, resources=config.resources)
    rope = PositionScheme("rope", log_n="train")
    far = REACH * length
    trials = (TextTrial(rope, length), TextTrial(rope, far), TextTrial(rope, far, "repeated"))
    scores = measure(
        "windows",
        trial.run,
        Scoring(task.shape, length, trials),
        result.final,
        stream,
        resources=config.resources,
        batch=config.evaluation.batch,
    )
    return {
        NEAR: _mean(scores.losses[:, 0]),
        FAR: _mean(scores.losses[:, 1]),
        "nonrep_acc_8L": _mean(scores.accuracies[:, 1]),
        "rep_acc_8L": _mean(scores.accuracies[:, 2]),
    }


def open_texts(config: Config, run: Run) -> Shared:
    """The folder of documents; the first trial tokenises them as the bundle does."""
    folder = _texts(config)
    origin = Input("documents", "real", f"text files of {folder}", "of their owner")
    return Shared([origin], {"texts": str(folder.resolve())})


def read_long_text(config: Config, trial: Trial) -> Mapping[str, float]:
    """Losses of a checkpoint under the scheme, at L and at x L, and how it reads a text again."""
    asked = config.long_text
    bundle = load_bundle(trial.bundle, hf_bundle.KIND)
    found = hf_bundle.open_language_model(bundle)
    length = asked.trained_length or found.decoder.max_positions
    scheme = scheme_of(config.scheme, length, asked.expansion, "none")
    # Schemes that assign positions go on top of the frequencies that a model brings along.
    if found.model.config.yarn is not None and scheme.name not in EXPANDED:
        scheme = replace(scheme, compose=True)
    table = text_files(
        Path(str(trial.shared["texts"])),
        found.codec.encode,
        tokenizer=bundle.version,
        cache=trial.run.cache,
    )
    stream = FixedWindowStream(
        table.location, asked.expansion * length + 1, windows=asked.windows, seed=asked.seed
    )
    near, far = TextTrial(scheme, length), TextTrial(scheme, asked.expansion * length)
    again = replace(far, text="repeated")
    scores = _scores(trial, bundle.version, found.model, length, (near, far, again), stream, 1)
    losses = scores.losses[:, 1]
    # One window has no spread.
    error = losses.std(ddof=1) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
    return {
        "loss_L": _mean(scores.losses[:, 0]),
        "loss_far": _mean(losses),
        "error_far": float(error),
        "accuracy_L": _mean(scores.accuracies[:, 0]),
        "accuracy_far": _mean(scores.accuracies[:, 1]),
        "accuracy_repeated": _mean(scores.accuracies[:, 2]),
    }


def scheme_of(
    config: SchemeConfig, train_length: int, expansion: int, trained_with: LogN
) -> PositionScheme:
    """The scheme of a section, with what it leaves open filled in; a ConfigError where none is."""
    name = cast(SchemeName, config.name)
    defaults: dict[str, float] = {}
    if name in WINDOWED:
        defaults["window"] = train_length // 2
    if name == "self_extend":
        defaults["group"] = 2 * expansion
    if name == "leaky_rerope":
        # From a window of L / 2 on, positions of x L tokens then stay below L.
        defaults["interval"] = 2.0 * expansion
    if name in EXPANDED:
        defaults["interval"] = float(expansion)
    given = {
        key: value
        for key in ("window", "interval", "group", "chunk", "local", "beta")
        if (value := getattr(config, key)) is not None
    }
    usual = "post" if name in WINDOWED or name == "dca" else "none"
    log_n = config.log_n or ("train" if trained_with == "train" else usual)
    try:
        scheme = PositionScheme(name, log_n=cast(LogN, log_n), **{**defaults, **given})
        require_inference(scheme)
        require_log_n(scheme, trained_with)
    except ValueError as error:
        raise ConfigError(f"scheme: {error}") from error
    return scheme


def _texts(config: Config) -> Path:
    if config.long_text.texts is None:
        raise ConfigError(
            "long_text.texts is null: name a folder of long documents (.txt or .md, also with .gz)"
        )
    folder = Path(config.long_text.texts).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"long_text.texts is {config.long_text.texts}: there is no such folder")
    return folder


def _choice(config: Config, test: Location, length: int) -> FixedWindowStream:
    """The windows that settings are chosen on."""
    return windows_of(
        test,
        train_length=length,
        windows=config.evaluation.windows,
        seed=config.evaluation.seed,
        half="choice",
    )


def _scores(
    trial: Trial,
    version: str,
    model: LanguageModel,
    length: int,
    trials: tuple[TextTrial, ...],
    stream: FixedWindowStream,
    batch: int,
) -> Scores:
    """Scores of the bundle's model, kept window by window in the trial's folder."""
    for one in trials:
        try:
            plan_for(model.config, one.scheme, train_length=length, length=one.length)
        except ValueError as error:
            raise ConfigError(f"scheme: {error}") from error
    scoring = Scoring(model.config, length, trials)
    return measure_here("windows", trial.run, model, scoring, version, stream, batch=batch)


def _mean(values: Losses) -> float:
    return float(values.mean())


TRIALS = {
    "read": TrialKind(
        shared=prepare,
        trial=read,
        keys=("scheme",),
        metrics=(FAR, NEAR, "rise_at_L", "nonrep_acc_8L", "rep_acc_8L"),
        uses_bundle=True,
    ),
    "train_inverse_leaky": TrialKind(
        shared=prepare,
        trial=train_inverse_leaky,
        keys=("inverse_leaky", "model", "fit", "seed"),
        metrics=(FAR, NEAR, "nonrep_acc_8L", "rep_acc_8L"),
        evaluations=(FAR, NEAR),
    ),
    "read_long_text": TrialKind(
        shared=open_texts,
        trial=read_long_text,
        keys=("scheme",),
        metrics=(
            "loss_far",
            "error_far",
            "loss_L",
            "accuracy_L",
            "accuracy_far",
            "accuracy_repeated",
        ),
        uses_bundle=True,
    ),
}
