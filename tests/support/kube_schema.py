"""What a Kubernetes API server with KubeRay would refuse, found without a cluster.

The schema of a custom resource definition is applied as the API server does it: defaults first,
nulls dropped. Unlike the server, unknown keys are refused, which is what finds a misspelled
`entryPoint`. Rules that KubeRay's operator adds to the schema are restated in `operator_refusals`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Table = dict[str, Any]
Schema = dict[str, Any]
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")
LEAST_RAY_WITH_TOKENS = (2, 52)


@cache
def schema_of(crds: Path, kind: str) -> Schema:
    """The strict schema of version v1 of a kind, from the folder of the CRD files."""
    text = (crds / f"ray.io_{kind.lower()}s.yaml").read_text()
    definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    versions = {version["name"]: version for version in definition["spec"]["versions"]}
    schema: Schema = versions["v1"]["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    make_strict(schema)
    schema["properties"]["metadata"]["additionalProperties"] = True
    return schema


def make_strict(schema: Schema) -> None:
    """Refuse unknown keys everywhere, in place; integer-or-string becomes plain JSON Schema."""
    if schema.pop("x-kubernetes-int-or-string", False):
        schema["type"] = ["integer", "string"]
        schema.pop("anyOf", None)
    children = schema.get("properties", {})
    if children and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema["additionalProperties"] = False
    below = [*children.values(), schema.get("items"), schema.get("additionalProperties")]
    for child in below:
        if isinstance(child, dict):
            make_strict(child)


def schema_refusals(crds: Path, document: Table) -> list[str]:
    """What the schema refuses, each with the path of the key."""
    schema = schema_of(crds, document["kind"])
    complete = with_defaults(schema, copy.deepcopy(document))
    errors = jsonschema.Draft202012Validator(schema).iter_errors(complete)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in errors]


def with_defaults(schema: Schema, value: Any) -> Any:
    """The value with nulls dropped and the schema's defaults filled in."""
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: item for key, item in value.items() if item is not None}
    properties = schema.get("properties", {})
    for key, child in properties.items():
        if key not in value and "default" in child:
            value[key] = copy.deepcopy(child["default"])
    others = schema.get("additionalProperties")
    others = others if isinstance(others, dict) else {}
    return {key: with_defaults(properties.get(key, others), item) for key, item in value.items()}


def operator_refusals(document: Table) -> list[str]:
    """What KubeRay 1.7 refuses although the schema allows it, for a RayJob."""
    assert document["kind"] == "RayJob"
    name, spec = document["metadata"]["name"], document["spec"]
    found = []
    if len(name) > LONGEST_NAME["RayJob"] or not DNS_1035.fullmatch(name):
        found.append(f"metadata.name: {name} is no DNS-1035 label of at most 47 characters")
    found += job_refusals(spec)
    if "rayClusterSpec" in spec:
        found += cluster_refusals(spec["rayClusterSpec"])
    return found


def job_refusals(spec: Table) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    shutdown = spec.get("shutdownAfterJobFinishes", False)
    if ("rayClusterSpec" in spec) == ("clusterSelector" in spec):
        yield "spec: exactly one of rayClusterSpec and clusterSelector"
    if spec.get("suspend") and not shutdown:
        yield "spec.suspend: needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "spec.ttlSecondsAfterFinished: negative"
    if spec.get("ttlSecondsAfterFinished") and not shutdown:
        yield "spec.ttlSecondsAfterFinished: only with shutdownAfterJobFinishes"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"spec.{key}: not positive"
    if spec.get("backoffLimit", 0) < 0:
        yield "spec.backoffLimit: negative"
    if spec.get("backoffLimit") and ("clusterSelector" in spec or mode == "InteractiveMode"):
        yield "spec.backoffLimit: neither with clusterSelector nor in InteractiveMode"
    if "deletionStrategy" in spec:
        yield "spec.deletionStrategy: needs the feature gate RayJobDeletionPolicy"
    if mode == "SidecarMode":
        for key in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if key in spec:
                yield f"spec.{key}: not in SidecarMode"


def cluster_refusals(spec: Table) -> Iterator[str]:
    for key in GATED:
        if key in spec:
            yield f"spec.{key}: needs a feature gate"
    version = tuple(int(part) for part in str(spec.get("rayVersion", "0.0")).split(".")[:2])
    if spec.get("authOptions", {}).get("mode") == "token" and version < LEAST_RAY_WITH_TOKENS:
        yield f"spec.rayVersion: tokens need 2.52 or later, not {spec.get('rayVersion')}"
    groups = {"head": spec["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in spec.get("workerGroupSpecs", [])}
    for name, group in groups.items():
        if not group["template"]["spec"].get("containers"):
            yield f"{name}: no container"
        parameters = group.get("rayStartParams") or {}
        if "labels" in parameters:
            yield f"{name}: labels belong in labels, not in rayStartParams"
        if "resources" in group and {"num-cpus", "num-gpus", "memory", "resources"} & set(
            parameters
        ):
            yield f"{name}: both resources and resources in rayStartParams"
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not 0 <= least <= most:
            yield f"{name}: minReplicas {least} and maxReplicas {most}"
