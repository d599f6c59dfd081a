"""What runs on every worker: restore, loop over optimiser steps, evaluate, save.

One small vector is summed over the ranks before each step. It carries the counts that normalise the
loss of this step, the loss totals of the step before (so that recording the exact global loss costs
no collective of its own), and the wish to stop. All ranks therefore decide alike, at the same step.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from heliostat.checkpoint.manifest import Manifest, TrainState, tag_of
from heliostat.checkpoint.restore import random_state
from heliostat.checkpoint.writer import CheckpointWriter, WriterPlace
from heliostat.data.reader import StreamReader, batch_plan
from heliostat.train.collectives import Ranks
from heliostat.train.engine import clips_itself, set_learning_rate, to_device
from heliostat.train.evaluate import evaluate
from heliostat.train.history import History
from heliostat.train.monitor import MonitorLink, WorkerFailure
from heliostat.train.profiling import Profiler
from heliostat.train.schedule import lr_factor
from heliostat.train.spec import FitSpec, Outcome
from heliostat.train.start import Start, current_ranks, start
from heliostat.train.task import Batch
from heliostat.train.telemetry import Telemetry, peak_memory_bytes
from heliostat.train.weights import WeightsWriter

logger = logging.getLogger(__name__)

PREEMPTION_CHECK_S = 5.0


def train_worker(loop_config: dict[str, FitSpec]) -> dict[str, Any]:
    """The train function that Ray Train runs on every worker; returns an `Outcome` as a dict."""
    import ray

    spec = loop_config["spec"]
    ranks = current_ranks(spec)
    attempt, habit = ranks.broadcast(
        ray.get(spec.monitor.begin_attempt.remote()) if ranks.rank == 0 else None
    )
    if habit is not None:
        message = (
            f"worker {habit.rank} failed twice in the same way at step {habit.step}: "
            f"{habit.kind}: {habit.message}"
        )
        return asdict(Outcome("failed", habit.step, attempts=attempt, message=message))
    loop: Loop | None = None
    try:
        begun = start(spec, ranks, attempt)
        loop = Loop(spec, ranks, begun, attempt)
        return asdict(loop.run())
    except Exception as error:
        failure = WorkerFailure(
            attempt=attempt,
            rank=ranks.rank,
            node=socket.gethostname(),
            step=loop.step if loop is not None else 0,
            kind=type(error).__name__,
            message=str(error),
            traceback=traceback.format_exc(),
        )
        ray.get(spec.monitor.record_failure.remote(failure), timeout=30)
        raise
    finally:
        if loop is not None:
            loop.close()


class NonFiniteLoss(Exception):
    """The loss was not a number; going on or trying again would not help."""


class Loop:
    """The training loop of one rank, from a checkpoint (or the beginning) to the end."""

    def __init__(self, spec: FitSpec, ranks: Ranks, begun: Start, attempt: int) -> None:
        self.spec, self.task, self.config, self.ranks = spec, spec.task, spec.config, ranks
        self.engine = begun.engine
        self.attempt = attempt
        self.plan = batch_plan(self.config.batch, self.config.micro_batch, ranks.world_size)
        state = begun.state
        self.step = state.step
        self.position = state.position
        self.counts = dict(state.counts)
        self.best_value, self.best_step = state.best_value, state.best_step
        self.since_best = state.evaluations_since_best
        self.trained_s = state.trained_s
        self.metrics: dict[str, float] = {}
        self.reader = StreamReader(
            begun.stream,
            global_batch=self.config.batch,
            micro_batch=self.plan.micro_batch,
            rank=ranks.rank,
            world_size=ranks.world_size,
            position=state.position,
            collate=self.task.collate,
        )
        self.stream_fingerprint = begun.stream.fingerprint
        self.evaluation_stream = self.task.eval_data()
        self.link = MonitorLink(spec.monitor) if ranks.rank == 0 else None
        self.history = History(spec.folder / "metrics", self.step, self.link)
        self.telemetry = Telemetry(self.task.name, ranks, self.config.precision)
        self.writer = CheckpointWriter(
            WriterPlace(spec.checkpoints, begun.attempt_name, ranks.rank, ranks.world_size),
            keep=self.config.checkpoint.keep,
        )
        self.weights = WeightsWriter(spec.folder / "weights", ranks.rank)
        self.profiler = Profiler(spec.folder / "profile", self.config.profile and ranks.rank == 0)
        self._unrecorded: _StepTotals | None = None
        self._preemption_checked_at = time.monotonic()
        self._has_saved_for_preemption = False
        self._saved_step = state.step if state.step else -1

    def run(self) -> Outcome:
        """Train to the end, or until asked to stop."""
        status = "finished"
        try:
            with self.profiler:
                while self.step < self.spec.steps:
                    if self._train_step():
                        status = "stopped"
                        break
                    if self._is_due(self.spec.evaluate_every) and self._evaluate():
                        status = "early"
                        break
                    if self._is_due(self.spec.checkpoint_every):
                        self._save()
                    self.profiler.step()
        except NonFiniteLoss as error:
            return self._outcome("failed", str(error))
        self._save()
        self._settle()
        if status != "stopped":
            self.weights.save(self.engine, ["last"], self._about())
            if self.best_step is None or self.best_step == self.step:
                self.weights.save(self.engine, ["best"], self._about())
        self.weights.finish()
        self.history.flush(self.step)
        return self._outcome(status)

    def close(self) -> None:
        """Stop the threads."""
        self.reader.close()
        if self.link is not None:
            self.link.close()

    # One optimiser step.

    def _train_step(self) -> bool:
        """One optimiser step; returns whether all ranks must stop before the next."""
        began = time.perf_counter()
        micro_batches = self.reader.next_step()
        waited_s = time.perf_counter() - began
        global_counts, must_stop = self._agree_on_step(micro_batches)
        lr = self.config.optimizer.lr * lr_factor(
            self.config.schedule, self.step + 1, self.spec.steps
        )
        set_learning_rate(self.engine, lr)
        totals: dict[str, torch.Tensor] = {}
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            self._accumulate(batch, global_counts, totals, is_last)
        grad_norm = self.engine.get_global_grad_norm() if self._norm is None else self._norm
        seconds = time.perf_counter() - began
        self._unrecorded = _StepTotals(
            totals=totals,
            counts=global_counts,
            row={
                "step": self.step + 1,
                "lr": lr,
                "grad_norm": float(grad_norm or 0.0),
                "step_s": seconds,
                "data_wait_s": waited_s,
                **self.telemetry.speed(global_counts, micro_batches, self.task, seconds),
            },
            position=self.position,
        )
        self.step += 1
        self.position += self.config.batch
        self.trained_s += seconds
        for name, value in global_counts.items():
            self.counts[name] = self.counts.get(name, 0.0) + value
        return must_stop

    def _accumulate(
        self,
        batch: Batch,
        global_counts: Mapping[str, float],
        totals: dict[str, torch.Tensor],
        is_last: bool,
    ) -> None:
        """Forward and backward of one micro batch; the last one also updates the weights."""
        batch = to_device(batch, self.ranks.device)
        terms = self.task.loss(self.engine, batch)
        parts = [term.total / max(global_counts[term.per], 1.0) for term in terms.values()]
        # DeepSpeed takes the mean over ranks and micro batches; we want the sum.
        loss = torch.stack([part.float() for part in parts]).sum()
        self.engine.backward(loss * (self.ranks.world_size * self.plan.accumulation))
        self._norm: float | None = None
        if is_last and clips_itself(self.config):
            limit = self.config.clip if self.config.clip is not None else math.inf
            self._norm = float(
                torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), limit)
            )
        self.engine.step()
        for (name, term), part in zip(terms.items(), parts, strict=True):
            value = part.detach()
            totals[name] = totals[name] + value if name in totals else value

    def _agree_on_step(self, micro_batches: Sequence[Batch]) -> tuple[dict[str, float], bool]:
        """Sum counts, last step's loss terms and the wish to stop over the ranks."""
        counts: dict[str, float] = {}
        for batch in micro_batches:
            for name, value in self.task.counts(batch).items():
                counts[name] = counts.get(name, 0.0) + value
        wishes = [float(self._wants_stop()), float(self._wants_preemption_check())]
        previous = self._unrecorded
        terms = sorted(previous.totals) if previous else []
        mine = [float(previous.totals[name]) for name in terms] if previous else []
        names = sorted(counts)
        summed = self.ranks.sum([*wishes, *(counts[name] for name in names), *mine])
        if previous:
            self._record(previous, dict(zip(terms, summed[2 + len(names) :], strict=True)))
        if summed[1] > 0:
            self._check_preemption()
        return dict(zip(names, summed[2 : 2 + len(names)], strict=True)), summed[0] > 0

    def _flush_step(self) -> None:
        """Record the newest step now, with a collective of its own."""
        previous = self._unrecorded
        if previous is None:
            return
        terms = sorted(previous.totals)
        summed = self.ranks.sum([float(previous.totals[name]) for name in terms])
        self._record(previous, dict(zip(terms, summed, strict=True)))

    def _record(self, step: _StepTotals, terms: Mapping[str, float]) -> None:
        """Log a step, and stop everything when its loss is not a number."""
        self._unrecorded = None
        loss = sum(terms.values())
        if not math.isfinite(loss):
            raise NonFiniteLoss(self._name_bad_batch(step, terms))
        extra = {f"loss/{name}": value for name, value in terms.items()} if len(terms) > 1 else {}
        row = {"loss": loss, **extra, **step.row}
        self.history.add(row)
        self.telemetry.publish(row)

    def _name_bad_batch(self, step: _StepTotals, terms: Mapping[str, float]) -> str:
        bad = {name: float(total) for name, total in step.totals.items()}
        ranks = self.ranks.gather(not all(math.isfinite(value) for value in bad.values()))
        culprits = [rank for rank, is_bad in enumerate(ranks) if is_bad]
        last = step.position + self.config.batch - 1
        return (
            f"the loss of step {int(step.row['step'])} is not finite "
            f"({', '.join(f'{name}={value}' for name, value in terms.items())}) on worker "
            f"{', '.join(map(str, culprits))}; its batch is samples {step.position} to {last} of "
            f"the training stream, the last good checkpoint is from step "
            f"{max(self._saved_step, 0)}"
        )

    # Stopping.

    def _wants_stop(self) -> bool:
        return self.link is not None and self.link.is_stopping

    def _wants_preemption_check(self) -> bool:
        if self.ranks.rank != 0:
            return False
        now = time.monotonic()
        if now - self._preemption_checked_at < PREEMPTION_CHECK_S:
            return False
        self._preemption_checked_at = now
        return True

    def _check_preemption(self) -> None:
        """Save at once when a node is being taken away. Called by all ranks (a barrier)."""
        import ray.train

        info = ray.train.get_preemption_info()
        if info is None:
            self._has_saved_for_preemption = False
        elif not self._has_saved_for_preemption:
            self._has_saved_for_preemption = True
            self._note(f"a node is being taken away: saving at step {self.step}")
            self._save()
            self._settle()

    # Evaluating and saving.

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.spec.steps

    def _evaluate(self) -> bool:
        """Evaluate, keep the best weights; returns whether to stop early."""
        import ray.train

        self._flush_step()
        self.metrics = evaluate(
            self.task,
            self.engine,
            self.evaluation_stream,
            batch_size=self.config.evaluation.batch or self.plan.micro_batch,
            ranks=self.ranks,
        )
        self.history.add(
            {"step": self.step, **{f"eval/{name}": value for name, value in self.metrics.items()}}
        )
        names = []
        if self._is_best():
            names.append("best")
        if self.config.checkpoint.weights_at_evaluations:
            names.append(tag_of(self.step))
        if names:
            self.weights.save(self.engine, names, self._about())
        ray.train.report({"step": self.step, **self.metrics})
        patience = self.config.evaluation.patience
        return patience is not None and self.since_best >= patience

    def _is_best(self) -> bool:
        settings = self.config.evaluation
        if settings.metric not in self.metrics:
            raise KeyError(
                f"evaluation.metric is {settings.metric!r}, but task {self.task.name} measures "
                f"{', '.join(sorted(self.metrics))}"
            )
        value = self.metrics[settings.metric]
        sign = 1 if settings.mode == "min" else -1
        if self.best_value is None or sign * value < sign * self.best_value:
            self.best_value, self.best_step, self.since_best = value, self.step, 0
            return True
        self.since_best += 1
        return False

    def _save(self) -> None:
        """Start to write a checkpoint of this step. Called by all ranks."""
        if self._saved_step == self.step:
            return
        self._flush_step()
        self._settle()
        self.history.flush(self.step)
        manifest = Manifest(
            format=1,
            tag=tag_of(self.step),
            state=TrainState(
                step=self.step,
                position=self.position,
                counts=self.counts,
                best_value=self.best_value,
                best_step=self.best_step,
                evaluations_since_best=self.since_best,
                trained_s=self.trained_s,
            ),
            world_size=self.ranks.world_size,
            zero_stage=self.config.zero.stage,
            precision=self.config.precision,
            config_digest=self.spec.digest,
            stream_fingerprint=self.stream_fingerprint,
            versions=self.telemetry.versions,
            files=[],
        )
        self.writer.save(self.engine, manifest, random_state())
        self._saved_step = self.step

    def _settle(self) -> None:
        """Learn how the checkpoint in flight ended. Called by all ranks."""
        failure = self.writer.settle(self.ranks.all_true)
        if failure is not None:
            self._saved_step = self.writer.last_committed or -1
            self._note(f"a checkpoint could not be written ({failure}); training goes on")

    def _about(self) -> dict[str, object]:
        return {"step": self.step, "counts": self.counts, "metrics": self.metrics}

    def _note(self, text: str) -> None:
        if self.link is not None:
            self.link.note(text)

    def _outcome(self, status: str, message: str = "") -> Outcome:
        memory = max(self.ranks.gather(peak_memory_bytes(self.ranks.device)))
        return Outcome(
            status=status,
            step=self.step,
            metrics=self.metrics,
            best_step=self.best_step,
            counts=self.counts,
            trained_s=self.trained_s,
            stalled_s=self.writer.stalled_s,
            attempts=self.attempt,
            peak_memory_bytes=memory,
            message=message,
        )


class _StepTotals:
    """A step that is done but whose global loss is not known yet."""

    def __init__(
        self,
        totals: dict[str, torch.Tensor],
        counts: Mapping[str, float],
        row: dict[str, float],
        position: int,
    ) -> None:
        self.totals, self.counts, self.row, self.position = totals, counts, row, position
