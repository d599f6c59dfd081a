"""What every benchmark shares: the command line, the median of ratios, and the result file.

A result is `benchmarks/results/NAME.json`. It holds the machine, the versions, the date and every
sample, so that each figure quoted elsewhere can be traced to the numbers it was computed from.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    "torch",
    "ray",
    "deepspeed",
    "transformers",
    "accelerate",
    "datasets",
    "pyarrow",
    "litserve",
    "fastapi",
    "uvicorn",
)


@dataclass(frozen=True)
class Measure:
    """One comparison: what was measured, what it is compared with, and what is required."""

    name: str
    """What the ratio says, for the table."""
    ratio: float | None
    """The median over the pairs; None for a figure without a peer."""
    unit: str
    """Of the samples."""
    ours: Sequence[float]
    peer: Sequence[float]
    """In the order of the pairs; empty for a figure without a peer."""
    required: str
    """In words."""
    is_met: bool | None
    """None where nothing is required of the figure."""


def options(text: str, *, pairs: int) -> argparse.ArgumentParser:
    """The command line of a benchmark: its docstring and `--pairs`."""
    # A benchmark that is told to stop must end the processes that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=pairs, help="interleaved pairs to measure")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    return parser


def median_ratio(ours: Sequence[float], peer: Sequence[float]) -> float:
    """The median of the ratios of pairs that were measured one right after the other."""
    return statistics.median(mine / other for mine, other in zip(ours, peer, strict=True))


def at_most(
    name: str, ours: Sequence[float], peer: Sequence[float], limit: float, unit: str = "s"
) -> Measure:
    """A ratio ours / peer that must not be above `limit`."""
    ratio = median_ratio(ours, peer)
    return Measure(name, ratio, unit, ours, peer, f"at most {limit:g}", ratio <= limit)


def at_least(
    name: str, ours: Sequence[float], peer: Sequence[float], limit: float, unit: str = "s"
) -> Measure:
    """A speed-up peer / ours, of times, that must not be below `limit`."""
    ratio = median_ratio(peer, ours)
    return Measure(name, ratio, unit, ours, peer, f"at least {limit:g}", ratio >= limit)


def stated(name: str, ours: Sequence[float], unit: str) -> Measure:
    """A figure of which nothing is required."""
    return Measure(name, None, unit, ours, [], "stated", None)


def report(
    name: str, measures: Sequence[Measure], details: Mapping[str, object], folder: Path
) -> None:
    """Print the ratios and write the result file."""
    for measure in measures:
        print(describe(measure), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", f"benchmarks.{name}", *_chosen(sys.argv[1:])]),
        "machine": machine(),
        "versions": versions(),
        "measures": [vars(measure) for measure in measures],
        "details": details,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


def _chosen(arguments: Sequence[str]) -> list[str]:
    """The arguments but the folder of the result, which says nothing about it."""
    chosen = list(arguments)
    if "--out" in chosen:
        at = chosen.index("--out")
        del chosen[at : at + 2]
    return chosen


def describe(measure: Measure) -> str:
    """A measure in one line."""
    middle = statistics.median(measure.ours)
    if measure.ratio is None:
        return f"{measure.name}: {middle:.4g} {measure.unit} (median of {len(measure.ours)})"
    verdict = {True: "met", False: "NOT met", None: "nothing required"}[measure.is_met]
    return (
        f"{measure.name}: ratio {measure.ratio:.3f} ({measure.required}: {verdict}); medians "
        f"{middle:.4g} and {statistics.median(measure.peer):.4g} {measure.unit}, "
        f"{len(measure.ours)} pairs"
    )


def machine() -> dict[str, object]:
    """The processor, its cores, the memory, and how busy it is."""
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in cpus if line.startswith("model name")), "")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_1_minute_at_the_end": round(os.getloadavg()[0], 1),
    }


def versions() -> dict[str, str]:
    """Python and the libraries that are compared."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found
