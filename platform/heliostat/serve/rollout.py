"""Bringing an endpoint onto a cluster, and back when the new one does not come up.

Serve keeps what it was given last as its goal, whether or not that works: a replica that dies after
a lineup was refused would be started with the one that was refused. So what ran before is given
back to Serve, and `deploy` is all or nothing over every replica.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from heliostat.cluster.ray_cluster import present_token
from heliostat.errors import Fault, UserError
from heliostat.serve.deployment import DEPLOYMENT, IMPORT_PATH, SERVE_PORT, load_limit_s
from heliostat.serve.health import Address, is_local

POLL_S = 0.25
START_S = 60.0
"""What a replica may take to start, beside loading its bundles."""
BAD = ("DEPLOY_FAILED", "UNHEALTHY")


def deploy(description: Mapping[str, Any], dashboard: str, address: Address | None) -> list[str]:
    """Hand an endpoint to Serve, and wait until every replica answers with its versions.

    Args:
        description: what `describe` or `read` gave.
        dashboard: URL of the cluster's dashboard.
        address: where it will answer; None where that is not known here, and then only Serve's
            own word is waited for.

    Returns:
        The versions that answer, a line each; nothing without an address.

    Raises:
        UserError: the cluster did not take it.
        Fault: it did not come up; what ran before runs again.
    """
    client = _client(dashboard)
    names = [str(application["name"]) for application in description["applications"]]
    details = client.get_serve_details()
    _check_http(details.get("http_options"), description.get("http_options", {}), dashboard)
    found = details["applications"]
    # All of them: what is not in the description ends with it.
    before = [
        state["deployed_app_config"]
        for state in found.values()
        if state["status"] == "RUNNING" and state["deployed_app_config"]
    ]
    load_s = load_limit_s(description)
    stamps = {name: state["last_deployed_time_s"] for name, state in found.items()}
    goal = uuid.uuid4().hex
    _put(client, _with_id(description, goal), dashboard)
    try:
        _wait(
            lambda: _is_running(client, names, stamps),
            START_S + load_s,
            "did not start; is there room for it, and for a new replica beside each old one "
            "(serve.surge)?",
        )
        # There is one of ours at most: it takes every path.
        ours = [one for one in description["applications"] if one["import_path"] == IMPORT_PATH]
        if address is None or not ours:
            return []
        name = str(ours[0]["name"])
        _wait(
            lambda: _agree(_replicas(client, name), address, goal),
            load_s,
            "did not take the new versions; give it longer with serve.limits.load_s",
        )
        return address.health().lines
    except Fault as fault:
        if not before:
            raise
        _put(client, {**description, "applications": before}, dashboard)
        raise Fault(f"{fault}; what ran before goes on answering") from None


def _check_http(
    running: Mapping[str, Any] | None, wanted: Mapping[str, Any], dashboard: str
) -> None:
    """Refuse another port or certificate than Serve runs with: it would go on with its own."""
    for name in ("port", "ssl_keyfile", "ssl_certfile"):
        default = SERVE_PORT if name == "port" else None
        if running and (running.get(name, default)) != (wanted.get(name, default)):
            raise UserError(
                f"http_options.{name} is {wanted.get(name, default)}, but Serve on the cluster at "
                f"{dashboard} runs with {running.get(name, default)} and cannot change it; leave "
                "it, or end Serve first (serve shutdown)"
            )


def is_here(dashboard: str) -> bool:
    """Whether a cluster runs on this machine, and so sees its files.

    An address of this machine may be that of a forwarded port: what the cluster says counts.
    """
    if not is_local(dashboard):
        return False
    answer = _client(dashboard)._do_request("GET", "/nodes?view=hostNameList")
    hosts = answer.json()["data"]["hostNameList"] if answer.ok else []
    # A head that does not know its nodes yet, or does not tell, is taken for what it looks like.
    return not hosts or socket.gethostname() in hosts


def _with_id(description: Mapping[str, Any], id_: str) -> dict[str, Any]:
    """A description whose lineup has an id."""
    stamped = deepcopy(dict(description))
    for application in stamped["applications"]:
        if application["import_path"] == IMPORT_PATH:
            application["deployments"][0]["user_config"]["id"] = id_
    return stamped


def _client(dashboard: str) -> Any:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
    from ray.exceptions import AuthenticationError

    present_token()
    try:
        return ServeSubmissionClient(dashboard)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        raise _not_taken(dashboard, error) from None


def _put(client: Any, description: Mapping[str, Any], dashboard: str) -> None:
    from ray.exceptions import AuthenticationError

    try:
        client.deploy_applications(dict(description))
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        raise _not_taken(dashboard, error) from None


def _not_taken(dashboard: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"the cluster at {dashboard} did not take the endpoint: {reason}")


def _is_running(client: Any, names: list[str], stamps: Mapping[str, float]) -> bool:
    """Whether every application has come up; raises when one will not.

    Args:
        client: of the cluster.
        names: of the applications.
        stamps: when each was given to Serve the last time; such a state says nothing yet.
    """
    found = client.get_serve_details()["applications"]
    states = {name: found[name] for name in names if name in found}
    if any(state["last_deployed_time_s"] == stamps.get(name) for name, state in states.items()):
        return False
    for name, state in states.items():
        if state["status"] in BAD:
            raise Fault(f"{name} did not start: {_why(state)}")
    return len(states) == len(names) and all(
        state["status"] == "RUNNING" for state in states.values()
    )


def _replicas(client: Any, name: str) -> set[str]:
    """The names of the replicas that answer."""
    state = client.get_serve_details()["applications"].get(name, {})
    replicas = state.get("deployments", {}).get(DEPLOYMENT, {}).get("replicas", [])
    return {one["replica_id"] for one in replicas if one["state"] == "RUNNING"}


def _agree(replicas: set[str], address: Address, goal: str) -> bool:
    """Whether all replicas have taken a lineup; raises when one has refused it.

    Each question goes to a replica that the proxy chooses, so it is asked until all have answered.
    A question without an answer is asked again: a proxy or a replica may just be replaced.

    Args:
        replicas: their names.
        address: where they answer.
        goal: id of the lineup.
    """
    done: set[str] = set()
    for _ in range(20 * max(1, len(replicas))):
        try:
            health = address.health()
        except UserError:
            return False
        if health.lineup != goal:
            return False
        if health.is_lineup_refused:
            raise Fault(
                "the new versions could not be loaded; GET .../model has the reason as last_refusal"
            )
        done.add(health.replica)
        if replicas <= done:
            return bool(replicas)
    return False


def _wait(is_done: Callable[[], bool], limit_s: float, complaint: str) -> None:
    until = time.monotonic() + limit_s
    while not is_done():
        if time.monotonic() > until:
            raise Fault(f"within {limit_s:g} s the endpoint {complaint}")
        time.sleep(POLL_S)


def _why(state: Mapping[str, Any]) -> str:
    """The cause that Serve gives, without the traceback around it."""
    messages = [str(state.get("message", ""))]
    messages += [str(one.get("message", "")) for one in state.get("deployments", {}).values()]
    lines = [line.strip() for text in messages for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line and not line.startswith("File")]
    return telling[-1] if telling else " ".join(lines)[:500] or "no reason was given"
