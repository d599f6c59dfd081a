"""The evaluation of a classifier, from its scores and the samples they belong to.

One function for every arm: language models and classical baselines give the same matrix of scores
over the label map, so no arm is measured in another way. A sample whose template is not in the
label map can never be suggested rightly; it counts as a miss in every accuracy and in the
calibration, and as a negative in every average precision. Only the losses leave it out, since it
has none, and say over how many samples they run. Figures follow section 4 of Wyatte et al.
(arXiv 2405.15765); average precision, calibration and the groups are ours. The formulas
themselves are in `models.metrics`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import torch
from numpy.typing import NDArray

from heliostat.errors import DataError
from jobs.support_templates.label_map import LabelMap
from models.metrics import (
    average_precision_by_class,
    expected_calibration_error,
    fit_temperature,
    label_ranks,
    macro_average_precision,
    masked_probabilities,
    negative_log_likelihood,
    ranking,
    weighted_average_precision,
)

Scores = NDArray[np.float32] | NDArray[np.float64]

DEPTHS: Mapping[str, range] = {
    "1": range(1, 2),
    "2": range(2, 3),
    "3": range(3, 4),
    "4": range(4, 5),
    "5 to 8": range(5, 9),
    "9 to 16": range(9, 17),
    "17 and more": range(17, 2**31),
}
"""Groups of conversation depth: messages before the labelled one."""


@dataclass(frozen=True)
class ScoredSamples:
    """What the evaluation needs to know of each scored sample, row by row."""

    template_ids: Sequence[str]
    depths: Sequence[int]


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy over one group of samples."""

    group: str
    samples: int
    top1: float
    top3: float
    top5: float


@dataclass(frozen=True)
class TemplateScore:
    """How well one template of the map is told from all others."""

    template_id: str
    samples: int
    average_precision: float
    """Area under the precision-recall curve."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of one classifier on the test side."""

    overall: GroupAccuracy
    out_of_map: int
    """Samples whose template is not in the label map; misses by definition."""
    loss: float
    """Mean cross entropy before temperature scaling, nats, over samples in the map."""
    calibrated_loss: float
    """The same after temperature scaling."""
    temperature: float
    ece: float
    """Expected calibration error of the top-1 probability, 15 bins, before temperature scaling."""
    calibrated_ece: float
    """The same after temperature scaling."""
    macro_average_precision: float
    """Mean over templates that occur."""
    weighted_average_precision: float
    """Mean over templates, each weighted by its samples."""
    templates: tuple[TemplateScore, ...]
    """Templates of the map that occur on the test side, in label order."""
    by_depth: tuple[GroupAccuracy, ...]
    """Accuracy by conversation depth, groups that occur."""
    recent: GroupAccuracy | None
    """Accuracy on recently introduced templates; None if none occurs."""
    skipped: Mapping[str, int]
    """Everything left out on the way here, by reason."""

    def metrics(self) -> dict[str, float]:
        """The figures that every report and tracker shows."""
        return {
            "top1": self.overall.top1,
            "top3": self.overall.top3,
            "top5": self.overall.top5,
            "loss": self.loss,
            "calibrated_loss": self.calibrated_loss,
            "temperature": self.temperature,
            "ece": self.ece,
            "calibrated_ece": self.calibrated_ece,
            "macro_average_precision": self.macro_average_precision,
            "weighted_average_precision": self.weighted_average_precision,
            "samples": float(self.overall.samples),
            "out_of_map": float(self.out_of_map),
        }


def recent_templates(
    introduced_at: Mapping[str, datetime | None], *, as_of: datetime, days: int = 30
) -> set[str]:
    """Templates introduced in the last `days` days before `as_of`."""
    start = as_of - timedelta(days=days)
    return {t for t, moment in introduced_at.items() if moment and start < moment <= as_of}


def fitted_temperature(scores: Scores, template_ids: Sequence[str], label_map: LabelMap) -> float:
    """The temperature that minimises the loss on the validation samples in the map."""
    labels = label_map.indices(template_ids)
    known = _known(scores, labels, label_map)
    return fit_temperature(torch.as_tensor(scores)[known], torch.as_tensor(labels)[known])


def evaluate(
    scores: Scores,
    samples: ScoredSamples,
    label_map: LabelMap,
    *,
    temperature: float,
    recent: Collection[str],
    skipped: Mapping[str, int],
) -> Evaluation:
    """Evaluate scores (logits or log-probabilities), one row a sample, one column a label."""
    labels = label_map.indices(samples.template_ids)
    known = _known(scores, labels, label_map)
    ranks = np.full(len(labels), np.iinfo(np.int64).max)
    all_scores, all_labels = torch.as_tensor(scores), torch.as_tensor(labels)
    known_scores, known_labels = all_scores[known], all_labels[known]
    ranks[known.numpy()] = label_ranks(known_scores, known_labels).numpy()
    is_recent = np.isin(np.array(samples.template_ids), sorted(recent))
    everything = torch.ones(len(label_map), dtype=torch.bool)
    calibrated = masked_probabilities(all_scores, temperature, everything)
    precisions = average_precision_by_class(calibrated, all_labels)
    return Evaluation(
        overall=_accuracy("all", ranks),
        out_of_map=len(labels) - len(known),
        loss=negative_log_likelihood(known_scores, known_labels),
        calibrated_loss=negative_log_likelihood(known_scores, known_labels, temperature),
        temperature=temperature,
        ece=_ece(masked_probabilities(all_scores, 1.0, everything), all_labels),
        calibrated_ece=_ece(calibrated, all_labels),
        macro_average_precision=macro_average_precision(precisions),
        weighted_average_precision=weighted_average_precision(precisions, known_labels),
        templates=_template_scores(precisions, labels[known.numpy()], label_map),
        by_depth=_by_depth(ranks, np.asarray(samples.depths)),
        recent=_accuracy("recent", ranks[is_recent]) if is_recent.any() else None,
        skipped=dict(skipped),
    )


def _known(scores: Scores, labels: NDArray[np.int64], label_map: LabelMap) -> torch.Tensor:
    """Rows whose label is in the map, after checking that rows and columns fit."""
    if scores.shape != (len(labels), len(label_map)):
        raise DataError(
            f"the scores have shape {scores.shape}: expected {len(labels)} samples by "
            f"{len(label_map)} labels of map {label_map.label_map_version}"
        )
    if np.isnan(scores).any():
        row = int(np.flatnonzero(np.isnan(scores).any(axis=1))[0])
        raise DataError(f"the scores of sample {row} hold NaN: the classifier has diverged")
    known = np.flatnonzero(labels >= 0)
    if not len(known):
        raise DataError(
            f"none of {len(labels)} samples has a template in label map "
            f"{label_map.label_map_version}: nothing can be measured"
        )
    return torch.as_tensor(known)


def _accuracy(group: str, ranks: NDArray[np.int64]) -> GroupAccuracy:
    top1, top3, top5 = (float(np.mean(ranks < k)) for k in (1, 3, 5))
    return GroupAccuracy(group=group, samples=len(ranks), top1=top1, top3=top3, top5=top5)


def _by_depth(ranks: NDArray[np.int64], depths: NDArray[np.int64]) -> tuple[GroupAccuracy, ...]:
    groups = {
        name: (depths >= depth.start) & (depths < depth.stop) for name, depth in DEPTHS.items()
    }
    return tuple(_accuracy(name, ranks[rows]) for name, rows in groups.items() if rows.any())


def _ece(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    predicted = ranking(probabilities, 1)[:, 0]
    confidence = probabilities.gather(1, predicted[:, None])[:, 0]
    return expected_calibration_error(confidence, predicted == labels)


def _template_scores(
    precisions: torch.Tensor, labels: NDArray[np.int64], label_map: LabelMap
) -> tuple[TemplateScore, ...]:
    counts = np.bincount(labels, minlength=len(label_map))
    return tuple(
        TemplateScore(label_map.name(i), int(counts[i]), float(precisions[i]))
        for i in np.flatnonzero(counts).tolist()
    )
