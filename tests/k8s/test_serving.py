"""The RayService: accepted by KubeRay's schema, and its endpoint by our own check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.serve.config import serve_config
from heliostat.serve.deployment import check, most_in_flight
from heliostat.serve.haproxy import PROGRAM
from tests.k8s.test_manifests import CRDS, locked
from tests.support.kube_schema import schema_refusals
from tests.support.kustomize import render

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    found, *_ = [one for one in render(ROOT / "k8s" / "serving") if one["kind"] == "RayService"]
    return found


def test_the_custom_resource_fits_its_schema(service: dict[str, Any]) -> None:
    if not CRDS.is_dir():
        pytest.skip(f"no CRDs of KubeRay 1.7 in {CRDS}: set KUBERAY_CRDS to their folder")
    assert schema_refusals(CRDS, service) == []


def test_its_endpoint_is_one_that_we_accept(service: dict[str, Any]) -> None:
    described = yaml.safe_load(service["spec"]["serveConfigV2"])
    check(described, "serveConfigV2", is_here=False)
    (application,) = described["applications"]
    assert application["import_path"] == "heliostat.serve.replica:build"


def test_replicas_find_room_keys_and_bundles_on_their_pods(service: dict[str, Any]) -> None:
    described = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = described["applications"]
    (deployment,) = application["deployments"]
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    needed = [
        *(one["bundle"] for one in deployment["user_config"]["versions"]),
        *(word.partition("=")[2] for word in application["args"]["overrides"] if "/" in word),
    ]
    assert needed
    assert all(any(path.startswith(mount) for mount in mounts) for path in needed)
    cpus = float(container["resources"]["requests"]["cpu"])
    most = deployment["autoscaling_config"]["max_replicas"]
    assert cpus * group["maxReplicas"] >= most * deployment["ray_actor_options"]["num_cpus"]


def test_haproxy_lets_through_what_a_replica_has_room_for(service: dict[str, Any]) -> None:
    described = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = described["applications"]
    words = application["args"]["overrides"]
    config = serve_config(load_config(find_job("support_templates"), None, words, []).config)
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        given = {one["name"]: one["value"] for one in container["env"]}
        assert given["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert int(given["HELIOSTAT_MOST_IN_FLIGHT"]) == most_in_flight(config)
        folder, _, name = given["RAY_SERVE_HAPROXY_BINARY_PATH"].rpartition("/")
        assert name == PROGRAM
        assert f"ENV PATH={folder}:" in (ROOT / "cluster" / "Dockerfile").read_text()


def test_the_pods_are_those_of_a_careful_operator(service: dict[str, Any]) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == locked("ray")
    assert cluster["authOptions"]["mode"] == "token"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"] == container["resources"]["limits"]
