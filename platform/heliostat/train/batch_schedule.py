"""Samples of each optimiser step, and how many steps a number of epochs is.

The batch is the same in every step, or grows to it: with b the first batch, i the increment and
e the steps before each growth, step s + 1 has min(b + i floor(s / e), B) samples, B the whole
batch. DeepSeek-V2 trains so (arXiv 2405.04434, section 3.1.2), from 2304 to 9216 sequences over the
first 225e9 tokens; its report does not say in which steps.

A batch depends on the step and the config alone, never on the number of workers, and nothing has to
be saved for it with a checkpoint. A step is an optimiser update here as for the learning rate
(`schedule.py`), which a ramp leaves as it is.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import partial

from heliostat.data.reader import BatchPlan, batch_plan
from heliostat.errors import ConfigError
from heliostat.train.config import FitConfig


def samples_at(config: FitConfig, step: int) -> int:
    """Samples of optimiser step `step` (1 for the first), over all workers."""
    ramp = config.batch_ramp
    if ramp is None:
        return config.batch
    return min(ramp.start + ramp.increment * ((step - 1) // ramp.every), config.batch)


def samples_in(config: FitConfig, steps: int) -> int:
    """Samples of the first `steps` optimiser steps together.

    With l = (B - b) / i growths, of the steps s in the ramp s = k e + r:
    e (k b + i k (k - 1) / 2) + r (b + i k), and B for each step beyond its l e steps.
    """
    ramp = config.batch_ramp
    if ramp is None:
        return steps * config.batch
    in_ramp = min(steps, ramp_steps(config))
    growths, rest = divmod(in_ramp, ramp.every)
    whole = ramp.every * (growths * ramp.start + ramp.increment * (growths * (growths - 1) // 2))
    begun = rest * (ramp.start + ramp.increment * growths)
    return whole + begun + (steps - in_ramp) * config.batch


def ramp_steps(config: FitConfig) -> int:
    """Optimiser steps with less than the whole batch, however many steps there are."""
    ramp = config.batch_ramp
    return 0 if ramp is None else (config.batch - ramp.start) // ramp.increment * ramp.every


def plan_at(config: FitConfig, step: int, world_size: int) -> BatchPlan:
    """How the batch of optimiser step `step` is cut."""
    return batch_plan(samples_at(config, step), config.micro_batch, world_size)


def total_steps(config: FitConfig, epoch_size: int) -> int:
    """Optimiser steps of the whole training.

    Raises `ConfigError` when the data do not fill one batch.
    """
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    samples = int(config.epochs * epoch_size)
    first = samples_at(config, 1)
    # The most steps whose samples there are; no step has fewer than the first.
    steps = bisect_right(range(1, samples // first + 1), samples, key=partial(samples_in, config))
    if steps == 0:
        name = "batch" if config.batch_ramp is None else "batch_ramp.start"
        raise ConfigError(
            f"epochs={config.epochs:g} over {epoch_size} samples do not fill one batch of "
            f"{first}: lower {name} to {max(1, samples)} or less"
        )
    return steps
