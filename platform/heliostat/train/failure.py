"""One screen that says why a training failed and how to go on.

When one worker dies, its peers fail too: their collectives are reset or aborted. Those are
collateral; the root is the worker whose error is not of that kind, or the one that was killed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heliostat.train.monitor import WorkerFailure

COLLATERAL = re.compile(
    r"connection (reset|closed|refused)|broken pipe|socket timeout|aborted|nccl (error|communicator)"
    r"|gloo.*(timeout|timed out|error)|peer|all_?reduce.*fail",
    re.IGNORECASE,
)
DEATH = re.compile(r"ActorDied|WorkerCrashed|actor.*(died|dead)|worker.*died|SYSTEM_ERROR", re.I)
OUT_OF_MEMORY = re.compile(r"OutOfMemory|out of memory|oom", re.I)
TRACEBACK_LINES = 14


@dataclass(frozen=True)
class Explanation:
    """What happened, for one screen."""

    sentence: str
    traceback: str
    collateral: tuple[int, ...]


def explain(
    recorded: Sequence[WorkerFailure],
    reported: Mapping[int, BaseException],
    error: BaseException,
) -> Explanation:
    """Find the root cause.

    Args:
        recorded: exceptions that workers managed to tell the monitor, of the last attempt.
        reported: what Ray Train says of each failed rank.
        error: what ended the training, for when no worker is to blame.
    """
    by_rank = {failure.rank: failure for failure in recorded}
    roots = [f for f in recorded if not COLLATERAL.search(f"{f.kind}: {f.message}")]
    dead = [
        rank
        for rank, error in sorted(reported.items())
        if rank not in by_rank and DEATH.search(f"{type(error).__name__} {error}")
    ]
    everyone = sorted({*by_rank, *reported})
    if roots:
        root = min(roots, key=lambda failure: failure.at)
        sentence = (
            f"worker {root.rank} on node {root.node} failed after step {root.step}: "
            f"{root.kind}: {root.message}"
        )
        return Explanation(sentence, shorten(root.traceback), _without(everyone, root.rank))
    if dead:
        text = str(reported[dead[0]])
        why = "ran out of memory" if OUT_OF_MEMORY.search(text) else "was killed or crashed"
        sentence = f"worker {dead[0]} {why} (its process ended without a Python exception)"
        return Explanation(sentence, "", _without(everyone, dead[0]))
    if recorded:
        first = min(recorded, key=lambda failure: failure.at)
        sentence = (
            f"worker {first.rank} on node {first.node} lost its peers after step {first.step}: "
            f"{first.kind}: {first.message}"
        )
        return Explanation(sentence, shorten(first.traceback), _without(everyone, first.rank))
    texts = "; ".join(f"worker {rank}: {_first_line(e)}" for rank, e in sorted(reported.items()))
    return Explanation(texts or f"{type(error).__name__}: {_first_line(error)}", "", ())


def shorten(traceback: str) -> str:
    """The last lines of a traceback, library frames cut from its middle."""
    lines = traceback.rstrip().splitlines()
    if len(lines) <= TRACEBACK_LINES:
        return "\n".join(lines)
    return "\n".join([lines[0], "  ...", *lines[-(TRACEBACK_LINES - 2) :]])


def screen(
    explanation: Explanation, *, training: str, last_step: int, checkpoint: str | None
) -> str:
    """The text that a user sees; the command line adds the command that goes on."""
    lines = [f"training {training} failed: {explanation.sentence}"]
    if explanation.collateral:
        ranks = ", ".join(map(str, explanation.collateral))
        lines.append(f"Workers that failed only because of it: {ranks}.")
    if explanation.traceback:
        lines += ["", explanation.traceback, ""]
    lines.append(f"Last step: {last_step}. Last good checkpoint: {checkpoint or 'none yet'}.")
    return "\n".join(lines)


def _without(ranks: Sequence[int], root: int) -> tuple[int, ...]:
    return tuple(rank for rank in ranks if rank != root)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
