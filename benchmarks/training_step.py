"""An optimiser step: Heliostat against a bare DeepSpeed loop and against Hugging Face's Trainer.

All three train the same model on the same rows with the same batch, optimiser, precision (fp32) and
one thread a worker, with 1 worker and with 2. They are started together and take turns of a few
steps (see `turns`), short ones, since the speed of a machine that others share changes within
seconds; a sample is the mean time of a step in one turn, a ratio that of two turns of one round. A
process keeps for its life the luck that it had with its place in memory, a few percent either way,
so all are started anew several times. Heliostat reads its table while it trains and reports every
step to its driver, with the tracker on; the bare loop has its rows in memory and prints the loss of
every tenth step.

The last turns give Heliostat's tree as a whole: driver, Ray's processes and workers.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks import workload
from benchmarks.result import Measure, at_most, options, report, stated
from benchmarks.turns import Slice, contender, take_turns, warmed_up

LIMIT = 1.02
KINDS = ("heliostat", "bare", "trainer")


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=64)
    parser.add_argument("--starts", type=int, default=4, help="times that processes are started")
    parser.add_argument("--steps", type=int, default=6, help="steps of a turn")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", choices=sorted(workload.SIZES), default="laptop")
    given = parser.parse_args()
    workload.transcripts()
    measures: list[Measure] = []
    details: dict[str, object] = {"size": asdict(workload.SIZES[given.size])}
    for workers in given.workers:
        taken: dict[str, list[Slice]] = {kind: [] for kind in KINDS}
        for _ in range(given.starts):
            rounds = given.pairs // given.starts
            for kind, slices in measure(workers, given.size, rounds, given.steps).items():
                taken[kind] += slices
        measures += compare(workers, taken)
        details[f"turns, {workers} worker(s)"] = {
            name: [asdict(one) for one in slices] for name, slices in taken.items()
        }
    report("training_step", measures, details, given.out)


def measure(workers: int, size: str, rounds: int, turn: int) -> dict[str, list[Slice]]:
    """The turns of the three."""
    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as scratch:
        folder = Path(scratch)
        contenders = [contender(kind, workers, size, folder) for kind in KINDS]
        with warmed_up(contenders, folder):
            return take_turns(contenders, rounds, turn)


def compare(workers: int, taken: dict[str, list[Slice]]) -> list[Measure]:
    """The measures of one number of workers."""

    def times(name: str) -> list[float]:
        return [one.step_s for one in taken[name]]

    def cpu(name: str) -> list[float]:
        return [one.step_cpu_s for one in taken[name]]

    on = f"{workers} worker" + ("s" if workers > 1 else "")
    ours = times("heliostat")
    step = f"training step, {on}: Heliostat"
    return [
        at_most(f"{step} / bare loop", ours, times("bare"), LIMIT),
        at_most(f"{step} / Trainer", ours, times("trainer"), 1.0),
        at_most(f"{step} / bare loop, processor time", cpu("heliostat"), cpu("bare"), LIMIT),
        at_most(f"{step} / Trainer, processor time", cpu("heliostat"), cpu("trainer"), 1.0),
        stated(
            f"processor time outside the workers' processes, {on}, per step",
            [one.tree_cpu_s - workers * one.step_cpu_s for one in taken["heliostat"]],
            "s",
        ),
    ]


if __name__ == "__main__":
    main()
