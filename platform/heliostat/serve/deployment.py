"""The YAML of an endpoint: written, and checked strictly; `rollout.py` hands it to Ray Serve.

Serve accepts keys that it does not know, so a typing error would be ignored in silence. Here every
key must be one of Serve's, the arguments must be a config that the job accepts, and every bundle of
the lineup must verify.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from heliostat.config.contract import JobConfig
from heliostat.config.int_range import IntRange
from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.config.nearest import nearest_names
from heliostat.errors import ConfigError, UserError
from heliostat.runs.bundle import load_bundle
from heliostat.serve.config import OFF, LimitsConfig, ServeConfig, serve_config
from heliostat.serve.health import Address
from heliostat.serve.keys import read_keys
from heliostat.serve.lineup import Lineup, lineup_of
from heliostat.storage import Location

IMPORT_PATH = "heliostat.serve.replica:build"
DEPLOYMENT = "endpoint"
"""Name of the deployment in every application."""
SERVE_PORT = 8000
"""Serve's port where nothing is said."""
SERVE_DEFAULT = 5
"""Serve's max_ongoing_requests where nothing is said."""
HEADROOM = 64
"""Requests beyond queue and batches that Serve hands to a replica, so that the replica is the one
that refuses, at once and in our words. As many may wait in a proxy while there is no replica."""


def describe(job: str, overrides: Sequence[str], lineup: Lineup) -> dict[str, Any]:
    """The YAML of an endpoint as plain values.

    Args:
        job: its name.
        overrides: `key=value` words of the job's config.
        lineup: the versions, with absolute paths or URIs.
    """
    whole = load_config(find_job(job), None, overrides, []).config
    config = serve_config(whole)
    http: dict[str, Any] = {"host": config.http.host, "port": config.http.port}
    if config.http.tls_key is not None:
        http |= {
            "ssl_keyfile": str(Path(config.http.tls_key).resolve()),
            "ssl_certfile": str(Path(str(config.http.tls_certificate)).resolve()),
        }
    return {
        "proxy_location": "EveryNode",
        "http_options": http,
        "applications": [
            {
                "name": job,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": {"job": job, "overrides": [*overrides, *_absolute(whole, overrides)]},
                "logging_config": {"enable_access_log": config.http.access_log},
                "deployments": [{"name": DEPLOYMENT, **_options(config, lineup)}],
            }
        ],
    }


def check(raw: object, file: str, *, is_here: bool = True) -> Mapping[str, Any]:
    """The YAML, every key and value of it checked; raises `ConfigError` naming the first fault.

    Args:
        raw: what the file holds.
        file: its name.
        is_here: whether the endpoint will see the files of this machine; keys and bundles on
            another one cannot be looked at from here.
    """
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    if not isinstance(raw, Mapping):
        raise ConfigError(f"{file} holds no mapping; expected what `heliostat serve build` writes")
    _check_keys(raw, ServeDeploySchema, file)
    try:
        ServeDeploySchema.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{file}: {where}: {first['msg']}") from None
    port = raw.get("http_options", {}).get("port", SERVE_PORT)
    if isinstance(port, bool) or not 0 < port < 65_536:
        raise ConfigError(f"{file}: http_options.port is {port}; expected 1 to 65535")
    if not raw["applications"]:
        raise ConfigError(f"{file} has no application; to end an endpoint: serve shutdown")
    for application in raw["applications"]:
        if "name" not in application:
            raise ConfigError(f"{file}: an application has no name; expected its job's")
        if application.get("import_path") == IMPORT_PATH:
            _check_endpoint(application, file, is_here)
    return raw


def read(file: Path, *, is_here: bool = True) -> Mapping[str, Any]:
    """A YAML file, checked."""
    if not file.is_file():
        raise ConfigError(f"{file} does not exist; write one with heliostat serve build")
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    return check(raw, str(file), is_here=is_here)


def most_in_flight(config: ServeConfig) -> int:
    """Requests that a replica may have: those that wait, and those that are computed."""
    return config.limits.queue + config.batching.items


def address_of(description: Mapping[str, Any]) -> Address:
    """Where the endpoint answers, from this machine."""
    http = description.get("http_options", {})
    host, certificate = http.get("host", "0.0.0.0"), http.get("ssl_certfile")
    scheme = "https" if certificate else "http"
    url = f"{scheme}://{'127.0.0.1' if host == '0.0.0.0' else host}:{http.get('port', SERVE_PORT)}"
    return Address(url, certificate)


def load_limit_s(description: Mapping[str, Any]) -> float:
    """The longest time that loading the bundles of a description may take, seconds."""
    given = [
        serve_config(load_config(find_job(job), None, overrides, []).config).limits.load_s
        for job, overrides in (
            _arguments(application.get("args"))
            for application in description["applications"]
            if application.get("import_path") == IMPORT_PATH
        )
    ]
    return max(given, default=LimitsConfig().load_s)


def _options(config: ServeConfig, lineup: Lineup) -> dict[str, Any]:
    most = most_in_flight(config) + config.batching.items + HEADROOM
    return {
        **_replicas(config.replicas, config.target_ongoing_requests),
        "max_ongoing_requests": most,
        "max_queued_requests": most,
        "max_surge_percent": math.ceil(100 / config.replicas.high) if config.surge else 0,
        "ray_actor_options": {
            "num_cpus": config.cpus_per_replica,
            "num_gpus": config.gpus_per_replica,
        },
        "graceful_shutdown_timeout_s": math.ceil(config.limits.request_s) + 5,
        "user_config": lineup.to_json(),
    }


def _replicas(replicas: IntRange, target: float) -> dict[str, Any]:
    if replicas.low == replicas.high:
        return {"num_replicas": replicas.low}
    return {
        "autoscaling_config": {
            "min_replicas": replicas.low,
            "max_replicas": replicas.high,
            "target_ongoing_requests": target,
        }
    }


def _absolute(config: JobConfig, overrides: Sequence[str]) -> list[str]:
    """Paths as words of the config, absolute: a replica runs in another folder."""
    words = [
        f"{key}={Location.of(value).uri}"
        for key, value in _paths(config)
        if value != OFF and "://" not in value
    ]
    return [word for word in words if word not in overrides]


def _paths(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and value of every path that a replica reads or writes."""
    for one in fields(section):
        value = getattr(section, one.name)
        if is_dataclass(value):
            yield from _paths(value, f"{prefix}{one.name}.")
        elif value is not None and one.metadata.get("is_served_path", False):
            yield f"{prefix}{one.name}", value


def _check_keys(raw: Mapping[str, Any], schema: Any, where: str) -> None:
    """Refuse keys that Serve would ignore."""
    known = schema.model_fields
    for key, value in raw.items():
        if key not in known:
            near = nearest_names(str(key), list(known))
            hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(known)}"
            raise ConfigError(f"{where}: there is no key {key}; {hint}")
        inner = _model_of(known[key].annotation)
        if inner is not None and isinstance(value, Mapping):
            _check_keys(value, inner, f"{where}: {key}")
        elif inner is not None and isinstance(value, Sequence) and not isinstance(value, str):
            for index, entry in enumerate(value):
                place = f"{where}: {key}[{index}]"
                if not isinstance(entry, Mapping):
                    raise ConfigError(f"{place} is {entry!r}; expected keys and values")
                _check_keys(entry, inner, place)


def _model_of(annotation: Any) -> Any:
    """The pydantic model in an annotation such as `list[Model] | None`; None without one."""
    from typing import get_args

    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_model_of(part) for part in get_args(annotation)]
    return next((model for model in found if model is not None), None)


def _check_endpoint(application: Mapping[str, Any], file: str, is_here: bool) -> None:
    """The parts of an application that are ours."""
    name = application["name"]
    try:
        job, overrides = _arguments(application.get("args"))
        config = serve_config(load_config(find_job(job), None, overrides, []).config)
        if config.keys != OFF and is_here:
            read_keys(Location.of(config.keys))
        if application.get("route_prefix", "/") != "/":
            raise ConfigError(f"route_prefix is {application['route_prefix']!r}; expected /")
        deployments = application.get("deployments", [])
        if [_name(one) for one in deployments] != [DEPLOYMENT]:
            raise ConfigError(f"expected one deployment, named {DEPLOYMENT}")
        _check_room(deployments[0], config)
        for bundle in lineup_of(deployments[0].get("user_config") or {}).bundles:
            if is_here:
                load_bundle(bundle, kind=find_job(job).served_kinds())
    except UserError as error:
        raise ConfigError(f"{file}: {name}: {error}") from None


def _arguments(args: object) -> tuple[str, list[str]]:
    """What `replica.build` is given: the job, and words of its config."""
    given = args if isinstance(args, Mapping) else {}
    if set(given) != {"job", "overrides"}:
        raise ConfigError(f"args has {sorted(given)}; expected job and overrides")
    job, overrides = given["job"], given["overrides"]
    if not isinstance(job, str):
        raise ConfigError(f"args.job is {job!r}; expected the name of a job")
    if not isinstance(overrides, list) or not all(isinstance(word, str) for word in overrides):
        raise ConfigError(f"args.overrides is {overrides!r}; expected a list of key=value")
    return job, overrides


def _name(deployment: object) -> object:
    return deployment.get("name") if isinstance(deployment, Mapping) else None


def _check_room(deployment: Mapping[str, Any], config: ServeConfig) -> None:
    """Refuse what would keep batches from filling: Serve hands out 5 at a time by default."""
    found = deployment.get("max_ongoing_requests", SERVE_DEFAULT)
    needed = most_in_flight(config)
    if found < needed:
        raise ConfigError(
            f"max_ongoing_requests is {found}, so batches would never fill; expected at least "
            f"{needed} (serve.limits.queue + serve.batching.items), as heliostat serve build writes"
        )
