"""One optimiser step on one rank, exact over micro batches and ranks.

One small vector is summed over the ranks in each step, while the first forward pass runs. It
carries the counts that normalise the loss of this step, the loss totals and the observed sums of
the step before (so that recording the exact global loss costs no collective of its own), and what
the ranks wish for. All ranks therefore decide alike, at the same step. Buffers that follow observed
sums are updated when these arrive: before the next forward pass, which then waits for them, and
before anything is evaluated or saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch

from heliostat.checkpoint.manifest import TrainState
from heliostat.data.reader import BatchPlan, StreamReader, step_positions
from heliostat.data.stream import Sample
from heliostat.train.batch_schedule import plan_at
from heliostat.train.collectives import ComingSum, Ranks
from heliostat.train.engine import clips_itself, set_batch, set_learning_rate, to_device
from heliostat.train.history import History
from heliostat.train.schedule import lr_factor
from heliostat.train.shared_weights import SharedWeights, clip_factor, norm_includes
from heliostat.train.spec import FitSpec
from heliostat.train.task import Batch, LossTerm, Observed, Steered
from heliostat.train.telemetry import Telemetry

SHOWN = 8

_Found = Mapping[str, LossTerm | Observed]
"""Loss terms and observations of a micro batch."""


class NonFiniteLoss(Exception):
    """The loss, its gradient or what was observed with it was not a number; going on or trying
    again would not help."""


@dataclass(frozen=True)
class _Done:
    """A step that is done but whose global loss is not known yet."""

    totals: dict[str, torch.Tensor]
    """This rank's share of each loss term, normalised."""
    losses: list[torch.Tensor]
    """The same by micro batch, to find a bad one."""
    observed: dict[str, torch.Tensor]
    """This rank's sums of what is no part of the loss."""
    is_applied: bool
    """Whether the weights changed; fp16 skips a step whose gradient overflows."""
    row: dict[str, float]
    plan: BatchPlan
    position: int


@dataclass(frozen=True)
class _Asked:
    """What the ranks add up in a step; last step's loss terms and observations are at its end."""

    coming: ComingSum
    wishes: int
    """How many there are; they come first."""
    counts: list[str]
    """The names of the counts, which follow."""


class Stepper:
    """Takes optimiser steps and records them; one lives as long as the worker group."""

    def __init__(
        self,
        spec: FitSpec,
        ranks: Ranks,
        engine: Any,
        shared: SharedWeights | None,
        reader: StreamReader[Batch],
        history: History,
        before_update: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        self._spec, self._task, self._config, self._ranks = spec, spec.task, spec.config, ranks
        self._engine, self._reader, self._history = engine, reader, history
        self._shared = shared
        self._before_update, self._note = before_update, note
        self._telemetry = Telemetry(spec.task.name, ranks, spec.config.precision)
        self._unrecorded: _Done | None = None

    def step(self, state: TrainState, wishes: Sequence[bool]) -> tuple[TrainState, list[bool]]:
        """One optimiser step. Called by all ranks.

        Args:
            state: where training stands.
            wishes: what this rank wishes for.

        Returns:
            Where it stands afterwards, and for each wish whether any rank has it.

        Raises:
            NonFiniteLoss: the step before had a loss, a gradient or a sum of what was observed that
                is not a number; on all ranks.
        """
        began = time.perf_counter()
        micro_batches = self._reader.next_step()
        waited_s = time.perf_counter() - began
        coming = self._ask(micro_batches, wishes)
        lr = self._config.optimizer.lr * lr_factor(
            self._config.schedule, state.step + 1, self._spec.steps
        )
        set_learning_rate(self._engine, lr)
        plan = plan_at(self._config, state.step + 1, self._ranks.world_size)
        set_batch(self._engine, plan)
        totals: dict[str, torch.Tensor] = {}
        observed: dict[str, torch.Tensor] = {}
        self._engine.set_gradient_accumulation_boundary(plan.accumulation == 1)
        found, counts, granted = self._begin(micro_batches[0], coming)
        losses = [self._backward(found, counts, totals, observed)]
        for number, batch in enumerate(micro_batches[1:], start=2):
            self._engine.step()
            self._engine.set_gradient_accumulation_boundary(plan.accumulation == number)
            losses.append(self._backward(self._forward(batch), counts, totals, observed))
        grad_norm = self._update(lr)
        seconds = time.perf_counter() - began
        row = {
            "step": state.step + 1,
            "lr": lr,
            "grad_norm": grad_norm,
            "step_s": seconds,
            "data_wait_s": waited_s,
            **self._telemetry.speed(counts, micro_batches, self._task, seconds),
        }
        is_applied = bool(self._engine.was_step_applied())
        self._unrecorded = _Done(totals, losses, observed, is_applied, row, plan, state.position)
        after = replace(
            state,
            step=state.step + 1,
            position=state.position + plan.global_batch,
            trained_s=state.trained_s + seconds,
            counts={name: state.counts.get(name, 0.0) + value for name, value in counts.items()},
        )
        return after, granted

    def record_last(self) -> None:
        """Record the newest step now, with a collective of its own. Called by all ranks."""
        if self._unrecorded is None:
            return
        self._record(self._unrecorded, self._ranks.sum(_flat(self._unrecorded)))

    def _begin(self, batch: Batch, coming: _Asked) -> tuple[_Found, dict[str, float], list[bool]]:
        """The first forward pass, and what the ranks agree on while it runs."""
        if isinstance(self._task, Steered):
            # The pass depends on buffers that follow the sums.
            heard = self._hear(coming)
            return self._forward(batch), *heard
        try:
            found = self._forward(batch)
        except Exception:
            # Weights that are no numbers any more can break a model before that is known; then
            # this says so. When peers are gone, the error itself says more.
            with suppress(RuntimeError):
                self._hear(coming)
            raise
        return found, *self._hear(coming)

    def _forward(self, batch: Batch) -> _Found:
        """What the task computes on one micro batch."""
        return self._task.loss(self._engine, to_device(batch, self._ranks.device))

    def _backward(
        self,
        found: _Found,
        counts: Mapping[str, float],
        totals: dict[str, torch.Tensor],
        observed: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Backward of one micro batch; returns its share of the loss."""
        terms = {name: one for name, one in found.items() if isinstance(one, LossTerm)}
        parts = [term.total / max(counts[term.per], 1.0) for term in terms.values()]
        loss = torch.stack([part.float() for part in parts]).sum()
        # DeepSpeed takes the mean over ranks and micro batches; we want the sum.
        accumulation = self._engine.gradient_accumulation_steps()
        self._engine.backward(loss * (self._ranks.world_size * accumulation))
        for name, part in zip(terms, parts, strict=True):
            value = part.detach()
            totals[name] = totals[name] + value if name in totals else value
        for name, one in found.items():
            if isinstance(one, Observed):
                value = one.values.detach().double()
                observed[name] = observed[name] + value if name in observed else value
        return loss.detach()

    def _update(self, lr: float) -> float:
        """Clip, update the weights, and return the norm of the gradient before clipping."""
        self._before_update()
        if self._shared is not None:
            return self._update_with_shared(self._shared, lr)
        if clips_itself(self._config):
            limit = self._config.clip if self._config.clip is not None else math.inf
            norm = torch.nn.utils.clip_grad_norm_(self._engine.module.parameters(), limit)
            self._engine.step()
            return float(norm)
        self._engine.step()
        # Waiting for the device here makes the time of the step that of its own work.
        return float(self._engine.get_global_grad_norm() or 0.0)

    def _update_with_shared(self, shared: SharedWeights, lr: float) -> float:
        """The same where some weights are not DeepSpeed's: one norm clips both kinds."""
        squared = shared.reduce_gradients()
        limit = self._config.clip
        if clips_itself(self._config):
            own = [one.grad for one in self._engine.module.parameters() if one.grad is not None]
            norm = math.hypot(float(torch.nn.utils.get_total_norm(own)), math.sqrt(squared))
            factor = clip_factor(norm, limit)
            for gradient in own:
                gradient.mul_(factor)
            self._engine.step()
        else:
            with norm_includes(self._engine.optimizer, squared):
                self._engine.step()
            norm = float(self._engine.get_global_grad_norm() or 0.0)
            factor = clip_factor(norm, limit)
        shared.step(lr, factor)
        return norm

    def _ask(self, micro_batches: Sequence[Batch], wishes: Sequence[bool]) -> _Asked:
        """Begin to sum counts, last step's loss terms and observations, and the wishes."""
        mine: dict[str, float] = {}
        for batch in micro_batches:
            for name, value in self._task.counts(batch).items():
                mine[name] = mine.get(name, 0.0) + value
        names = sorted(mine)
        done = self._unrecorded
        coming = self._ranks.begin_sum(
            [
                *(float(wish) for wish in wishes),
                *(mine[name] for name in names),
                *(_flat(done) if done else ()),
            ]
        )
        return _Asked(coming, len(wishes), names)

    def _hear(self, asked: _Asked) -> tuple[dict[str, float], list[bool]]:
        """The counts of this step over all ranks, and the wishes; records the step before."""
        summed = asked.coming.result()
        granted, rest = summed[: asked.wishes], summed[asked.wishes :]
        if self._unrecorded:
            self._record(self._unrecorded, rest[len(asked.counts) :])
        counts = dict(zip(asked.counts, rest, strict=False))
        return counts, [value > 0 for value in granted]

    def _record(self, done: _Done, summed: Sequence[float]) -> None:
        """Log a step and steer by it, and stop everything when its loss is not a number."""
        self._unrecorded = None
        terms = dict(zip(sorted(done.totals), summed, strict=False))
        loss = sum(terms.values())
        step = int(done.row["step"])
        if not math.isfinite(loss):
            values = ", ".join(f"{name}={value:g}" for name, value in terms.items())
            bad = self._name_bad_samples(done)
            raise NonFiniteLoss(f"the loss of step {step} is not finite ({values}): {bad}")
        if not all(map(math.isfinite, summed)):
            raise NonFiniteLoss(
                f"what was observed in step {step} is not finite, though its loss is {loss:g}; its "
                f"{self._name_batch(done)}"
            )
        # DeepSpeed says -1 for a norm that is not finite; in fp16 it skips such a step itself.
        norm = done.row["grad_norm"]
        if self._config.precision != "fp16" and not 0 <= norm < math.inf:
            raise NonFiniteLoss(
                f"the gradient of step {step} is not finite (norm {norm:g}, loss {loss:g}); its "
                f"{self._name_batch(done)}"
            )
        extra = {f"loss/{name}": value for name, value in terms.items()} if len(terms) > 1 else {}
        steered = self._steer(done, summed[len(terms) :])
        row = {"loss": loss, **extra, **done.row, **steered}
        self._history.add(row)
        self._telemetry.publish(row)

    def _steer(self, done: _Done, summed: Sequence[float]) -> Mapping[str, float]:
        """Let the task update its model's buffers; returns what it measured."""
        if not isinstance(self._task, Steered) or not done.observed:
            return {}
        names = sorted(done.observed)
        sizes = [done.observed[name].numel() for name in names]
        pieces = torch.split(torch.tensor(summed, dtype=torch.float64), sizes)
        observed = {
            name: piece.view(done.observed[name].shape).to(self._ranks.device)
            for name, piece in zip(names, pieces, strict=True)
        }
        if not done.is_applied:
            return {}
        steering = self._task.after_update(
            self._engine.module, observed, int(done.row["step"]), self._spec.steps
        )
        for text in steering.notes:
            self._note(text)
        return steering.metrics

    def _name_batch(self, done: _Done) -> str:
        """Where the batch of a step is, its hash by worker, and faults. Called by all ranks."""
        cuts = step_positions(done.plan, self._ranks.rank, done.position)
        mine = [position for positions in cuts for position in positions]
        hashes = self._ranks.gather(self._batch_hash(self._reader.stream.samples(mine)))
        last = done.position + done.plan.global_batch - 1
        return (
            f"batch is at positions {done.position} to {last} of the "
            f"training stream (hash by worker: {_some(hashes)}){self._name_faults(done)}"
        )

    def _name_bad_samples(self, done: _Done) -> str:
        """Which samples gave a loss that is not a number. Called by all ranks."""
        cuts = step_positions(done.plan, self._ranks.rank, done.position)
        bad = [
            position
            for loss, positions in zip(done.losses, cuts, strict=True)
            if not math.isfinite(float(loss))
            for position in positions
        ]
        mine = self._describe(self._reader.stream.samples(bad)) if bad else ""
        found = {rank: text for rank, text in enumerate(self._ranks.gather(mine)) if text}
        where = "; ".join(f"worker {rank} had {text}" for rank, text in found.items())
        return (
            f"in the micro batches where it happened, {where or 'no single one is to blame'}"
            f"{self._name_faults(done)}"
        )

    def _describe(self, samples: Sequence[Sample]) -> str:
        """The ids of the samples, and the hash of what they are."""
        ids = _some([str(sample["id"]) for sample in samples])
        return f"samples {ids} (batch hash {self._batch_hash(samples)})"

    def _batch_hash(self, samples: Sequence[Sample]) -> str:
        """Says later whether a batch is the same, whatever has become of the table."""
        return batch_hash(self._task.collate(samples))

    def _name_faults(self, done: _Done) -> str:
        """What the task makes of it. Called by all ranks."""
        if not isinstance(self._task, Steered) or not done.observed:
            return ""
        faults = self._ranks.gather(list(self._task.faults(done.observed)))
        return "".join(
            f"; on worker {rank} {', '.join(mine)}" for rank, mine in enumerate(faults) if mine
        )


def _flat(done: _Done) -> list[float]:
    """A step's loss terms and observations, each by name, as one list."""
    observed = [done.observed[name].flatten().tolist() for name in sorted(done.observed)]
    return [
        *(float(done.totals[name]) for name in sorted(done.totals)),
        *(value for values in observed for value in values),
    ]


def batch_hash(batch: Batch) -> str:
    """Short hash of the names and the values of a batch."""
    total = sha256()
    for name, values in sorted(batch.items()):
        total.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
        total.update(values.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:12]


def _some(words: Sequence[str]) -> str:
    """As many as a message has room for."""
    rest = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
