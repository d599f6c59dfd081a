"""How many trials run at once."""

from __future__ import annotations

import pytest

from heliostat.cluster.resources import ClusterResources, NodeShape, ResourceRequest
from heliostat.errors import InfeasibleError
from heliostat.sweep.slots import compute_slots

LAPTOP = ClusterResources((NodeShape(cpus=2),), name="this machine")
RACK = ClusterResources((NodeShape(cpus=96, gpus=8), NodeShape(cpus=96, gpus=8)), name="the rack")


@pytest.mark.parametrize(
    ("request_", "cluster", "trials", "parallel", "at_once"),
    [
        (ResourceRequest(1, 1, cpus=1), LAPTOP, 8, None, 2),
        (ResourceRequest(2, 2, cpus=1), LAPTOP, 8, None, 1),
        (ResourceRequest(1, 1, cpus=0.5), LAPTOP, 8, None, 4),
        (ResourceRequest(1, 1, cpus=0.5), LAPTOP, 3, None, 3),
        (ResourceRequest(1, 1, cpus=0.5), LAPTOP, 8, 2, 2),
        (ResourceRequest(1, 2, cpus=1), LAPTOP, 8, None, 1),
        (ResourceRequest(1, 4, cpus=1), LAPTOP, 8, None, 2),
        (ResourceRequest(4, 4, cpus=4, gpus=1), RACK, 9, None, 4),
        (ResourceRequest(5, 5, cpus=4, gpus=1), RACK, 9, None, 3),
        (ResourceRequest(5, 5, cpus=4, gpus=1, placement="STRICT_PACK"), RACK, 9, None, 2),
        (ResourceRequest(2, 2, cpus=4, gpus=1, placement="STRICT_SPREAD"), RACK, 9, None, 8),
    ],
)
def test_as_many_trials_run_as_their_workers_fit(
    request_: ResourceRequest,
    cluster: ClusterResources,
    trials: int,
    parallel: int | None,
    at_once: int,
) -> None:
    slots = compute_slots(request_, cluster, trials=trials, parallel=parallel)
    assert slots.at_once == at_once
    assert f"{trials} trials, {at_once} at a time" in slots.sentence


def test_a_trial_that_never_fits_is_refused() -> None:
    with pytest.raises(InfeasibleError, match="can never be placed"):
        compute_slots(ResourceRequest(3, 3, cpus=1), LAPTOP, trials=4, parallel=None)
