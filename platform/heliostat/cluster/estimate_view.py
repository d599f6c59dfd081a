"""An estimate as tables for a terminal; the numbers come from `estimate`, the words from here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from heliostat.cluster.estimate import USABLE_MEMORY
from heliostat.cluster.fit_estimate import FitEstimate, StageMemory

if TYPE_CHECKING:
    from rich.console import RenderableType


def format_estimate(estimates: Sequence[FitEstimate]) -> RenderableType:
    """Everything about every training of a job, to be printed by a rich console."""
    from rich.console import Group

    parts: list[RenderableType] = []
    for estimate in estimates:
        parts.extend([_facts(estimate), _stages(estimate)])
        parts.extend(f"  note: {note}" for note in estimate.notes)
    return Group(*parts)


def fact_rows(estimate: FitEstimate) -> list[tuple[str, str]]:
    """The lines of the first table: what, and how much."""
    count, batch, ramp = estimate.parameters, estimate.batch, estimate.batch_ramp
    from_less = (
        f", at first {ramp.start} and {ramp.increment} more every {ramp.every} steps"
        if ramp is not None
        else ""
    )
    rows = [
        (
            "parameters",
            f"{quantity(count.total)} ({quantity(count.trainable)} trained, "
            f"{quantity(count.embedding)} in look-up tables)",
        ),
        (
            "batch",
            f"{batch.global_batch} = {batch.micro_batch} a pass x {batch.accumulation} "
            f"accumulated x {batch.world_size} workers{from_less}",
        ),
        ("steps", "unknown" if estimate.steps is None else f"{estimate.steps:,}"),
        ("activations", _size_or_unknown(estimate.activations) + " a worker"),
    ]
    if estimate.work is not None:
        work = estimate.work
        rows.append(
            ("FLOPs", f"{work.flops:.3g} in all, {work.flops_per_step:.3g} a step; {work.source}")
        )
    rows.append(("time", _time(estimate)))
    disk = estimate.disk
    rows.append(
        (
            "disk",
            f"{size(disk.total)} = {disk.checkpoints_kept} x {size(disk.checkpoint)} checkpoint "
            f"+ {disk.weights_kept} x {size(disk.weights)} weights",
        )
    )
    rows.append(("place", _place(estimate)))
    return rows


def size(count: float) -> str:
    """Bytes in decimal units, as vendors count memory: `2.2 GB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def quantity(count: float) -> str:
    """A number of parameters: `405M`, `6.86B`."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for unit, factor in (("days", 172_800.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= factor:
            divisor = 86_400.0 if unit == "days" else factor
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds:.3g} s"


def _facts(estimate: FitEstimate) -> RenderableType:
    from rich.table import Table

    table = Table(title=estimate.name, title_justify="left", show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in fact_rows(estimate):
        table.add_row(name, text)
    return table


def _stages(estimate: FitEstimate) -> RenderableType:
    from rich.table import Table

    limit = estimate.memory_limit
    title = f"memory of a worker ({estimate.precision})"
    if limit is not None:
        title += f"; fits within {USABLE_MEMORY:.0%} of {size(limit)}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    parts = ("weights", "gradients", "optimiser", "state", "activations", "total", "host")
    for name in ("ZeRO", *parts, "fits"):
        table.add_column(name, justify="right")
    for row in estimate.memory:
        table.add_row(*_stage_cells(estimate, row))
    return table


def _stage_cells(estimate: FitEstimate, row: StageMemory) -> list[str]:
    chosen = "* " if row.stage == estimate.stage else ""
    state = row.state
    return [
        f"{chosen}{row.stage}",
        size(state.weights),
        size(state.gradients),
        size(state.optimizer),
        size(state.device),
        _size_or_unknown(estimate.activations),
        size(row.total),
        size(state.host),
        {True: "yes", False: "no", None: "unknown"}[row.fits],
    ]


def _time(estimate: FitEstimate) -> str:
    if estimate.seconds is None or estimate.rate is None:
        return "unknown"
    rate = estimate.rate
    shared = "of the machine" if rate.is_per_machine else "a worker"
    return (
        f"{duration(estimate.seconds)} at {estimate.utilisation:.0%} of "
        f"{rate.flops_per_s / 1e12:.3g} TFLOP/s {shared} ({rate.source})"
    )


def _place(estimate: FitEstimate) -> str:
    placement = estimate.placement
    if placement is None:
        return f"never: {estimate.refusal}"
    workers = "1 worker" if placement.workers == 1 else f"{placement.workers} workers"
    nodes = "1 node" if placement.nodes == 1 else f"{placement.nodes} nodes"
    wait = ", once the autoscaler has started them" if placement.waits_for_nodes else ""
    return f"{workers} on {nodes}{wait}"


def _size_or_unknown(count: float | None) -> str:
    return "unknown" if count is None else size(count)
