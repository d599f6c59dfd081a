"""What would count as holding, fixed before anything was measured.

Losses are nats a token, means over the seeds, on windows that no setting was chosen on. Every
"better" also has to be larger than two standard errors of the paired difference: differences of the
same windows, each averaged over the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from heliostat.runs.claim import Criterion
from jobs.rerope.evaluation import Losses
from jobs.rerope.study import Study
from jobs.rerope.trials import Method, leaky, leaky_windows, rerope, windows
from models.positions import PositionScheme

FAR_BELOW: tuple[Method, ...] = ("rope", "pi", "ntk_old", "ntk", "ntk_fixed", "ntk_mixed")
ROPE = PositionScheme("rope")
TRAINED_ROPE = PositionScheme("rope", log_n="train")


def criteria(study: Study) -> list[Criterion]:
    """All conditions of the claim."""
    return [
        *_below_baselines(study),
        *_no_loss_of_quality(study),
        *_beside_the_best_baselines(study),
        *_window_sweep(study),
        *_log_n(study),
        *_leaky(study),
        *_inverse_leaky(study),
    ]


def paired_ratio(better: Losses, worse: Losses) -> float:
    """Mean of (worse - better) over windows in its standard errors; seeds are averaged first."""
    difference = (worse - better).mean(axis=0)
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return float(difference.mean() / error) if error > 0 else float("inf")


def standard_error(losses: Losses) -> float:
    """Of the mean over windows; seeds are averaged first."""
    by_window = losses.mean(axis=0)
    return float(by_window.std(ddof=1) / np.sqrt(len(by_window)))


def _below_baselines(study: Study) -> Iterator[Criterion]:
    ratios = []
    for expansion in (4, 8):
        n = expansion * study.train_length
        ours = study.best("rerope", n)
        for method, margin in (*((name, 1.0) for name in FAR_BELOW), ("yarn", 0.3)):
            theirs = study.best(method, n)
            ratios.append(paired_ratio(ours, theirs))
            yield Criterion(
                f"1-{method}-{expansion}L",
                f"loss of {method} minus loss of rerope at {expansion} L",
                float((theirs - ours).mean()),
                ">=",
                margin,
            )
    yield Criterion(
        "1-significance",
        "smallest of these differences in its standard errors",
        min(ratios),
        ">",
        2.0,
    )


def _no_loss_of_quality(study: Study) -> Iterator[Criterion]:
    near, far = study.train_length, study.far
    yield Criterion(
        "2-plain",
        "loss of rerope at 8 L minus loss of rope at L",
        float((study.best("rerope", far) - study.loss(ROPE, near)).mean()),
        "<=",
        0.03,
    )
    ours = study.loss(study.chosen.log_n[far], far, variant="log_n")
    trained = study.loss(TRAINED_ROPE, near, variant="log_n")
    yield Criterion(
        "2-log-n-trained",
        "the same with the model trained with log-n scaling",
        float((ours - trained).mean()),
        "<=",
        0.01,
    )


def _beside_the_best_baselines(study: Study) -> Iterator[Criterion]:
    for method in ("self_extend", "dca"):
        theirs: Losses = study.best("self_extend" if method == "self_extend" else "dca", study.far)
        yield Criterion(
            f"3-{method}",
            f"loss of rerope minus loss of {method} at 8 L",
            float((study.best("rerope", study.far) - theirs).mean()),
            "<=",
            0.02,
        )


def _window_sweep(study: Study) -> Iterator[Criterion]:
    far, length = study.far, study.train_length
    tried = windows(length)
    losses = {w: study.loss(rerope(w, "post"), far) for w in tried}
    best = min(tried, key=lambda w: float(losses[w].mean()))
    yield Criterion(
        "4-interior",
        "smallest number of tried windows on either side of the best one",
        float(min(tried.index(best), len(tried) - 1 - tried.index(best))),
        ">=",
        1.0,
    )
    for window, margin, what in (
        (length, 0.15, "L"),
        (max(1, length // 8), 0.05, "L / 8"),
    ):
        yield Criterion(
            f"4-window-{what.replace(' ', '')}",
            f"loss with window {what} minus loss with the best window, at 8 L",
            float((losses[window] - losses[best]).mean()),
            ">=",
            margin,
        )
    yield Criterion(
        "4-significance",
        "smaller of the two differences in its standard errors",
        min(paired_ratio(losses[best], losses[window]) for window in (length, max(1, length // 8))),
        ">",
        2.0,
    )


def _log_n(study: Study) -> Iterator[Criterion]:
    far, length = study.far, study.train_length
    gains = [
        (
            study.loss(rerope(w, "none"), far),
            study.loss(rerope(w, "post"), far),
        )
        for w in windows(length)
        if w >= length // 4
    ]
    yield Criterion(
        "5-lowers",
        "smallest gain from log-n scaling after training at 8 L, over windows from L / 4",
        min(float((without - scaled).mean()) for without, scaled in gains),
        ">",
        0.0,
    )
    yield Criterion(
        "5-significance",
        "smallest of these gains in its standard errors",
        min(paired_ratio(scaled, without) for without, scaled in gains),
        ">",
        2.0,
    )
    change = study.loss(PositionScheme("rope", log_n="post"), length) - study.loss(ROPE, length)
    yield Criterion("5-at-L", "largest change from it at L", float(np.abs(change).max()), "<=", 0.0)


def _leaky(study: Study) -> Iterator[Criterion]:
    far, length = study.far, study.train_length
    ours = {w: study.loss(rerope(w, "post"), far) for w in leaky_windows(length)}
    for k in (16.0, 32.0):
        distances = [
            abs(float((study.loss(leaky(w, k), far) - loss).mean())) for w, loss in ours.items()
        ]
        yield Criterion(
            f"6-leaky-{k:g}",
            f"distance of leaky with k = {k:g} from rerope, windows L / 4 and L / 2, at 8 L",
            max(distances),
            "<=",
            0.05,
        )
    short = {w: study.loss(leaky(w, 2.0), far) for w in ours}
    yield Criterion(
        "6-leaky-2",
        "loss of leaky with k = 2, whose positions run past L, minus loss of rerope",
        min(float((short[w] - loss).mean()) for w, loss in ours.items()),
        ">=",
        0.2,
    )
    yield Criterion(
        "6-significance",
        "smaller of the two differences in its standard errors",
        min(paired_ratio(loss, short[w]) for w, loss in ours.items()),
        ">",
        2.0,
    )


def _inverse_leaky(study: Study) -> Iterator[Criterion]:
    near, far = study.train_length, study.far
    ours = study.loss(TRAINED_ROPE, far, variant="inverse_leaky")
    plain = study.loss(ROPE, far)
    yield Criterion(
        "7-at-8L",
        "loss of rope of the plain model minus that of the inverse leaky model, at 8 L",
        float((plain - ours).mean()),
        ">=",
        0.8,
    )
    yield Criterion(
        "7-significance",
        "that difference in its standard errors",
        paired_ratio(ours, plain),
        ">",
        2.0,
    )
    at_length = study.loss(TRAINED_ROPE, near, variant="inverse_leaky") - study.loss(ROPE, near)
    yield Criterion(
        "7-at-L",
        "loss of the inverse leaky model minus that of the plain model, both with rope at L",
        float(at_length.mean()),
        "<=",
        0.05,
    )
