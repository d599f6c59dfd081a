"""How many trials run at once: computed from the cluster before anything starts, and printed.

Only what computes counts. The process of a trial that trains merely drives its workers, so it takes
no CPU, and a sweep can never wait for itself: every trial that was started has room for all its
workers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from heliostat.cluster.feasibility import require_feasible
from heliostat.cluster.placement import place, workers_on
from heliostat.cluster.resources import ClusterResources, ResourceRequest


@dataclass(frozen=True)
class Slots:
    """The places for trials."""

    at_once: int
    sentence: str
    """Says why, for the user."""


def compute_slots(
    request: ResourceRequest, cluster: ClusterResources, *, trials: int, parallel: int | None
) -> Slots:
    """Places for equal trials.

    Raises `InfeasibleError` when not even one fits.

    Args:
        request: what one trial asks for.
        cluster: what there is.
        trials: how many there are to run.
        parallel: what the user limits it to; None for no limit.
    """
    require_feasible(request, cluster)
    workers = request.workers_max
    if place(request, cluster).workers < workers:
        workers = request.workers_min
    room = _room(replace(request, workers_min=workers, workers_max=workers), cluster, trials)
    at_once = max(1, min(room, trials, parallel or trials))
    each = f"{workers} worker{'s' if workers > 1 else ''} with {_amounts(request)}"
    each += " each" if workers > 1 else ""
    why = "as many as fit" if at_once == room else "as many as there are"
    if parallel is not None and at_once == parallel:
        why = f"sweep.parallel is {parallel}"
    sentence = (
        f"{trials} trials, {at_once} at a time ({why}): {cluster.name} has {cluster.describe()}, "
        f"a trial takes {each}"
    )
    return Slots(at_once, sentence)


def _room(request: ResourceRequest, cluster: ClusterResources, trials: int) -> int:
    """How many groups of workers fit side by side, up to the number of trials."""
    workers = request.workers_max
    if request.placement == "STRICT_PACK":
        return sum(workers_on(node, request) // workers for node in cluster.nodes)
    if request.placement == "STRICT_SPREAD":
        # Each group wants nodes of its own; groups may share them.
        rooms = sorted((workers_on(node, request) for node in cluster.nodes), reverse=True)
        return rooms[workers - 1] if len(rooms) >= workers else 1
    everything = replace(request, workers_min=workers * trials, workers_max=workers * trials)
    return place(everything, cluster).workers // workers


def _amounts(request: ResourceRequest) -> str:
    parts = [f"{request.cpus:g} CPU{'s' if request.cpus != 1 else ''}"]
    if request.gpus:
        parts.append(f"{request.gpus:g} GPU{'s' if request.gpus != 1 else ''}")
    if request.memory_bytes:
        parts.append(f"{request.memory_bytes / 1e9:.4g} GB memory")
    return " and ".join(parts)
