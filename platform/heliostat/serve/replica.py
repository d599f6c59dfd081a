"""The one deployment of an endpoint, and how Ray Serve builds it.

`build` is the import path in the YAML of `heliostat serve build`. What may change while the
endpoint runs, its versions, is `user_config`, which Serve hands to every replica in place; the rest
are `args`, and a change of them replaces the replicas one after another.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY

from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.config.settings import (
    MOST_IN_FLIGHT_VARIABLE,
    TLS_CERTIFICATE_VARIABLE,
    TLS_KEY_VARIABLE,
    settings,
)
from heliostat.errors import ConfigError
from heliostat.serve.app import build_app
from heliostat.serve.batcher import BatchLimits
from heliostat.serve.config import ServeConfig, serve_config
from heliostat.serve.contract import Endpoint
from heliostat.serve.deployment import DEPLOYMENT, most_in_flight
from heliostat.serve.lineup import Lineup, lineup_of
from heliostat.serve.service import Service
from heliostat.serve.telemetry import Telemetry

if TYPE_CHECKING:
    from ray.serve import Application

    from heliostat.serve.gate import Gate

logger = logging.getLogger(__name__)

SWITCH_S = 0.0005
"""How long a thread may keep the interpreter while another waits for it: 5 ms by default, which the
event loop would wait for each time that a model computes."""
SERVE_LOGGER_NAME = "ray.serve"


@serve.deployment(name=DEPLOYMENT)
@serve.ingress()
class Replica:
    """A replica: every version of the model, and the application in front of them."""

    def __init__(self, job: str, overrides: list[str]) -> None:
        import torch

        _log_with_serve()
        loaded = load_config(find_job(job), None, overrides, [])
        config = serve_config(loaded.config)
        _check_haproxy(config)
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"serve.gpus_per_replica is {config.gpus_per_replica:g}, but torch "
                f"{torch.__version__} sees no GPU where the replica runs: install its build for "
                "CUDA there (make setup TORCH_INDEX=...), or leave the key out"
            )
        torch.set_num_threads(max(1, int(config.cpus_per_replica)))
        self._telemetry = Telemetry(job)
        endpoint: Endpoint = find_job(job).endpoint_code().endpoint(loaded.config)
        limits = BatchLimits(
            items=config.batching.items,
            tokens=config.batching.tokens,
            wait_s=config.batching.wait_ms / 1000,
            queue=config.limits.queue,
            answer_s=config.limits.answer_ms / 1000,
        )
        self._service = Service(endpoint, limits, self._telemetry)
        self._endpoint, self._config = endpoint, config
        self._is_ready = False
        self._changes: set[asyncio.Task[None]] = set()
        sys.setswitchinterval(SWITCH_S)
        # A full collection goes through all that was imported, for a third of a second in which
        # nobody is answered. None of that is ever garbage; what is loaded from here on may be.
        gc.collect()
        gc.freeze()

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take a lineup. The first must load; a later one that does not leaves the old in place.

        Serve sends a replica no requests until this returns, so a later lineup is loaded in the
        background while the old one answers.
        """
        lineup = lineup_of(user_config)
        if not self._is_ready:
            await self._service.apply(lineup)
            self._is_ready = True
            return
        self._service.expect()
        change = asyncio.create_task(self._change(lineup))
        self._changes.add(change)
        change.add_done_callback(self._changes.discard)

    async def _change(self, lineup: Lineup) -> None:
        try:
            await self._service.apply(lineup)
        except Exception as error:
            logger.error("the new lineup was refused, the old one answers: %s", error)

    def __serve_build_asgi_app__(self) -> Gate:
        """The application; called once by Serve, after the constructor."""
        return build_app(
            endpoint=self._endpoint,
            service=self._service,
            config=self._config,
            telemetry=self._telemetry,
            replicas=_replicas,
            replica=serve.get_replica_context().replica_id.unique_id,
        )


def _check_haproxy(config: ServeConfig) -> None:
    """Refuse what does not fit HAProxy, which is told of it where the cluster starts.

    Every node has an HAProxy that counts for itself.
    """
    if RAY_SERVE_ENABLE_HA_PROXY:
        _check_tls(config.http.tls_key is not None, settings().tls_key is not None)
    given, wanted = settings().most_in_flight, most_in_flight(config)
    if given is None or not given.isdecimal():
        return
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    if int(given) * nodes < wanted:
        raise ConfigError(
            f"serve.limits.queue + serve.batching.items is {wanted}, but HAProxy of this cluster "
            f"lets a replica have {int(given) * nodes} requests in flight; start the cluster with "
            f"{MOST_IN_FLIGHT_VARIABLE}={-(-wanted // nodes)}"
        )


def _check_tls(endpoint: bool, haproxy: bool) -> None:
    """Refuse an endpoint whose HTTPS HAProxy does not know of, or the other way about."""
    variables = f"{TLS_KEY_VARIABLE} and {TLS_CERTIFICATE_VARIABLE}"
    if endpoint and not haproxy:
        raise ConfigError(
            "serve.http.tls_key is given, but HAProxy of this cluster speaks no TLS; start the "
            f"cluster with {variables}"
        )
    if haproxy and not endpoint:
        raise ConfigError(
            f"HAProxy of this cluster speaks TLS ({variables}); give the endpoint "
            "serve.http.tls_key and serve.http.tls_certificate"
        )


def _log_with_serve() -> None:
    """Write what Heliostat says into the log of the replica, where Serve's users look."""
    ours, serves = logging.getLogger("heliostat"), logging.getLogger(SERVE_LOGGER_NAME)
    ours.handlers, ours.propagate = serves.handlers, False
    ours.setLevel(serves.level)


def _replicas() -> int:
    """How many replicas the deployment has now, as Serve last told this one."""
    return max(1, serve.get_replica_context().world_size or 1)


def build(args: Mapping[str, Any]) -> Application:
    """The application that the YAML describes; called by Serve on the cluster."""
    app: Application = Replica.bind(str(args["job"]), [str(word) for word in args["overrides"]])  # type: ignore[attr-defined]
    return app
