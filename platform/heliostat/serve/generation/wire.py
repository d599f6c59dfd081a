"""What the routes of language models have in common on the wire.

Fields that are refused are answered with 400, as specified for these endpoints and as clients of
OpenAI's expect; other endpoints say 422. Streams are server-sent events, one JSON object each, with
`[DONE]` at the end; what goes wrong after the first is told in the stream.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BeforeValidator, Field, StrictInt
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from heliostat.serve.errors import ApiError, validation
from heliostat.serve.generation.engine import Generation

MOST_STOPS = 16
MOST_TOKENS = 8192
MOST_LOGPROBS = 20


def _as_list(given: object) -> object:
    return [given] if isinstance(given, str) else given


def _plain(given: object) -> object:
    """One message for a prompt that is neither text nor tokens."""
    if isinstance(given, str):
        return given
    if isinstance(given, list) and all(type(one) is int for one in given):
        return given
    raise ValueError("expected a text or a list of token numbers")


PlainPrompt = Annotated[
    str | list[int], BeforeValidator(_plain), Field(description="A text, or its tokens.")
]
OwnText = Annotated[str | None, Field(description="A text, or")]
OwnTokens = Annotated[list[StrictInt] | None, Field(description="its tokens.")]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]],
    BeforeValidator(_as_list),
    Field(max_length=MOST_STOPS, description="The completion ends before the first of these."),
]
Temperature = Annotated[float, Field(ge=0.0, le=100.0, description="0: the most probable token.")]
TopP = Annotated[
    float, Field(gt=0.0, le=1.0, description="The most probable tokens with this much together.")
]
TopK = Annotated[int, Field(ge=0, description="This many of the most probable tokens; 0: all.")]
Seed = Annotated[
    int | None, Field(ge=-(2**63), lt=2**64, description="Same seed, same completion.")
]


class LanguageRoute(APIRoute):
    """A route that answers 400 where a field is refused."""

    @staticmethod
    def refused(errors: Sequence[Any]) -> ApiError:
        """The error of a request that does not have its form.

        Args:
            errors: what pydantic found.
        """
        found = validation(errors)
        code = "malformed" if found.status == 400 else "invalid"
        return ApiError(400, found.message, field=found.field, code=code)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, with its validation errors as ours."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise self.refused(error.errors()) from None

        return handler


class EventStream(StreamingResponse):
    """Server-sent events of requests, which end when the client is gone."""

    def __init__(self, lines: AsyncIterator[str], generations: Sequence[Generation]) -> None:
        super().__init__(
            lines, media_type="text/event-stream", headers={"cache-control": "no-store"}
        )
        self._generations = generations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them; however it ends, nothing goes on for nobody."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for generation in self._generations:
                generation.cancel()


def stream(
    parts: AsyncIterator[Mapping[str, Any]], generations: Sequence[Generation]
) -> EventStream:
    """Objects as server-sent events.

    Args:
        parts: the objects.
        generations: what they are made of.
    """
    return EventStream(_lines(parts), generations)


async def _lines(parts: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[str]:
    try:
        async for part in parts:
            yield f"data: {json.dumps(part)}\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error.body())}\n\n"
    yield "data: [DONE]\n\n"
