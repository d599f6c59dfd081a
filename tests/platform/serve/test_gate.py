"""The gate: keys, rates, sizes, times, request ids, and errors without tracebacks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import FastAPI

from heliostat.serve.errors import ApiError, add_handlers
from heliostat.serve.gate import Gate, GateRules
from heliostat.serve.keys import Key, KeyRing, digest_of
from heliostat.serve.passage import Passage, note_version
from heliostat.serve.rate_limit import RateLimit

TOKENS = {"crm": "hs_first", "shop": "hs_second"}
RING = KeyRing([Key(name, digest_of(token)) for name, token in TOKENS.items()])
SECRET = "my card number is 4111"
Seen = list[tuple[str, int, str, str, str]]
"""Route, status, key, code of the error, and version of each answer."""


def rules(**changes: Any) -> GateRules:
    given: dict[str, Any] = {
        "keys": lambda: RING,
        "rate": None,
        "body_bytes": 100,
        "request_s": 5.0,
        "refusal_s": lambda path: None,
        "open_paths": frozenset({"/healthz"}),
    }
    return GateRules(**(given | changes))


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body; some paths misbehave."""
    message = await receive()
    if scope["path"] == "/raises":
        raise RuntimeError(SECRET)
    if scope["path"] == "/refuses":
        raise ApiError(409, "no", field="a.b")
    if scope["path"] == "/chooses":
        note_version("v7")
        raise ApiError(429, "too many", code="queue_full")
    if scope["path"] == "/slow":
        await asyncio.sleep(60)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def ask(
    gate_rules: GateRules,
    path: str = "/echo",
    *,
    body: bytes | list[bytes] = b"{}",
    token: str | None = TOKENS["crm"],
    headers: dict[str, str] | None = None,
    app: Callable[..., Awaitable[None]] = echo,
    seen: Seen | None = None,
    method: str = "POST",
) -> tuple[int, dict[str, str], bytes]:
    """One request through the gate; status, headers and body of the answer."""
    given = dict(headers or {})
    if token is not None:
        given["authorization"] = f"Bearer {token}"
    parts = [body] if isinstance(body, bytes) else body
    incoming = [
        {"type": "http.request", "body": part, "more_body": index < len(parts) - 1}
        for index, part in enumerate(parts)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0) if incoming else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    def observe(route: str, passage: Passage) -> None:
        if seen is not None:
            seen.append((route, passage.status, passage.key, passage.code, passage.version))

    gate = Gate(app, gate_rules, observe, frozenset({"/echo"}))
    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    asyncio.run(gate(scope, receive, send))
    start = sent[0]
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, b"".join(part["body"] for part in sent[1:])


def error_of(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body)["error"]
    assert set(found) == {"code", "message", "field"}
    return found


def test_every_key_of_the_ring_opens_and_is_named_in_the_metrics() -> None:
    seen: Seen = []
    for token in TOKENS.values():
        status, _, body = ask(rules(), token=token, body=b"hello", seen=seen)
        assert (status, body) == (200, b"hello")
    assert seen == [("/echo", 200, "crm", "", ""), ("/echo", 200, "shop", "", "")]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "unauthorized"),
        ({"authorization": "Basic abc"}, 401, "unauthorized"),
        ({"authorization": "Bearer hs_wrong"}, 403, "forbidden"),
        ({"authorization": "Bearer "}, 403, "forbidden"),
    ],
)
def test_without_a_known_key_nothing_is_read(
    headers: dict[str, str], status: int, code: str
) -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the route was reached")

    found = ask(rules(), token=None, headers=headers, app=never)
    assert found[0] == status
    assert error_of(found[2])["code"] == code
    assert ("www-authenticate" in found[1]) == (status == 401)


def test_health_needs_no_key_and_keys_can_be_switched_off() -> None:
    assert ask(rules(), "/healthz", token=None)[0] == 200
    assert ask(rules(keys=None), token=None)[0] == 200


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"x" * 101, {}),
        ([b"x" * 60, b"x" * 60], {}),
        (b"", {"content-length": "101"}),
    ],
)
def test_a_body_that_is_too_large_is_refused(body: Any, headers: dict[str, str]) -> None:
    status, _, answer = ask(rules(), body=body, headers=headers)
    assert status == 413
    assert error_of(answer)["code"] == "too_large"


def test_a_body_in_parts_arrives_whole() -> None:
    assert ask(rules(), body=[b"ab", b"", b"cd"])[2] == b"abcd"


def test_a_key_that_asks_too_often_is_told_when_to_come_again() -> None:
    limited = rules(rate=RateLimit(2))
    assert [ask(limited)[0] for _ in range(2)] == [200, 200]
    status, headers, body = ask(limited)
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 30
    assert error_of(body)["code"] == "rate_limited"
    assert ask(limited, token=TOKENS["shop"])[0] == 200


def test_what_cannot_be_taken_is_refused_before_its_body_is_read_and_costs_no_rate() -> None:
    busy = rules(
        refusal_s=lambda path: 2.4 if path == "/echo" else None, rate=RateLimit(1), body_bytes=1
    )
    for _ in range(3):
        status, headers, body = ask(busy, body=b"far too large")
        assert (status, headers["retry-after"]) == (503, "3")
        assert error_of(body)["code"] == "overloaded"
    assert ask(busy, "/other", body=b"x")[0] == 200
    assert ask(busy, token="hs_wrong")[0] == 403


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    status, _, body = ask(rules(request_s=0.05), "/slow")
    assert status == 504
    assert error_of(body)["code"] == "timed_out"


def test_a_fault_is_logged_under_the_request_id_and_answered_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    status, _, body = ask(rules(), "/raises", headers={"x-request-id": "abc-1"})
    assert status == 500
    assert SECRET.encode() not in body
    assert b"Traceback" not in body
    assert "abc-1" in caplog.text
    assert "builtins.RuntimeError at" in caplog.text
    assert "test_gate.py" in caplog.text
    assert SECRET not in caplog.text


def test_what_caused_a_fault_is_logged_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def chained(scope: Any, receive: Any, send: Any) -> None:
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise KeyError(SECRET) from error

    assert ask(rules(), app=chained)[0] == 500
    assert "caused by builtins.ValueError" in caplog.text
    assert SECRET not in caplog.text


def test_errors_of_an_application_behind_the_gate_have_one_shape() -> None:
    app = FastAPI()
    add_handlers(app)

    @app.get("/fault")
    async def fault() -> None:
        raise RuntimeError(SECRET)

    for path, status in (("/fault", 500), ("/nowhere", 404)):
        found = ask(rules(), path, app=app, method="GET")
        assert found[0] == status
        error_of(found[2])
        assert SECRET.encode() not in found[2]


def test_a_wrong_method_is_told_the_right_ones() -> None:
    app = FastAPI()
    add_handlers(app)

    @app.get("/only-get")
    async def only_get() -> None:
        return None

    status, headers, body = ask(rules(), "/only-get", app=app, method="DELETE")
    assert (status, headers["allow"]) == (405, "GET")
    assert error_of(body)["code"] == "method_not_allowed"


def test_a_routes_own_error_keeps_its_field() -> None:
    status, _, body = ask(rules(), "/refuses")
    assert status == 409
    assert error_of(body) == {"code": "conflict", "message": "no", "field": "a.b"}


def test_a_harmful_request_id_does_not_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    ask(rules(), "/raises", headers={"x-request-id": "abc\nforged line"})
    assert "forged" not in caplog.text


def test_paths_that_a_client_made_up_are_counted_as_one() -> None:
    seen: Seen = []
    ask(rules(), "/made-up-1", seen=seen)
    ask(rules(), "/made-up-2", seen=seen)
    assert {one[0] for one in seen} == {"other"}


def test_an_answer_is_counted_with_its_error_and_the_version_that_was_chosen() -> None:
    seen: Seen = []
    ask(rules(), "/chooses", seen=seen)
    ask(rules(), token="hs_wrong", seen=seen)
    ask(rules(), body=b"", headers={"content-length": "101"}, seen=seen)
    assert seen == [
        ("other", 429, "crm", "queue_full", "v7"),
        ("/echo", 403, "none", "forbidden", ""),
        ("/echo", 413, "crm", "too_large", ""),
    ]


def test_errors_of_the_routes_are_counted_with_their_code_too() -> None:
    app = FastAPI()
    add_handlers(app)

    @app.post("/full")
    async def full() -> None:
        raise ApiError(503, "no", code="queue_full")

    seen: Seen = []
    assert ask(rules(), "/full", app=app, seen=seen)[0] == 503
    assert ask(rules(), "/nowhere", app=app, seen=seen)[0] == 404
    assert [(one[1], one[3]) for one in seen] == [(503, "queue_full"), (404, "not_found")]
