"""Learning rate as a function of the optimiser step.

The schedules are those of the published methods: linear warm-up over W steps, then a cosine
(Loshchilov and Hutter 2017), a line, a constant, or drops at milestones. A step counts optimiser
updates, never micro batches. There is no state: step t of T always has the same rate, so nothing
has to be saved with a checkpoint.
"""

from __future__ import annotations

import math

from heliostat.train.config import ScheduleConfig


def warmup_steps(config: ScheduleConfig, total: int) -> int:
    """W, the number of warm-up steps of a run of `total` optimiser steps."""
    if config.warmup_steps is not None:
        return min(config.warmup_steps, total)
    # 0.01 * 14,500 is 145.00000000000003 in floating point; the ceiling must still be 145.
    return math.ceil(round(config.warmup_fraction * total, 9))


def lr_factor(config: ScheduleConfig, step: int, total: int) -> float:
    """Share of the peak learning rate at optimiser step `step` (1 for the first) of `total`.

    With W warm-up steps: `t/W` up to W; then, with p = (t - W)/(T - W) and f the final fraction,
    cosine `f + (1 - f) (1 + cos(pi p))/2`, linear `f + (1 - f)(1 - p)`, constant 1, or
    `factor^n` after n milestones.
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / (total - warmup) if total > warmup else 1.0
    final = config.final_fraction
    if config.decay == "cosine":
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.decay == "linear":
        return final + (1 - final) * (1 - progress)
    if config.decay == "milestones":
        passed = sum(step > share * total for share in config.milestones)
        return config.milestone_factor**passed
    return 1.0
