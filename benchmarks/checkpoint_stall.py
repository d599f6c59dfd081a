"""How long training stands still for a checkpoint: Heliostat against DeepSpeed's blocking save.

Two trainings of the same model (12 million weights, 147 MB of state) take turns (see `turns`) and
save every so many steps: Heliostat with `fit`, a bare DeepSpeed loop with `engine.save_checkpoint`.
A sample is the time from the end of the step before a save to the end of the step after it, less
the median time of a step of that training: all that a save costs the loop, whatever its cause. The
blocking save neither hashes its files nor forces them to the disk; ours does both, in a thread.

Also stated: how much slower the steps are that run while the thread writes.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from benchmarks import workload
from benchmarks.result import at_most, options, report, stated
from benchmarks.turns import Slice, contender, take_turns, warmed_up

LIMIT = 0.1
AFTER = 5
"""Steps after a save in which our thread still writes."""


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=6)
    parser.add_argument("--every", type=int, default=30, help="steps between checkpoints")
    given = parser.parse_args()
    workload.transcripts()
    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as scratch:
        folder = Path(scratch)
        contenders = [
            contender(kind, 1, "wide", folder, save_every=given.every)
            for kind in ("heliostat", "bare")
        ]
        with warmed_up(contenders, folder):
            taken = take_turns(contenders, given.pairs, given.every + 2)
    stalls = {
        name: [stall for one in turns for stall in stalls_of(one, turns, given.every)]
        for name, turns in taken.items()
    }
    pairs = min(map(len, stalls.values()))
    measures = [
        at_most(
            "standing still for a checkpoint: Heliostat / blocking save",
            stalls["heliostat"][:pairs],
            stalls["bare"][:pairs],
            LIMIT,
        ),
        stated(
            f"extra time of the {AFTER} steps after a save together",
            [extra for one in taken["heliostat"] for extra in extra_of(one, taken, given.every)],
            "s",
        ),
    ]
    details = {"turns": {name: [asdict(one) for one in turns] for name, turns in taken.items()}}
    report("checkpoint_stall", measures, details, given.out)


def stalls_of(turn: Slice, turns: Sequence[Slice], every: int) -> list[float]:
    """Seconds beyond a usual step between the steps around each save of a turn."""
    usual = usual_step(turns, every)
    return [step - usual for number, step in steps_of(turn) if (number - 1) % every == 0]


def extra_of(turn: Slice, taken: dict[str, list[Slice]], every: int) -> list[float]:
    """Seconds that the steps after each save took beyond as many usual ones."""
    usual = usual_step(taken["heliostat"], every)
    steps = dict(steps_of(turn))
    saves = [number for number in steps if (number - 1) % every == 0]
    whole = [at for at in saves if all(at + later in steps for later in range(1, AFTER + 1))]
    return [sum(steps[at + later] for later in range(1, AFTER + 1)) - AFTER * usual for at in whole]


def usual_step(turns: Sequence[Slice], every: int) -> float:
    """Median time of the steps that lie in the second half between two saves."""
    steps = [numbered for turn in turns for numbered in steps_of(turn)]
    return statistics.median(step for number, step in steps if (number - 1) % every > every / 2)


def steps_of(turn: Slice) -> list[tuple[int, float]]:
    """Number and wall-clock time of every whole step of a turn."""
    times = [end - start for start, end in pairwise(turn.ends)]
    return list(enumerate(times, start=turn.first_step + 1))


if __name__ == "__main__":
    main()
