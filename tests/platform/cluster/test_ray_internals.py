"""The private names of Ray that we use still exist and mean what they did."""

from __future__ import annotations

import time
from pathlib import Path

from heliostat.cluster import ray_internals


def test_every_private_name_is_there() -> None:
    from ray._common.usage.usage_lib import get_cluster_metadata  # noqa: F401
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes  # noqa: F401
    from ray._private.services import find_bootstrap_address  # noqa: F401
    from ray._private.state import GlobalState
    from ray._private.utils import get_num_cpus  # noqa: F401
    from ray._raylet import (  # type: ignore[attr-defined]
        RAY_NODE_GROUP_KEY,
        AuthenticationTokenLoader,
        GcsClient,
    )
    from ray.autoscaler._private.kuberay.node_provider import (  # noqa: F401
        load_k8s_secrets,
        url_from_resource,
    )

    assert hasattr(GlobalState, "get_cluster_config")
    assert hasattr(GlobalState, "_connect_and_get_accessor")
    assert hasattr(AuthenticationTokenLoader, "has_token")
    assert callable(GcsClient)
    assert ray_internals.NODE_GROUP_LABEL == RAY_NODE_GROUP_KEY


def test_cpus_are_counted() -> None:
    assert ray_internals.usable_cpus() >= 1


def test_outside_of_kubernetes_there_is_no_ray_cluster_of_this_pod() -> None:
    if not Path("/var/run/secrets/kubernetes.io").exists():
        assert ray_internals.own_ray_cluster_spec() is None


def test_the_autoscalers_report_is_read() -> None:
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

    config = ClusterConfig()
    group = config.node_group_configs.add()
    group.name, group.max_count = "gpu", -1
    group.resources["GPU"] = 8
    read = ray_internals.groups_of_config(config)
    assert read == (ray_internals.AutoscalerGroup("gpu", {"GPU": 8.0}, None),)


def test_the_places_of_an_actor_that_was_killed_are_given_back(ray_cluster: None) -> None:
    import ray
    from ray.util.placement_group import (
        PlacementGroup,
        placement_group,
        placement_group_table,
        remove_placement_group,
    )

    class Placer:
        def place(self) -> PlacementGroup:
            self.group = placement_group([{"CPU": 0.25}])
            ray.get(self.group.ready())
            return self.group

    own = placement_group([{"CPU": 0.25}])
    ray.get(own.ready())
    placer = ray.remote(num_cpus=0)(Placer).remote()
    left_behind = ray.get(placer.place.remote())
    assert ray_internals.remove_orphaned_placement_groups() == 0
    ray.kill(placer)
    deadline = time.monotonic() + 60
    while ray_internals.remove_orphaned_placement_groups() == 0:
        assert time.monotonic() < deadline, "Ray did not say that the actor is dead"
        time.sleep(0.2)
    assert placement_group_table(left_behind)["state"] == "REMOVED"
    assert placement_group_table(own)["state"] == "CREATED"
    remove_placement_group(own)
