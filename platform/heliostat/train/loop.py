"""The training loop of one rank: step, evaluate, save, stop, from a checkpoint to the end.

Everything here is called by all ranks at the same steps. What one rank alone knows, such as the
user's wish to stop, reaches the others through the sums of `step.py`.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial

from heliostat.checkpoint.manifest import FORMAT, Manifest, TrainState, tag_of
from heliostat.checkpoint.restore import random_state
from heliostat.checkpoint.writer import CheckpointWriter, WriterPlace
from heliostat.data.reader import StreamReader
from heliostat.errors import ConfigError
from heliostat.train.batch_schedule import plan_at
from heliostat.train.collectives import Ranks
from heliostat.train.evaluate import evaluate
from heliostat.train.history import History
from heliostat.train.monitor_link import MonitorLink
from heliostat.train.profiling import Profiler
from heliostat.train.spec import FitSpec, Outcome
from heliostat.train.start import Start
from heliostat.train.step import NonFiniteLoss, Stepper
from heliostat.train.telemetry import library_versions, peak_memory_bytes
from heliostat.train.weights import WeightsWriter

PREEMPTION_CHECK_S = 5.0
LAST_SAVE_WAITS_S = (1.0, 4.0, 16.0)
"""Before the last checkpoint is tried again: there is no later one to make up for it."""


class Loop:
    """The training of one rank; lives as long as the worker group."""

    def __init__(self, spec: FitSpec, ranks: Ranks, begun: Start, attempt: int) -> None:
        self.spec, self.task, self.config, self.ranks = spec, spec.task, spec.config, ranks
        self.engine, self.stream, self.attempt = begun.engine, begun.stream, attempt
        self.shared = begun.shared
        self.state: TrainState = begun.state
        self.reader = StreamReader(
            begun.stream,
            plan_at=partial(plan_at, self.config, world_size=ranks.world_size),
            rank=ranks.rank,
            collate=self.task.collate,
            step=begun.state.step,
            position=begun.state.position,
        )
        self.evaluation_stream = self.task.eval_data()
        self.link = MonitorLink(spec.monitor) if ranks.rank == 0 else None
        for text in begun.notes:
            self._note(text)
        self.history = History(spec.folder / "metrics", self.state.step, self.link)
        self.weights = WeightsWriter(spec.folder / "weights", ranks.rank, begun.shared)
        self.writer = CheckpointWriter(
            WriterPlace(
                checkpoints=spec.checkpoints,
                attempt=begun.attempt_name,
                rank=ranks.rank,
                world_size=ranks.world_size,
                keep=self.config.checkpoint.keep,
            ),
            before_commit=self._write_what_belongs_to_it,
            last_committed=begun.committed_step,
        )
        self.stepper = Stepper(
            spec, ranks, self.engine, self.shared, self.reader, self.history,
            before_update=self.writer.wait_for_copies, note=self._note,
        )  # fmt: skip
        self.profiler = Profiler(spec.folder / "profile", self.config.profile and ranks.rank == 0)
        self._preemption_checked_at = time.monotonic()
        self._has_saved_for_preemption = False
        self._saved_step = begun.committed_step or -1

    def run(self) -> Outcome:
        """Train to the end, or until asked to stop."""
        try:
            status = self._train()
            saved = self._save_last()
        except NonFiniteLoss as error:
            self._settle()
            return self._outcome("failed", str(error))
        if status == "stopped":
            return self._outcome(status)
        if not saved:
            self._note("the last checkpoint could not be written; the weights are saved alone")
        names = ["last"]
        if self.state.best_step is None:
            names.append("best")
        self.weights.save(self.engine, names, self._about())
        self._write_what_belongs_to_it()
        return self._outcome(status)

    def close(self) -> None:
        """Stop the threads."""
        self.reader.close()
        if self.link is not None:
            self.link.close()

    def _train(self) -> str:
        """Loop over optimiser steps; returns why it ended."""
        with self.profiler:
            while self.state.step < self.spec.steps:
                # Looked at before the step: a training that was resumed may have to stop at once.
                if self._is_out_of_patience():
                    return "early"
                wishes = [self._wants_stop(), self._wants_preemption_check()]
                self.state, (must_stop, check_preemption) = self.stepper.step(self.state, wishes)
                # Before stopping, since a training that goes on does not come back to this step.
                if self._is_due(self.spec.evaluate_every):
                    self._evaluate()
                    if self.spec.is_judged:
                        must_stop = self._is_judged_to_stop() or must_stop
                if must_stop and self.state.step < self.spec.steps:
                    return "stopped"
                if self._is_due(self.spec.checkpoint_every):
                    self._save()
                if check_preemption:
                    self._check_preemption()
                self.profiler.step()
        return "finished"

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.spec.steps

    # Stopping.

    def _wants_stop(self) -> bool:
        return self.link is not None and self.link.is_stopping

    def _is_out_of_patience(self) -> bool:
        patience = self.config.evaluation.patience
        return patience is not None and self.state.evaluations_since_best >= patience

    def _wants_preemption_check(self) -> bool:
        if self.ranks.rank != 0 or not self.spec.may_lose_nodes:
            return False
        now = time.monotonic()
        if now - self._preemption_checked_at < PREEMPTION_CHECK_S:
            return False
        self._preemption_checked_at = now
        return True

    def _check_preemption(self) -> None:
        """Save at once when a node is being taken away (a barrier), and go on training.

        To return would end the training: Ray Train starts the workers elsewhere by itself.
        """
        import ray.train

        if ray.train.get_preemption_info() is None:
            self._has_saved_for_preemption = False
        elif not self._has_saved_for_preemption:
            self._has_saved_for_preemption = True
            self._note(f"a node is being taken away: saving at step {self.state.step}")
            self._save()
            self._settle()

    def _is_judged_to_stop(self) -> bool:
        """The verdict on the evaluation just done: rank 0 asks, all ranks hear it."""
        if self.spec.saves_to_be_judged:
            self._save()
            self._settle()
        stops = self.link is not None and self.link.ask(self.state.step)
        return bool(self.ranks.broadcast(stops))

    # Evaluating and saving.

    def _evaluate(self) -> None:
        """Evaluate, and keep the best weights."""
        self.stepper.record_last()
        metrics = evaluate(
            self.task,
            self.engine,
            self.evaluation_stream,
            batch_size=self.config.evaluation.batch or self.config.micro_batch,
            ranks=self.ranks,
        )
        step = self.state.step
        self.history.add(
            {"step": step, **{f"eval/{name}": value for name, value in metrics.items()}}
        )
        is_best = self._is_best(metrics)
        self.state = replace(
            self.state,
            metrics=metrics,
            best_value=self._judged(metrics) if is_best else self.state.best_value,
            best_step=step if is_best else self.state.best_step,
            evaluations_since_best=0 if is_best else self.state.evaluations_since_best + 1,
        )
        names = ["best"] if is_best else []
        if self.config.checkpoint.weights_at_evaluations:
            names.append(tag_of(step))
        if names:
            self.weights.save(self.engine, names, self._about())

    def _judged(self, metrics: dict[str, float]) -> float:
        """The value of the metric that decides what is best."""
        name = self.config.evaluation.metric
        if name not in metrics:
            raise ConfigError(
                f"evaluation.metric is {name}, but task {self.task.name} measures "
                f"{', '.join(sorted(metrics))}"
            )
        return metrics[name]

    def _is_best(self, metrics: dict[str, float]) -> bool:
        value, best = self._judged(metrics), self.state.best_value
        if math.isnan(value):
            return False
        sign = 1 if self.config.evaluation.mode == "min" else -1
        return best is None or sign * value < sign * best

    def _save(self) -> None:
        """Start to write a checkpoint of this step, once the one before is settled."""
        if self._saved_step == self.state.step:
            return
        self.stepper.record_last()
        self._settle()
        self.history.cut(self.state.step)
        manifest = Manifest(
            format=FORMAT,
            tag=tag_of(self.state.step),
            state=self.state,
            world_size=self.ranks.world_size,
            zero_stage=self.config.zero.stage,
            precision=self.config.precision,
            config_digest=self.spec.digest,
            stream_fingerprint=self.stream.fingerprint,
            versions=library_versions(),
            files=[],
        )
        own_files = self.shared.files() if self.shared is not None else {}
        self.writer.save(self.engine, manifest, random_state(), own_files)
        self._saved_step = self.state.step

    def _save_last(self) -> bool:
        """Save, and wait until it is committed; returns whether it is."""
        for wait_s in (*LAST_SAVE_WAITS_S, 0.0):
            self._save()
            if self._settle():
                return True
            time.sleep(wait_s)
        return False

    def _settle(self) -> bool:
        """Learn whether the checkpoint in flight was committed, or none was in flight."""
        failure = self.writer.settle(self.ranks.all_true)
        if failure is None:
            return True
        good = self.writer.last_committed
        self._saved_step = good if good is not None else -1
        self._note(
            f"a checkpoint could not be written ({failure}); training goes on, and the last good "
            f"checkpoint is {tag_of(good) if good is not None else 'none yet'}"
        )
        return False

    def _write_what_belongs_to_it(self) -> None:
        """Bring to storage what a training that goes on from a checkpoint relies on."""
        self.history.write()
        self.weights.finish()

    def _about(self) -> dict[str, object]:
        return {
            "step": self.state.step,
            "counts": dict(self.state.counts),
            "metrics": dict(self.state.metrics),
        }

    def _note(self, text: str) -> None:
        if self.link is not None:
            self.link.note(text)

    def _outcome(self, status: str, message: str = "") -> Outcome:
        memory = max(self.ranks.gather(peak_memory_bytes(self.ranks.device)))
        return Outcome(
            status=status,
            step=self.state.step,
            saved_step=self.writer.last_committed,
            metrics=dict(self.state.metrics),
            best_step=self.state.best_step,
            counts=dict(self.state.counts),
            trained_s=self.state.trained_s,
            stalled_s=self.writer.stalled_s,
            attempts=self.attempt,
            peak_memory_bytes=memory,
            message=message,
        )
