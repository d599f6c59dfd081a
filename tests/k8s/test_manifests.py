"""The manifests of k8s/: accepted by Kubernetes and KubeRay, and their embedded strings by us."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from heliostat.cluster.cluster_description import parse_cluster
from heliostat.cluster.feasibility import require_feasible
from heliostat.cluster.resources import ResourceRequest
from heliostat.config.load import LoadedConfig
from tests.support.entrypoint import load_entrypoint
from tests.support.kube_schema import operator_refusals, schema_refusals
from tests.support.kustomize import containers, render

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("base", "overlays/laptop-kind", "overlays/gpu")
CRDS = Path(os.environ.get("KUBERAY_CRDS", ROOT.parent / "shared" / "crds"))
"""The CRD files of KubeRay 1.7 (its folder helm-chart/kuberay-operator/crds)."""
GIB = 2**30


@cache
def documents(place: str) -> tuple[dict[str, Any], ...]:
    return tuple(render(ROOT / "k8s" / place))


def ray_job(place: str) -> dict[str, Any]:
    (found,) = [item for item in documents(place) if item["kind"] == "RayJob"]
    return found


def groups(place: str) -> dict[str, dict[str, Any]]:
    """The head group and the worker groups, by name."""
    cluster = ray_job(place)["spec"]["rayClusterSpec"]
    named = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"], **named}


def pods(place: str) -> dict[str, dict[str, Any]]:
    """Every pod's spec: of the groups, and of the submitter."""
    submitter = ray_job(place)["spec"]["submitterPodTemplate"]
    named = {name: group["template"] for name, group in groups(place).items()}
    return {name: template["spec"] for name, template in (named | {"submitter": submitter}).items()}


def locked(package: str) -> str:
    pin = re.search(rf"^{package}==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert pin is not None
    return pin[1]


def loaded(place: str) -> LoadedConfig[Any]:
    """The config that the entrypoint asks for."""
    return load_entrypoint(ray_job(place)["spec"]["entrypoint"])


# Accepted by the API server and by the operator.


@pytest.mark.parametrize("place", PLACES)
def test_the_custom_resource_fits_its_schema(place: str) -> None:
    if not CRDS.is_dir():
        pytest.skip(f"no CRDs of KubeRay 1.7 in {CRDS}: set KUBERAY_CRDS to their folder")
    assert schema_refusals(CRDS, ray_job(place)) == []


def test_a_misspelled_key_does_not_fit_the_schema() -> None:
    if not CRDS.is_dir():
        pytest.skip(f"no CRDs of KubeRay 1.7 in {CRDS}: set KUBERAY_CRDS to their folder")
    wrong = yaml.safe_load(yaml.safe_dump(ray_job("base")))
    wrong["spec"]["entryPoint"] = wrong["spec"].pop("entrypoint")
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0][
        "imge"
    ] = ""
    refusals = " ".join(schema_refusals(CRDS, wrong))
    assert "'entryPoint' was unexpected" in refusals
    assert "'imge' was unexpected" in refusals


@pytest.mark.parametrize("place", PLACES)
def test_the_operator_has_nothing_to_refuse(place: str) -> None:
    assert operator_refusals(ray_job(place)) == []


@pytest.mark.parametrize(
    ("key", "value", "refusal"),
    [
        ("shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished"),
        ("preRunningDeadlineSeconds", 0, "not positive"),
        ("clusterSelector", {"ray.io/cluster": "x"}, "exactly one"),
        ("submissionMode", "SidecarMode", "not in SidecarMode"),
        ("submissionMode", "InteractiveMode", "backoffLimit"),
    ],
)
def test_the_operators_rules_find_mistakes(key: str, value: object, refusal: str) -> None:
    wrong = yaml.safe_load(yaml.safe_dump(ray_job("base")))
    wrong["spec"][key] = value
    assert any(refusal in line for line in operator_refusals(wrong))


@pytest.mark.parametrize("place", PLACES)
def test_built_in_kinds_hold_together(place: str) -> None:
    """Each kind in its API group, one document a name, and references that lead somewhere."""
    versions = {
        "PersistentVolumeClaim": "v1",
        "PodMonitor": "monitoring.coreos.com/v1",
        "RayJob": "ray.io/v1",
    }
    found = documents(place)
    assert all(versions[item["kind"]] == item["apiVersion"] for item in found)
    names = [(item["kind"], item["metadata"]["name"]) for item in found]
    assert len(set(names)) == len(names)
    for pod in pods(place).values():
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == set(volumes)
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in names


def test_the_monitor_finds_every_ray_pod_and_its_port() -> None:
    (monitor,) = [item for item in documents("base") if item["kind"] == "PodMonitor"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    for group in groups("base").values():
        assert wanted <= group["template"]["metadata"]["labels"].items()
        ports = {port["name"]: port for port in group["template"]["spec"]["containers"][0]["ports"]}
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert ports[endpoint["port"]]["containerPort"] == 8080


@pytest.mark.parametrize("place", PLACES)
def test_kubectl_renders_what_the_tests_render(place: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the tests' own rendering stays unchecked")
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s" / place)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    theirs = {item["kind"]: item for item in yaml.safe_load_all(done.stdout)}
    assert theirs == {item["kind"]: item for item in documents(place)}


# The embedded strings.


@pytest.mark.parametrize("place", PLACES)
def test_the_entrypoint_is_a_valid_command_of_ours(place: str) -> None:
    config = loaded(place).config
    mounts = {
        mount["mountPath"]
        for container in pods(place)["head"]["containers"]
        for mount in container["volumeMounts"]
    }
    assert "://" in config.out or any(config.out.startswith(f"{mount}/") for mount in mounts)


@pytest.mark.parametrize("place", PLACES)
def test_the_cluster_has_room_for_the_workers_that_the_config_asks_for(
    place: str, tmp_path: Path
) -> None:
    manifest = tmp_path / "cluster.yaml"
    manifest.write_text(yaml.safe_dump(ray_job(place)))
    resources = loaded(place).config.resources
    placed = require_feasible(ResourceRequest.of(resources), parse_cluster(str(manifest)))
    assert placed.workers == resources.workers.high


@pytest.mark.parametrize("place", PLACES)
def test_the_runtime_environment_has_only_keys_that_ray_knows(place: str) -> None:
    from ray.runtime_env import RuntimeEnv

    text = ray_job(place)["spec"]["runtimeEnvYAML"]
    environment = yaml.safe_load(text)
    assert set(environment) <= RuntimeEnv.known_fields
    assert all(isinstance(value, str) for value in environment.get("env_vars", {}).values())


@pytest.mark.parametrize("place", PLACES)
def test_versions_and_images_agree_everywhere(place: str) -> None:
    import heliostat

    assert ray_job(place)["spec"]["rayClusterSpec"]["rayVersion"] == locked("ray")
    images = {container["image"] for container in containers(ray_job(place))}
    (image,) = images
    assert image.rpartition(":")[2].split("-")[0] == heliostat.__version__


# What keeps work and machines safe.


@pytest.mark.parametrize("place", PLACES)
def test_requests_equal_limits(place: str) -> None:
    for name, pod in pods(place).items():
        for container in pod["containers"]:
            resources = container["resources"]
            assert resources["requests"] == resources["limits"], name
            assert {"cpu", "memory"} <= set(resources["limits"])


def test_gpus_of_the_workers_are_those_that_the_config_asks_for() -> None:
    resources = loaded("overlays/gpu").config.resources
    workers = groups("overlays/gpu")["trainers"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = int(limits["nvidia.com/gpu"]) * workers["replicas"]
    assert gpus == resources.workers.high * resources.gpus_per_worker


@pytest.mark.parametrize("place", PLACES)
def test_nothing_runs_as_root_or_can_become_it(place: str) -> None:
    for pod in pods(place).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("place", PLACES)
def test_no_training_worker_lands_on_the_head(place: str) -> None:
    assert groups(place)["head"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("place", PLACES)
def test_shared_memory_is_memory_and_fits_the_limit(place: str) -> None:
    for group in groups(place).values():
        pod = group["template"]["spec"]
        (name,) = [
            mount["name"]
            for mount in pod["containers"][0]["volumeMounts"]
            if mount["mountPath"] == "/dev/shm"
        ]
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == name]
        assert volume["emptyDir"]["medium"] == "Memory"
        limit = pod["containers"][0]["resources"]["limits"]["memory"]
        # What lies there counts as the container's memory; training needs some too.
        assert in_gib(volume["emptyDir"]["sizeLimit"]) <= in_gib(limit) * 0.75


@pytest.mark.parametrize("place", PLACES)
def test_a_pod_that_must_go_has_time_to_save(place: str) -> None:
    for name, group in groups(place).items():
        pod = group["template"]["spec"]
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]
        python, script, role, option, seconds = hook["command"]
        dockerfile = (ROOT / "cluster" / "Dockerfile").read_text()
        assert f"COPY cluster/prestop.py {script}" in dockerfile
        assert python == f"{Path(script).parent}/bin/python"
        assert (role, option) == ("head" if name == "head" else "worker", "--seconds")
        # Ray's own shutdown after the hook takes up to half a minute.
        assert pod["terminationGracePeriodSeconds"] >= int(seconds) + 30
    head = groups(place)["head"]["template"]["spec"]["containers"][0]
    variables = {item["name"]: item["value"] for item in head["env"]}
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


@pytest.mark.parametrize("place", PLACES)
def test_a_run_can_go_on_after_its_cluster_is_gone(place: str) -> None:
    """Retries make new clusters; runs and caches are on the volume that outlives them."""
    spec = ray_job(place)["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] >= 1
    for group in groups(place).values():
        container = group["template"]["spec"]["containers"][0]
        variables = {item["name"]: item["value"] for item in container["env"]}
        assert variables["HELIOSTAT_HOME"].startswith("/storage/")
        assert {"name": "storage", "mountPath": "/storage"} in container["volumeMounts"]


def in_gib(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi|Ti)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit] / GIB
