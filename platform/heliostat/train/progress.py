"""Show a training's progress: a bar on a terminal, one line every so often in a log."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from heliostat.config.settings import settings
from heliostat.train.monitor import Row

logger = logging.getLogger(__name__)

LINE_EVERY_S = 30.0
REFRESHES_PER_S = 2


class Progress:
    """Takes rows of metrics as they come; used as a context."""

    def __init__(self, name: str, steps: int) -> None:
        self._name = name
        self._steps = steps
        # A terminal holds one live display; trainings in other threads write lines.
        is_main = threading.current_thread() is threading.main_thread()
        self._bar = _Bar(name, steps) if settings().is_terminal and is_main else None
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
            seconds = sum(row["step_s"] for row in steps) / len(steps)
            left = (self._steps - step) * seconds
            logger.info(
                "%s: step %d of %d, %s, %.0f s left %s",
                self._name, step, self._steps, describe(steps), left, self._evaluation,
            )  # fmt: skip


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

    def __init__(self, name: str, steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("[dim]{task.fields[evaluation]}"),
            transient=True,
            refresh_per_second=REFRESHES_PER_S,
        )
        self._task = self._rich.add_task(name, total=steps, speed="starting workers", evaluation="")
        self._rich.start()

    def update(self, step: int, speed: str, evaluation: str) -> None:
        self._rich.update(self._task, completed=step, speed=speed, evaluation=evaluation)

    def close(self) -> None:
        self._rich.stop()
