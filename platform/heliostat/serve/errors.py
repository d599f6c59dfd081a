"""Errors of an endpoint: one JSON shape for all of them, and never a traceback.

    {"error": {"code": "too_large", "message": "...", "field": null}}

`code` is stable and for programs, `message` one sentence for people, `field` the path of the value
that is wrong. No message repeats what the client sent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from heliostat.serve.passage import note_code

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.responses import Response

_WORD = re.compile(r"[A-Za-z0-9_]{1,64}")

CODES = {
    400: "malformed",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    429: "rate_limited",
    499: "client_gone",
    500: "internal",
    503: "overloaded",
    504: "timed_out",
}


MEANINGS = {
    400: "The body is not JSON.",
    401: "No key was sent.",
    403: "The key is not known.",
    413: "The body is too large.",
    422: "A value is not allowed; `field` is its path.",
    429: "The key has used up its rate, or too many requests wait for the language model; come "
    "again after `Retry-After` seconds.",
    500: "Something broke.",
    503: "Too many requests wait, or the model is being loaded; come again after `Retry-After`.",
    504: "The answer took too long.",
}
"""The errors that every route may answer with, for the OpenAPI description."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    message: str
    field: str | None


class ErrorBody(BaseModel):
    """An error."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.field = status, message, field
        self.code = code or CODES.get(status, "error")
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON body."""
        return {"error": {"code": self.code, "message": self.message, "field": self.field}}

    def headers(self) -> dict[str, str]:
        """Headers that belong to it."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def too_busy(come_again_s: float) -> ApiError:
    """What is answered where too many requests wait."""
    return ApiError(503, "too many requests wait", retry_after_s=come_again_s)


def add_handlers(app: FastAPI) -> None:
    """Give every error that a route or the framework raises our shape."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

    def respond(error: ApiError, more: Mapping[str, str] | None = None) -> Response:
        note_code(error.code)
        headers = {**error.headers(), **(more or {})}
        return JSONResponse(error.body(), status_code=error.status, headers=headers)

    @app.exception_handler(ApiError)
    async def api_error(_: Any, error: ApiError) -> Response:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Any, error: RequestValidationError) -> Response:
        return respond(validation(error.errors()))

    @app.exception_handler(Exception)
    async def fault(_: Any, error: Exception) -> Response:
        # It is raised on afterwards, and logged by the gate.
        return respond(ApiError(500, "something broke here"))

    @app.exception_handler(HTTPException)
    async def http_error(_: Any, error: HTTPException) -> Response:
        # Such as Allow, where the method is wrong.
        return respond(ApiError(error.status_code, str(error.detail)), error.headers)


def validation(found: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's findings as an error; the input it quotes is left out."""
    first = found[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON")
    where = [_named(part) for part in first["loc"] if part != "body"]
    message = str(first["msg"]).removeprefix("Value error, ")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return ApiError(422, f"{message}{more}", field=".".join(where) or None)


def _named(part: object) -> str:
    """A part of a path; the name that a client gave to a field of its own only if it is a word."""
    name = str(part)
    return name if _WORD.fullmatch(name) else "?"
