"""The gate before every route: request id, key, rate, size, time, and the last word on errors.

Plain ASGI, because every request passes here. The body is read here, up to its limit, so that a
route never sees one that is too large and a slow client holds no model. Errors that nobody foresaw
are logged under the request id, without what the client sent, and answered without a traceback.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.routing import Route, Router

from heliostat.serve.direct import DirectRoutes
from heliostat.serve.errors import CODES, ApiError, too_busy
from heliostat.serve.keys import KeyRing
from heliostat.serve.passage import Passage, begin
from heliostat.serve.rate_limit import RateLimit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class GateRules:
    """What the gate demands."""

    keys: Callable[[], KeyRing] | None
    """Those that hold now; None lets everybody in."""
    rate: RateLimit | None
    body_bytes: int
    request_s: float
    refusal_s: Callable[[str], float | None]
    """For a path, the seconds after which to come again where nothing more can be taken; asked
    before the body is read, so that a refusal costs little."""
    open_paths: frozenset[str]
    """Paths that need no key: health and the page."""


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        rules: GateRules,
        observe: Callable[[str, Passage], None],
        routes: frozenset[str],
        direct: DirectRoutes | None = None,
    ) -> None:
        """Make a gate.

        Args:
            app: what lies behind it.
            rules: what it demands.
            observe: told the route of every answer, and what is known of its request.
            routes: the paths of the API; other paths are counted as one.
            direct: routes that need not go through `app`.
        """
        self._direct = direct or DirectRoutes()
        # By these Serve names a request in its access log and its metrics, whatever the method.
        named = [Route(path, self, methods=_METHODS) for path in sorted(routes)]
        self.router = Router(named, redirect_slashes=False)
        self.routes = self.router.routes
        self._app, self._rules, self._observe, self._routes = app, rules, observe, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        passage = Passage(_request_id(headers))
        begin(passage)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                passage.status = message["status"]
            await send(message)

        try:
            async with asyncio.timeout(self._rules.request_s):
                self._admit(scope["path"], headers, passage)
                body = await _body(receive, headers, self._rules.body_bytes)
                kind = headers.get(b"content-type", b"")
                direct = self._direct.find(scope["method"], scope["path"], kind) if body else None
                if direct is None:
                    await self._app(scope, _replay(body, receive), answer)
                else:
                    await _respond(200, await direct.answer(body), {}, answer)
        except ApiError as error:
            await _refuse(error, passage, answer)
        except TimeoutError:
            await _refuse(ApiError(504, "the answer took too long"), passage, answer)
        except _Gone:
            passage.status, passage.code = 499, CODES[499]
        except asyncio.CancelledError:
            # The client has gone; nobody reads an answer.
            if not passage.status:
                passage.status, passage.code = 499, CODES[499]
            raise
        except Exception as error:
            logger.error("request %s failed\n%s", passage.request_id, _where(error))
            await _refuse(ApiError(500, "something broke here"), passage, answer)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._observe(route, passage)

    def _admit(self, path: str, headers: dict[bytes, bytes], passage: Passage) -> None:
        if path in self._rules.open_paths:
            return
        if self._rules.keys is not None:
            passage.key = _holder(self._rules.keys(), headers.get(b"authorization", b""))
        come_again_s = self._rules.refusal_s(path)
        if come_again_s is not None:
            raise too_busy(come_again_s)
        if self._rules.rate is not None:
            wait_s = self._rules.rate.wait_s(passage.key, time.monotonic())
            if wait_s:
                raise ApiError(429, "this key has used up its rate", retry_after_s=wait_s)


class _Gone(Exception):
    """The client went before it had sent its request."""


def _where(error: BaseException) -> str:
    """The kind of an error and of its causes, and where they were raised.

    Without their messages: those often quote a value, and so what the client sent.
    """
    lines = [f"{type(error).__module__}.{type(error).__qualname__} at"]
    lines += [
        f"  {frame.filename}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    cause = error.__cause__ or error.__context__
    return "\n".join(lines) + ("\ncaused by " + _where(cause) if cause is not None else "")


def _request_id(headers: dict[bytes, bytes]) -> str:
    """The id that Serve or the client gave it, which Serve also answers with; where it would do
    harm in a log, one that is not told.
    """
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _holder(keys: KeyRing, header: bytes) -> str:
    scheme, _, token = header.decode("latin-1").partition(" ")
    if not header:
        raise ApiError(401, "a key is needed: send it as Authorization: Bearer KEY")
    if scheme.lower() != "bearer":
        raise ApiError(401, "the header Authorization is not of the form Bearer KEY")
    holder = keys.holder(token.strip())
    if holder is None:
        raise ApiError(403, "this key is not known here")
    return holder


async def _body(receive: Receive, headers: dict[bytes, bytes], most: int) -> bytes:
    """The whole body; refused as soon as it is known to be too long."""
    announced = headers.get(b"content-length", b"0")
    too_large = ApiError(413, f"the body is larger than {most / 1e6:g} MB")
    if announced.isdigit() and int(announced) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise too_large
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body once, then whatever the client does next."""
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(error: ApiError, passage: Passage, send: Send) -> None:
    """Answer with an error, unless an answer has begun."""
    if passage.status:
        return
    passage.code = error.code
    content = json.dumps(error.body(), separators=(",", ":")).encode()
    await _respond(error.status, content, error.headers(), send)


async def _respond(status: int, content: bytes, more: Mapping[str, str], send: Send) -> None:
    """Answer with JSON."""
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *((name.encode(), value.encode()) for name, value in more.items()),
    ]
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": content})
