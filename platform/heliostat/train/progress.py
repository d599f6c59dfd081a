"""Show a training's progress: a bar on a terminal, one line every so often in a log."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from heliostat.config.settings import settings
from heliostat.train.batch_schedule import samples_at, samples_in
from heliostat.train.config import FitConfig
from heliostat.train.monitor import Row

logger = logging.getLogger(__name__)

LINE_EVERY_S = 30.0
REFRESHES_PER_S = 2


class Progress:
    """Takes rows of metrics as they come; used as a context."""

    def __init__(self, name: str, config: FitConfig, steps: int) -> None:
        self._name = name
        self._config, self._steps = config, steps
        # A terminal holds one live display; trainings in other threads write lines.
        is_main = threading.current_thread() is threading.main_thread()
        self._bar = _Bar(name, config, steps) if settings().is_terminal and is_main else None
        self._last_line = time.monotonic()
        self._evaluation = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, rows: list[Row]) -> None:
        """Show the newest of the rows."""
        for row in rows:
            evaluated = [f"{key[5:]} {row[key]:.4g}" for key in row if key.startswith("eval/")]
            if evaluated:
                self._evaluation = "eval " + " ".join(evaluated[:4])
        steps = [row for row in rows if "loss" in row]
        if not steps:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(int(steps[-1]["step"]), describe(steps), self._evaluation)
        elif now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            step = int(steps[-1]["step"])
            logger.info(
                "%s: step %d of %d, %s, %.0f s left %s",
                self._name, step, self._steps,
                describe(steps), self._left_s(steps), self._evaluation,
            )  # fmt: skip

    def _left_s(self, rows: list[Row]) -> float:
        """Seconds to the end, at the speed of the given steps."""
        step = int(rows[-1]["step"])
        left = samples_in(self._config, self._steps) - samples_in(self._config, step)
        seen = sum(samples_at(self._config, int(row["step"])) for row in rows)
        return left / seen * sum(row["step_s"] for row in rows)


def describe(rows: list[Row]) -> str:
    """Loss and speed over the given steps, in a few words."""
    seconds = sum(row["step_s"] for row in rows)
    parts = [f"loss {rows[-1]['loss']:.4f}"]
    unit = next((key for key in rows[-1] if key.endswith("_per_s") and key != "flops_per_s"), None)
    if unit is not None:
        rate = sum(row[unit] * row["step_s"] for row in rows) / seconds
        parts.append(f"{rate:,.0f} {unit.removesuffix('_per_s')}/s")
    if "mfu" in rows[-1]:
        mfu = sum(row["mfu"] * row["step_s"] for row in rows) / seconds
        parts.append(f"MFU {mfu:.1%}")
    waited = sum(row["data_wait_s"] for row in rows) / seconds
    parts.append(f"data wait {waited:.0%}")
    return ", ".join(parts)


class _Bar:
    """A rich progress bar; gone from the screen when the training is over."""

    def __init__(self, name: str, config: FitConfig, steps: int) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[step]}/{task.fields[steps]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("[dim]{task.fields[evaluation]}"),
            transient=True,
            refresh_per_second=REFRESHES_PER_S,
        )
        self._config = config
        # It counts samples, since steps take longer as the batch grows.
        self._task = self._rich.add_task(
            name,
            total=samples_in(config, steps),
            step=0,
            steps=steps,
            speed="starting workers",
            evaluation="",
        )
        self._rich.start()

    def update(self, step: int, speed: str, evaluation: str) -> None:
        self._rich.update(
            self._task,
            completed=samples_in(self._config, step),
            step=step,
            speed=speed,
            evaluation=evaluation,
        )

    def close(self) -> None:
        self._rich.stop()
