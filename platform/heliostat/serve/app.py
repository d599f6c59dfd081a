"""The ASGI application of a replica: the job's routes, those of every endpoint, and the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from heliostat.serve.config import OFF, ServeConfig
from heliostat.serve.contract import Endpoint
from heliostat.serve.direct import DirectRoutes
from heliostat.serve.errors import MEANINGS, ErrorBody, add_handlers
from heliostat.serve.gate import Gate, GateRules
from heliostat.serve.keys import KeyRing, read_keys
from heliostat.serve.page import api_page, front_page
from heliostat.serve.passage import Passage
from heliostat.serve.rate_limit import RateLimit
from heliostat.serve.service import Service
from heliostat.serve.status_types import Answering, HealthAnswer, ModelAnswer, ShadowAnswer
from heliostat.serve.telemetry import Telemetry
from heliostat.serve.watched import Watched
from heliostat.storage import Location

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI

PAGES = ("/", "/docs", "/openapi.json", "/favicon.ico")
KEYS_EVERY_S = 2.0
"""A key that was added or taken away counts after this time, without another deployment."""


def build_app(
    endpoint: Endpoint,
    service: Service,
    config: ServeConfig,
    telemetry: Telemetry,
    replicas: Callable[[], int],
    replica: str,
) -> Gate:
    """The whole application.

    Args:
        endpoint: the job's side.
        service: its versions.
        config: of the endpoint.
        telemetry: where answers are counted.
        replicas: how many replicas share the rate of a key now.
        replica: the name of this one.
    """
    router = endpoint.router(service)
    app = _application(endpoint, router, service, replica, is_open=config.keys == OFF)
    # FastAPI keeps a router that was included as one route without a path.
    own = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    paths = own | frozenset(app.openapi()["paths"])
    model_path = f"{endpoint.prefix}{endpoint.page.path}"
    per_minute = config.limits.requests_per_minute
    rules = GateRules(
        keys=None if config.keys == OFF else watched_keys(config.keys),
        # Without keys nobody knows whose rate it would be.
        rate=None if per_minute is None or config.keys == OFF else RateLimit(per_minute, replicas),
        body_bytes=int(config.limits.body_mb * 1e6),
        request_s=config.limits.request_s,
        refusal_s=lambda path: service.refusal_s() if path == model_path else None,
        open_paths=frozenset((*PAGES, "/healthz", f"{endpoint.prefix}/healthz")),
    )

    def observe(route: str, passage: Passage) -> None:
        telemetry.request(route, passage)
        telemetry.waiting(service.waiting)

    return Gate(app, rules, observe, paths, DirectRoutes(router, endpoint.prefix))


def watched_keys(file: str) -> Watched[KeyRing]:
    """The keys of a file, as they are now."""
    place = Location.of(file)
    return Watched(lambda: KeyRing(read_keys(place)), KEYS_EVERY_S, "the key file")


def _application(
    endpoint: Endpoint, router: APIRouter, service: Service, replica: str, *, is_open: bool
) -> FastAPI:
    from fastapi import FastAPI
    from starlette.responses import HTMLResponse, Response

    app = FastAPI(
        title=endpoint.title,
        docs_url=None,
        redoc_url=None,
        responses={
            status: {"model": ErrorBody, "description": meaning}
            for status, meaning in MEANINGS.items()
        },
    )
    add_handlers(app)
    prefix = endpoint.prefix
    app.include_router(router, prefix=prefix)
    common = endpoint.common_router(service)
    if common is not None:
        app.include_router(common)

    def health() -> HealthAnswer:
        """Without paths: anybody may ask."""
        status = service.status()
        return HealthAnswer(
            replica=replica,
            versions=[Answering(**one) for one in status["versions"]],
            shadow=status["shadow"],
            lineup=status["lineup"],
            refused_lineup=status["refused_lineup"] is not None,
        )

    @app.get(f"{prefix}/healthz", tags=["operation"])
    async def healthz() -> HealthAnswer:
        """Whether it answers, and with which versions; needs no key."""
        return health()

    @app.get(f"{prefix}/model", tags=["operation"])
    async def model() -> ModelAnswer:
        """The versions that answer, where they come from, and what is known of each."""
        newest = service.newest
        about: Mapping[str, object] = newest.model.about()
        return ModelAnswer(
            **{"replica": replica, **service.status(), "version": newest.name, **about}
        )

    @app.get(f"{prefix}/shadow", tags=["operation"])
    async def shadow() -> ShadowAnswer:
        """How far the shadow agrees with the versions that answer, in the replica that is asked."""
        found = service.shadow_report
        return ShadowAnswer(
            replica=replica,
            shadow=service.status()["shadow"],
            compared=found.compared,
            mean_agreement=found.mean_agreement,
            full_agreement=found.full_agreement,
            failed=found.failed,
            dropped=found.dropped,
        )

    @app.get("/healthz", include_in_schema=False)
    async def plain_healthz() -> HealthAnswer:
        return health()

    @lru_cache(maxsize=2)
    def page_of(version: str) -> str:
        card = service.newest.bundle.path("README.md").read_text(encoding="utf-8")
        return front_page(endpoint, card, needs_key=not is_open)

    @app.get("/", include_in_schema=False)
    async def front() -> Response:
        return HTMLResponse(page_of(service.newest.name))

    description = lru_cache(maxsize=1)(lambda: api_page(app.openapi()))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(description())

    if not is_open:
        _describe_keys(app, f"{prefix}/healthz")
    return app


def _describe_keys(app: FastAPI, open_path: str) -> None:
    """Say in the OpenAPI description that every route but one needs a key."""
    description = app.openapi()
    schemes = description.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["key"] = {"type": "http", "scheme": "bearer"}
    for path, operations in description["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path == open_path else [{"key": []}]
