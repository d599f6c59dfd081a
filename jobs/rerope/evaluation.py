"""The protocol under which schemes are compared, and the losses of single windows.

Every window is 8 L + 1 tokens of test text. Only its last L targets are scored, with the last n
tokens before them as context, so that all lengths n score the same targets and differ in nothing
but the context. A repeated window is its own first 4 L tokens written twice: what it predicts stood
4 L tokens before. Losses are kept for single windows, since comparisons are paired.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import nn

from heliostat.config.resources import ResourcesConfig
from heliostat.data.stream import Sample
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.predict import predict
from heliostat.train.task import Batch
from jobs.corpora.windows import FixedWindowStream
from jobs.rerope.shapes import LanguageModel, Shape, blank
from jobs.rerope.tasks import REACH
from jobs.rerope.trials import Text, Trial, label
from models.decoder import DecoderLM
from models.gau import GauLM
from models.planned_lm import plan_for
from models.position_checks import require_inference
from models.positions import PositionScheme

FILE = "scores.parquet"
MOST_LOGITS = 2**26
"""Logits in memory at a time."""
Losses = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Loss and accuracy of every trial on every window of a half."""

    trials: tuple[Trial, ...]
    losses: Losses
    """[windows, trials], nats a token."""
    accuracies: Losses
    """[windows, trials]."""

    @cached_property
    def _places(self) -> Mapping[Trial, int]:
        return {trial: place for place, trial in enumerate(self.trials)}

    def loss(self, scheme: PositionScheme, length: int, text: Text = "natural") -> Losses:
        """The losses of a trial, window by window."""
        found: Losses = self.losses[:, self._places[Trial(scheme, length, text)]]
        return found

    def accuracy(self, scheme: PositionScheme, length: int, text: Text = "natural") -> Losses:
        """The accuracies of a trial, window by window."""
        found: Losses = self.accuracies[:, self._places[Trial(scheme, length, text)]]
        return found


@dataclass(frozen=True)
class Scoring:
    """Computes the trials on a batch of windows."""

    shape: Shape
    train_length: int
    trials: tuple[Trial, ...]

    def model(self) -> nn.Module:
        """The model; its weights are replaced."""
        return blank(self.shape).to_empty(device="cpu")

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack windows."""
        rows = np.stack([cast(np.ndarray, sample["input_ids"]) for sample in samples])
        return {"input_ids": torch.from_numpy(rows)}

    def output(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Loss and accuracy of each trial on each window: [B, trials, 2]."""
        assert isinstance(model, DecoderLM | GauLM)
        return torch.stack([self._score(model, batch["input_ids"], one) for one in self.trials], 1)

    def _score(self, model: LanguageModel, window: torch.Tensor, trial: Trial) -> torch.Tensor:
        if trial.text == "repeated":
            window = repeated(window)
        losses, hits = scores_at_the_end(
            model,
            window,
            trial.scheme,
            self.train_length,
            length=trial.length,
            scored=self.train_length,
        )
        return torch.stack((losses.mean(1), hits.mean(1)), dim=-1)


@dataclass(frozen=True)
class PositionScoring:
    """The loss at every position of whole windows, for the figure."""

    shape: Shape
    train_length: int
    schemes: tuple[PositionScheme, ...]

    def model(self) -> nn.Module:
        """The model; its weights are replaced."""
        return blank(self.shape).to_empty(device="cpu")

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack windows."""
        rows = np.stack([cast(np.ndarray, sample["input_ids"]) for sample in samples])
        return {"input_ids": torch.from_numpy(rows)}

    def output(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """[B, schemes, T]."""
        assert isinstance(model, DecoderLM | GauLM)
        window = batch["input_ids"]
        length = window.shape[1] - 1
        losses = [
            scores_at_the_end(
                model, window, scheme, self.train_length, length=length, scored=length
            )[0]
            for scheme in self.schemes
        ]
        return torch.stack(losses, dim=1)


def scores_at_the_end(
    model: LanguageModel,
    window: torch.Tensor,
    scheme: PositionScheme,
    train_length: int,
    *,
    length: int,
    scored: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (nats) and hit (1 or 0) of the last `scored` targets of windows [B, T]: [B, scored].

    The context is the `length` tokens before the last one. Logits are formed a part at a time.
    """
    require_inference(scheme)
    inputs, targets = window[:, -length - 1 : -1], window[:, -scored:]
    plan = plan_for(model.config, scheme, train_length=train_length, length=length)
    hidden = model.decoder(inputs, position_plan=plan)[:, -scored:]
    weight = model.output_weight
    rows = max(1, MOST_LOGITS // (len(window) * len(weight)))
    losses, hits = [], []
    for start in range(0, scored, rows):
        wanted = targets[:, start : start + rows]
        logits = F.linear(hidden[:, start : start + rows], weight).float()
        losses.append(F.cross_entropy(logits.mT, wanted, reduction="none"))
        hits.append((logits.argmax(dim=-1) == wanted).float())
    return torch.cat(losses, dim=1), torch.cat(hits, dim=1)


def repeated(window: torch.Tensor) -> torch.Tensor:
    """The first half of windows [B, T] written twice, and once more its first token."""
    half = (window.shape[1] - 1) // 2
    first = window[:, :half]
    return torch.cat((first, first, first[:, :1]), dim=1)


def windows_of(
    test: Location, *, train_length: int, windows: int, seed: int, half: str
) -> FixedWindowStream:
    """One half of the evaluation windows: `choice` or `report`."""
    return FixedWindowStream(
        test,
        REACH * train_length + 1,
        windows=windows,
        seed=seed,
        first=0 if half == "choice" else windows // 2,
        count=windows // 2,
    )


def measure(
    name: str,
    run: Run,
    scoring: Scoring,
    weights: Location,
    stream: FixedWindowStream,
    *,
    resources: ResourcesConfig,
    batch: int,
) -> Scores:
    """Score the trials on the windows with workers, as a stage of the run."""

    def score() -> npt.NDArray[np.float32]:
        return predict(
            scoring, scoring.output, weights, stream, resources=resources, batch_size=batch
        )

    return kept(name, run, scoring.trials, weights.uri, stream, score)


def measure_here(
    name: str,
    run: Run,
    model: LanguageModel,
    scoring: Scoring,
    weights: str,
    stream: FixedWindowStream,
    *,
    batch: int,
) -> Scores:
    """Score the trials on the windows with a model of this process, as a stage of the run.

    Args:
        name: of the stage.
        run: that it belongs to.
        model: is moved to the GPU where there is one.
        scoring: the trials.
        weights: stands for what the model's weights are, such as the version of its bundle.
        stream: the windows.
        batch: windows at a time.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def score() -> npt.NDArray[np.float32]:
        model.to(device)
        found = []
        for start in range(0, stream.epoch_size, batch):
            end = min(start + batch, stream.epoch_size)
            rows = scoring.collate(stream.samples(range(start, end)))
            found.append(scoring.output(model, {"input_ids": rows["input_ids"].to(device)}).cpu())
        return torch.cat(found).numpy()

    return kept(name, run, scoring.trials, weights, stream, score)


def kept(
    name: str,
    run: Run,
    trials: Sequence[Trial],
    weights: str,
    stream: FixedWindowStream,
    score: Callable[[], npt.NDArray[np.float32]],
) -> Scores:
    """What `score` finds, [windows, trials, 2], as a stage with a table of every single window."""
    key = {
        "trials": [_trial_json(trial) for trial in trials],
        "windows": stream.fingerprint,
        "weights": weights,
    }

    def work(folder: Location) -> dict[str, object]:
        found = score()
        _write(folder / FILE, trials, found, stream)
        return {"windows": len(found), "windows_seed": stream.seed}

    run.stage(name, key, work)
    return read_scores(run.folder / "stages" / name / FILE, trials)


def read_scores(file: Location, trials: Sequence[Trial]) -> Scores:
    """The table of a stage."""
    table = pq.read_table(io.BytesIO(file.read_bytes()))
    shape = (-1, len(trials))
    return Scores(
        tuple(trials),
        table.column("loss_nats").to_numpy().reshape(shape),
        table.column("accuracy").to_numpy().reshape(shape),
    )


def _write(
    file: Location,
    trials: Sequence[Trial],
    found: npt.NDArray[np.float32],
    stream: FixedWindowStream,
) -> None:
    """One row for each window and trial."""
    count = len(found)
    drawn = stream.drawn
    span = range(stream.first, stream.first + count)
    columns: dict[str, Sequence[object] | npt.NDArray[np.float64]] = {
        "window": [number for number in span for _ in trials],
        "path": [drawn.paths[number] for number in span for _ in trials],
        "start": [drawn.starts[number] for number in span for _ in trials],
        "scheme": [label(trial.scheme) for trial in trials] * count,
        "length": [trial.length for trial in trials] * count,
        "text": [trial.text for trial in trials] * count,
        "loss_nats": found[:, :, 0].astype(np.float64).ravel(),
        "accuracy": found[:, :, 1].astype(np.float64).ravel(),
    }
    metadata = {"windows_seed": str(stream.seed), "windows_sha256": drawn.fingerprint}
    table = pa.table(columns).replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    file.write_bytes(buffer.getvalue())


def _trial_json(trial: Trial) -> dict[str, object]:
    values = asdict(trial.scheme)
    if values["interval"] == math.inf:
        values["interval"] = "inf"  # No number of JSON.
    return {**values, "length": trial.length, "text": trial.text}
