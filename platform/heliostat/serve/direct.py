"""Routes that the gate answers by itself, without the web framework in between.

FastAPI declares and describes every route. Where a route takes one JSON body and gives one model,
and nothing else of the request decides, what lies between the gate and the route (seven layers of
middleware, matching, a stack of contexts, a check of the answer against its own type) changes no
answer, but takes longer than the route does. Such a route is found here when the application is
built, and called with the same validation and the same errors; a request that is in any way
unusual still goes through FastAPI.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import BaseModel, ValidationError

from heliostat.serve.errors import ApiError, validation

if TYPE_CHECKING:
    from fastapi import APIRouter
    from fastapi.routing import APIRoute

_JSON = b"application/json"


@dataclass(frozen=True)
class DirectRoute:
    """A POST route with one model in and one out."""

    call: Callable[..., Awaitable[BaseModel]]
    parameter: str
    """The name under which `call` takes the request."""
    request: type[BaseModel]
    refused: Callable[[Sequence[Any]], ApiError]
    """The error of a request that does not have this form, of what pydantic found."""

    async def answer(self, body: bytes) -> bytes:
        """The JSON of the answer; raises `ApiError`, as the route does."""
        try:
            raw = json.loads(body)
        except (ValueError, RecursionError):
            raise ApiError(400, "the body is not valid JSON") from None
        try:
            request = self.request.model_validate(raw, from_attributes=True)
        except ValidationError as error:
            raise self.refused(error.errors(include_url=False)) from None
        answer = await self.call(**{self.parameter: request})
        return answer.model_dump_json(by_alias=True).encode()


class DirectRoutes:
    """The direct ones among the routes of a router."""

    def __init__(self, router: APIRouter | None = None, prefix: str = "") -> None:
        self._routes = {} if router is None else dict(_direct(router, prefix))

    def find(self, method: str, path: str, kind: bytes) -> DirectRoute | None:
        """The route of a request; None where FastAPI shall see it.

        Args:
            method: of the request.
            path: of the request.
            kind: its content type.
        """
        return self._routes.get(path) if method == "POST" and kind.startswith(_JSON) else None


def _direct(router: APIRouter, prefix: str) -> Iterator[tuple[str, DirectRoute]]:
    from fastapi.routing import APIRoute

    for route in router.routes:
        if isinstance(route, APIRoute) and route.methods == {"POST"} and "{" not in route.path:
            found = _of(route)
            if found is not None:
                yield prefix + route.path, found


def _of(route: APIRoute) -> DirectRoute | None:
    """The direct form of a route; None where more than its body decides."""
    from fastapi.datastructures import DefaultPlaceholder

    inputs, bodies = route.dependant, route.dependant.body_params
    others = (
        *(inputs.path_params, inputs.query_params, inputs.header_params, inputs.cookie_params),
        *(inputs.dependencies, inputs.request_param_name, inputs.websocket_param_name),
        *(inputs.http_connection_param_name, inputs.response_param_name),
        *(inputs.background_tasks_param_name, inputs.security_scopes_param_name),
        *(route.status_code, route.response_model_include, route.response_model_exclude),
        *(route.response_model_exclude_unset, route.response_model_exclude_defaults),
        route.response_model_exclude_none,
    )
    # A route that says it may answer otherwise than with its model, say with a stream, may do so.
    answer = get_type_hints(route.endpoint).get("return")
    is_plain = isinstance(route.response_class, DefaultPlaceholder) and not any(others)
    if (
        not is_plain
        or answer is not route.response_model
        or not iscoroutinefunction(route.endpoint)
    ):
        return None
    request = _model(bodies[0].field_info.annotation) if len(bodies) == 1 else None
    if request is None or _model(answer) is None:
        return None
    refused = getattr(route, "refused", validation)
    return DirectRoute(route.endpoint, bodies[0].name, request, refused)


def _model(kind: Any) -> type[BaseModel] | None:
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
