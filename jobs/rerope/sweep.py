"""What can be swept: the scheme that one trained model is read under. Nothing is trained.

`read` takes a bundle of this job and the windows that settings are chosen on; those that a result
is reported on stay untouched. `read_long_text` takes a checkpoint that was trained elsewhere, in a
bundle of language_model, and long documents of the user's own; its weights are only read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from heliostat.data.stream import Stream
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
from jobs.rerope.evaluation import repeated, scores_at_the_end, windows_of
from jobs.rerope.shapes import LanguageModel
from jobs.rerope.study import open_corpus
from jobs.rerope.tasks import REACH
from models.planned_lm import plan_for
from models.position_checks import require_inference, require_log_n
from models.positions import EXPANDED, WINDOWED, LogN, PositionScheme, SchemeName


def prepare(config: Config, run: Run) -> Shared:
    """The source files, read once."""
    corpus = open_corpus(config, run)
    return Shared(corpus.inputs(), {"test": corpus.test.location.uri})


def read(config: Config, trial: Trial) -> Mapping[str, float]:
    """Losses of a bundle of rerope under the scheme, at L and at 8 L."""
    bundle = open_model(load_bundle(trial.bundle, KIND))
    length = bundle.train_length
    scheme = scheme_of(config.scheme, length, REACH, bundle.log_n)
    stream = windows_of(
        Location.of(str(trial.shared["test"])),
        train_length=length,
        windows=config.evaluation.windows,
        seed=config.evaluation.seed,
        half="choice",
    )
    windows, batch = _windows(stream), config.evaluation.batch
    rope = PositionScheme("rope", log_n=bundle.log_n)

    def score(text: torch.Tensor, under: PositionScheme, context: int) -> _Scores:
        return _mean_scores(bundle.model, text, under, length, context, batch)

    near, far = score(windows, scheme, length), score(windows, scheme, REACH * length)
    return {
        "nonrep_loss_L": near.loss,
        "nonrep_loss_8L": far.loss,
        "rise_at_L": near.loss - score(windows, rope, length).loss,
        "nonrep_acc_8L": far.accuracy,
        "rep_acc_8L": score(repeated(windows), scheme, REACH * length).accuracy,
    }


def open_texts(config: Config, run: Run) -> Shared:
    """The folder of documents; the first trial tokenises them as the bundle does."""
    folder = _texts(config)
    origin = Input("documents", "real", f"text files of {folder}", "of their owner")
    return Shared([origin], {"texts": str(folder.resolve())})


def read_long_text(config: Config, trial: Trial) -> Mapping[str, float]:
    """Losses of a checkpoint under the scheme, at L and at x L."""
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
    windows = _windows(stream)
    near = _mean_scores(found.model, windows, scheme, length, length, 1)
    far = _mean_scores(found.model, windows, scheme, length, asked.expansion * length, 1)
    return {
        "loss_L": near.loss,
        "loss_far": far.loss,
        "error_far": far.error,
        "accuracy_far": far.accuracy,
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


def _windows(stream: Stream) -> torch.Tensor:
    """All windows of a stream, [windows, length]."""
    rows = stream.samples(range(stream.epoch_size))
    return torch.stack([torch.from_numpy(row["input_ids"]) for row in rows])


@dataclass(frozen=True)
class _Scores:
    """Over all windows."""

    loss: float
    """Nats."""
    error: float
    """Standard error of the loss over the windows; not a number for one window."""
    accuracy: float


@torch.inference_mode()
def _mean_scores(
    model: LanguageModel,
    windows: torch.Tensor,
    scheme: PositionScheme,
    train_length: int,
    context: int,
    batch: int,
) -> _Scores:
    """Means over the last L targets of all windows."""
    try:
        plan_for(model.config, scheme, train_length=train_length, length=context)
    except ValueError as error:
        raise ConfigError(f"scheme: {error}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    losses, hits = [], []
    for start in range(0, len(windows), batch):
        loss, hit = scores_at_the_end(
            model,
            windows[start : start + batch].to(device),
            scheme,
            train_length,
            length=context,
            scored=train_length,
        )
        losses.append(loss.double().mean(1))
        hits.append(hit.double().mean(1))
    by_window = torch.cat(losses)
    spread = float(by_window.std()) if len(by_window) > 1 else math.nan
    return _Scores(
        loss=float(by_window.mean()),
        error=spread / math.sqrt(len(by_window)),
        accuracy=float(torch.cat(hits).mean()),
    )


TRIALS = {
    "read": TrialKind(
        shared=prepare,
        trial=read,
        keys=("scheme",),
        metrics=("nonrep_loss_8L", "nonrep_loss_L", "rise_at_L", "nonrep_acc_8L", "rep_acc_8L"),
        uses_bundle=True,
    ),
    "read_long_text": TrialKind(
        shared=open_texts,
        trial=read_long_text,
        keys=("scheme",),
        metrics=("loss_far", "error_far", "loss_L", "accuracy_far"),
        uses_bundle=True,
    ),
}
