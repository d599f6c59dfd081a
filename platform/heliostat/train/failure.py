"""One screen that says why a training failed and how to go on.

When one worker dies, its peers fail too: their collectives are reset or aborted. Those are
collateral; the root is the worker whose error is not of that kind, or the one that was killed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heliostat.train.monitor import WorkerFailure

LOST_PEER_KINDS = ("RuntimeError", "Dist", "Connection", "BrokenPipe")
"""Beginnings of the names of the exceptions that gloo, NCCL and torch's store raise."""
LOST_PEER = re.compile(
    r"connection (was )?(reset|closed|refused)|broken pipe|socket timeout|timed out waiting"
    r"|nccl (error|communicator)|communicator was aborted|remote process exited|gloo",
    re.IGNORECASE,
)
DEATH = re.compile(r"ActorDied|WorkerCrashed|actor.*(died|dead)|worker.*died|SYSTEM_ERROR", re.I)
OUT_OF_MEMORY = re.compile(r"OutOfMemory|out of memory|\boom\b|memory pressure", re.I)
TRACEBACK_LINES = 14


@dataclass(frozen=True)
class Explanation:
    """What happened, for one screen."""

    sentence: str
    traceback: str = ""
    collateral: tuple[int, ...] = ()
    """Ranks that failed only because another did."""
    step: int = 0
    """The last step that the failed worker had done."""


def is_collateral(error: BaseException) -> bool:
    """Whether an exception, or what it was raised from, only says that another worker is gone."""
    kind = type(error).__name__
    if kind.startswith(LOST_PEER_KINDS) and LOST_PEER.search(str(error)):
        return True
    return error.__cause__ is not None and is_collateral(error.__cause__)


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
    everyone = sorted({*by_rank, *reported})
    roots = [failure for failure in recorded if not failure.is_collateral]
    if roots:
        root = min(roots, key=lambda failure: failure.at)
        return _of_failure(root, "failed", everyone)
    dead = [
        rank
        for rank, problem in sorted(reported.items())
        if rank not in by_rank and DEATH.search(f"{type(problem).__name__} {problem}")
    ]
    if dead:
        step = max((failure.step for failure in recorded), default=0)
        text = str(reported[dead[0]])
        why = "ran out of memory" if OUT_OF_MEMORY.search(text) else "was killed or crashed"
        sentence = (
            f"worker {dead[0]}{_node_of(text)} {why} (its process ended without a Python exception)"
        )
        return Explanation(sentence, "", _without(everyone, dead[0]), step)
    if recorded:
        first = min(recorded, key=lambda failure: failure.at)
        return _of_failure(first, "lost its peers", everyone)
    texts = "; ".join(f"worker {rank}: {_first_line(e)}" for rank, e in sorted(reported.items()))
    return Explanation(texts or f"{type(error).__name__}: {_first_line(error)}")


def shorten(traceback: str) -> str:
    """The first and the last lines of a traceback; its middle is mostly library frames."""
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


def _of_failure(failure: WorkerFailure, verb: str, everyone: Sequence[int]) -> Explanation:
    sentence = (
        f"worker {failure.rank} on node {failure.node} {verb} after step {failure.step}: "
        f"{failure.kind}: {failure.message}"
    )
    traceback = shorten(failure.traceback)
    return Explanation(sentence, traceback, _without(everyone, failure.rank), failure.step)


def _node_of(text: str) -> str:
    """Ray names the address of a dead actor's node in its message."""
    found = re.search(r"ip: (\S+)", text) or re.search(r"node (?:ip|IP)\S*:? (\d\S+)", text)
    return f" on node {found[1].rstrip('.,')}" if found else ""


def _without(ranks: Sequence[int], root: int) -> tuple[int, ...]:
    return tuple(rank for rank in ranks if rank != root)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
