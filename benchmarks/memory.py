"""Memory of driver and worker above a bare loop, and whether it grows over 10,000 steps.

Both train a tiny model (so that 10,000 steps take minutes) with one worker, one after the other.
What is counted is memory that belongs to a process alone (USS), in the worker, in the driver, and
in all other processes, Ray's own among them. Growth is the difference between the medians of the
samples of the last and the second quarter of the steps; the first quarter is for warming up. It
counts as none while it stays below 1 % of the memory. Checkpoints come every 1,000 steps, as they
do by default in a run of 10,000, and the tracker is on.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks import workload
from benchmarks.result import Measure, options, report, stated
from benchmarks.turns import Contender, contender

SAVE_EVERY = 1000
SAMPLES = 60
MOST_GROWTH = 0.01
MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """Memory at one moment, in MiB."""

    step: int
    driver: float
    """Of the command itself; the launcher, for torchrun."""
    worker: float
    rest: float
    """Of all other processes: Ray's own, and the actors of Ray Train."""

    @property
    def both(self) -> float:
        """Driver and worker."""
        return self.driver + self.worker


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=1)
    parser.add_argument("--steps", type=int, default=10_000)
    given = parser.parse_args()
    workload.transcripts()
    taken = {kind: watch(kind, given.steps) for kind in ("heliostat", "bare")}
    ours, bare = taken["heliostat"], taken["bare"]
    above = [mine.both - other.worker for mine, other in zip(ours, bare, strict=False)]
    measures = [
        stated("driver + worker above the bare loop", above, "MiB"),
        stated("driver", [sample.driver for sample in ours], "MiB"),
        stated("worker above the bare loop", differences(ours, bare), "MiB"),
        stated("Ray's own processes and actors", [sample.rest for sample in ours], "MiB"),
        growth("worker", [sample.worker for sample in ours], given.steps),
        growth("driver", [sample.driver for sample in ours], given.steps),
        growth("bare loop", [sample.worker for sample in bare], given.steps),
    ]
    details = {name: [asdict(sample) for sample in samples] for name, samples in taken.items()}
    report("memory", measures, details, given.out)


def watch(kind: str, steps: int) -> list[Sample]:
    """Samples at even distances over so many steps."""
    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as scratch:
        folder = Path(scratch)
        training = contender(kind, 1, "tiny", folder, save_every=SAVE_EVERY)
        training.start(folder / "log")
        samples: list[Sample] = []
        try:
            training.wait_until_warm()
            done = 0
            while done < steps:
                time.sleep(0.2)
                done = len(training.read_stamps())
                if done >= len(samples) * steps / SAMPLES:
                    samples.append(sample(training, done))
        finally:
            training.end()
        return samples


def sample(training: Contender, step: int) -> Sample:
    """Memory now. The worker is the process with the most, the driver aside."""
    driver, *others = training.tree()
    sizes = []
    for process in others:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            sizes.append((is_worker(process), process.memory_full_info().uss / MIB))
    return Sample(
        step=step,
        driver=driver.memory_full_info().uss / MIB,
        worker=sum(size for worker, size in sizes if worker),
        rest=sum(size for worker, size in sizes if not worker),
    )


def is_worker(process: psutil.Process) -> bool:
    """Whether the process trains: a Ray Train worker, or what torchrun started."""
    words = " ".join(process.cmdline())
    return "RayTrainWorker" in words or "benchmarks.contenders bare" in words


def differences(ours: list[Sample], bare: list[Sample]) -> list[float]:
    """Worker minus worker, sample by sample."""
    return [mine.worker - other.worker for mine, other in zip(ours, bare, strict=False)]


def growth(name: str, sizes: list[float], steps: int) -> Measure:
    """What the last quarter has above the second one."""
    quarter = len(sizes) // 4
    before = statistics.median(sizes[quarter : 2 * quarter])
    after = statistics.median(sizes[-quarter:])
    return Measure(
        name=f"growth of the {name} over {steps} steps",
        ratio=after / before - 1,
        unit="MiB",
        ours=[after],
        peer=[before],
        required=f"at most {MOST_GROWTH:g}",
        is_met=after / before - 1 <= MOST_GROWTH,
    )


if __name__ == "__main__":
    main()
